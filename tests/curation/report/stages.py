"""The stages that a report is made of, and tables of them by hand."""

from datetime import UTC, datetime

from phantom_mega.curation import captions, measures, samples, selection, shots, videos, write
from phantom_mega.curation.columns import fields_of
from phantom_mega.curation.engine.stage import Stage
from phantom_mega.curation.transcode import TranscodeSettings

MADE = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)
BY_COLUMNS = ("subjects", "detections", "boxes", "crops", "embeddings", "faces", "pairs")
STAGES = {
    stage.name: stage
    for stage in (
        *videos.stages("films", videos.VideoSettings()),
        *shots.stages(shots.ShotSettings()),
        measures.stage(measures.MeasureSettings()),
        selection.stage(selection.SelectionSettings()),
        captions.stage(captions.CaptionSettings()),
        *(Stage(name, fields_of(name), {}, None, None) for name in BY_COLUMNS),
        samples.stage(samples.SampleSettings()),
        write.stage(TranscodeSettings(), "tables"),
    )
}
