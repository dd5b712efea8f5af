"""What the curation can start from: raw videos, two public data sets with the user's videos, and pairs of images.

Each kind has settings and stages of its own; all end in the same tables, and so in the same shards.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phantom_mega.config_io import Recipes
from phantom_mega.curation import (
    boxes,
    captions,
    config,
    crops,
    detections,
    embeddings,
    faces,
    image_pairs,
    measures,
    neighbours,
    pairs,
    samples,
    selection,
    shots,
    subjects,
    videos,
    write,
)
from phantom_mega.curation.engine.stage import Stage
from phantom_mega.curation.readers import opens2v, phantom_data
from phantom_mega.errors import UserError


@dataclass(frozen=True)
class Source:
    """A kind of input.

    Attributes:
        about: what `--input` names.
        recipes: its settings.
        stages: from the input, the settings and the folder of all tables to the stages, in their order.
    """

    about: str
    recipes: Recipes
    stages: Callable[[str, Any, Path], list[Stage]]


def _from_videos(source: str, settings: config.CurationConfig, folder: Path) -> list[Stage]:
    return [
        *videos.stages(source, settings.videos),
        *shots.stages(settings.shots),
        measures.stage(settings.measures),
        selection.stage(settings.selection),
        captions.stage(settings.captions),
        subjects.stage(settings.subjects),
        detections.stage(settings.detections),
        boxes.stage(settings.boxes),
        crops.stage(settings.crops),
        embeddings.stage(settings.embeddings),
        *faces.stages(settings.faces, settings.face_matching),
        neighbours.stage(settings.neighbours),
        pairs.stage(settings.pairs),
        samples.stage(settings.samples),
        write.stage(settings.transcode, folder),
    ]


def _from_phantom_data(source: str, settings: config.PhantomDataConfig, folder: Path) -> list[Stage]:
    reader = phantom_data.reader(dataclasses.replace(settings.phantom_data, videos=source))
    return [*reader, samples.stage(settings.samples), write.stage(settings.transcode, folder)]


def _from_opens2v(source: str, settings: config.OpenS2VConfig, folder: Path) -> list[Stage]:
    reader = opens2v.reader(dataclasses.replace(settings.opens2v, videos=source))
    return [*reader, samples.stage(settings.samples), write.stage(settings.transcode, folder)]


def _from_image_pairs(source: str, settings: config.ImagePairConfig, folder: Path) -> list[Stage]:
    ending = {"subjects200k": "*.parquet", "omnigen": "*.jsonl"}.get(settings.image_pairs.layout, "*")
    root = Path(source)
    files = sorted(map(str, root.rglob(ending))) if root.is_dir() else [source]
    if not files:
        raise UserError(f"--input {source} holds no file {ending} of the layout {settings.image_pairs.layout}")
    return image_pairs.stages(dataclasses.replace(settings.image_pairs, files=files), folder)


SOURCES = {
    "videos": Source("folder of videos, one video, or a text file with a path on each line", config.CURATION,
                     _from_videos),
    "phantom_data": Source("folder of Phantom-Data's clips; phantom_data.annotations names the parquet file",
                           config.PHANTOM_DATA, _from_phantom_data),
    "opens2v": Source("folder of OpenS2V-5M's videos; opens2v.annotations and opens2v.cross_pairs name JSON files",
                      config.OPENS2V, _from_opens2v),
    "image_pairs": Source("parquet files of Subjects200K or JSON lines of OmniGen (image_pairs.layout), or a folder",
                          config.IMAGE_PAIRS, _from_image_pairs),
}  # fmt: skip


# (settings of files, settings of who does it) that annotations by hand stand for
_BY_HAND = (
    ("captions.caption_file", "subjects.subject_file", "detections.detector_file"),
    ("captions.caption_backend", "subjects.subject_backend", "detections.detector"),
)


def annotated(path: str) -> list[str]:
    """Overrides of a recipe that take captions, subjects and boxes from a file of annotations."""
    files, backends = _BY_HAND
    return [f"{field}={path}" for field in files] + [f"{field}=file" for field in backends]


def find_source(name: str) -> Source:
    """The kind of input of a name.

    Raises:
        UserError: there is none; says which are near.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"there is no source {name!r}{hint} (there are {', '.join(SOURCES)})")
    return SOURCES[name]
