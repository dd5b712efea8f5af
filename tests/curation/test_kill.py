"""A curation that is killed in stage after stage, and started again each time, ends with the same bytes."""

import contextlib
import json
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from phantom_mega.curation.engine.stage import Stage
from phantom_mega.curation.pipeline import TABLES, parts_of
from phantom_mega.curation.sources import SOURCES
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.samples import decode_video, source_video
from phantom_mega.data.shards import ShardReader
from tests.curation.clips import real, write_video
from tests.training.conftest import REPOSITORY, environment

SETTINGS = (
    "--config", "sample", "engine.parts=2", "engine.num_cpus=1", "videos.min_side=128", "samples.validation_videos=[]",
    "pairs.min_similarity=0.5", "pairs.max_similarity=0.999", "pairs.max_face_similarity=1.0",
    "faces.face_backend=dlib", "boxes.max_box_area=1.0", "boxes.max_cut_sides=2",
)  # fmt: skip
# Those that last longer than a kill does: in the others a row is done before its workers are gone.
KILLED_IN = ("shots", "measures", "crops", "embeddings", "face_detections", "encoded")
MAN = {"phrase": "a young man with brown hair", "category": "human", "appearance": "brown hair, a dark suit"}
TIE = {"phrase": "a red bow tie", "category": "clothes", "appearance": "a shiny red bow tie"}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A man twice: the second film is the first one mirrored, brighter and cut shorter; and the annotations of both."""
    folder = tmp_path_factory.mktemp("films")
    real(folder, "carphone")
    frames = decode_video(source_video("carphone"))[20:110, :, ::-1]
    write_video(folder / "mirrored.mp4", list(np.clip(frames * 1.15, 0, 255).astype(np.uint8)), fps=30)
    boxes = {"carphone.mp4": ((0.16, 0.1, 1, 1), (0.42, 0.67, 0.7, 0.83)),
             "mirrored.mp4": ((0, 0.1, 0.84, 1), (0.3, 0.67, 0.58, 0.83))}  # fmt: skip
    lines = []
    for video, (man, tie) in boxes.items():
        subjects = [
            about | {"boxes": [{"time": time, "box": box} for time in (0.3, 1.5)]}
            for about, box in ((MAN, man), (TIE, tie))
        ]
        caption = f"In {video[:8]} a young man with brown hair and a red bow tie talks in a car."
        lines.append({"video": video, "time": 1.5, "caption": caption, "subjects": subjects})
    (folder / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def start(films, output):
    words = ["--input", films, "--output", output, "--annotations", films / "annotations.jsonl", *SETTINGS]
    command = [sys.executable, "launchers/curate.py", *map(str, words)]
    with (output.parent / f"{output.name}.log").open("a") as log:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment(), stdout=log, stderr=log, start_new_session=True
        )


def kill_in(process, output, stage: Stage):
    """Kill the run and all of its workers once the stage has begun to write: a row's journal, or the first table."""
    folder = output / TABLES / stage.name
    at_once = stage.whole or stage.source
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # a part that has just been written
            if folder.exists() and (at_once or any(path.stat().st_size for path in folder.glob(".part-*.journal"))):
                break
        time.sleep(0.0005)
    assert process.poll() is None, f"the run ended before stage {stage.name}"
    driver = psutil.Process(process.pid)
    for one in [*reversed(driver.children(recursive=True)), driver]:  # workers first: they are at the row
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def made(output):
    wanted = (f"{TABLES}/*/*.parquet", f"{TABLES}/clips_encoded/*/*", "shards/*/*")
    paths = [path for pattern in wanted for path in output.glob(pattern)]
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(paths) if path.is_file()}


@pytest.mark.exhaustive
def test_a_run_killed_in_each_lasting_stage_ends_with_the_same_bytes(films, tmp_path):
    source, killed, whole = SOURCES["videos"], tmp_path / "killed", tmp_path / "whole"
    config = source.recipes.load("sample", list(SETTINGS[2:]))
    stages = {stage.name: stage for stage in source.stages(str(films), config, tmp_path)}
    for name in KILLED_IN:
        kill_in(start(films, killed), killed, stages[name])
        parts = [killed / TABLES / name / f"part-{part:05d}.parquet" for part in range(2)]
        assert not all(path.exists() for path in parts), f"{name} was done before it was killed"
    for output in (killed, whole):
        assert start(films, output).wait(timeout=400) == 0, (tmp_path / f"{output.name}.log").read_text()[-4000:]
    assert parts_of(killed) == 2
    found, expected = made(killed), made(whole)
    assert found.keys() == expected.keys() and [name for name in found if found[name] != expected[name]] == []
    assert not [*killed.rglob("*.journal"), *killed.rglob("*.writing")], "nothing half-written stays behind"
    index = TripletIndex.open([whole / "shards/train"])
    assert len(index) == 2 and {kind for row in range(2) for kind in kinds(index, row)} == {"cross"}


def kinds(index, row):
    """Kinds of a sample's references."""
    return [reference.kind for reference in ShardReader(index).read(row).triplet.references]
