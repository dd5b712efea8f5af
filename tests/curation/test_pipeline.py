"""From a folder of good, odd and hostile files to a table of selected clips, by the launcher."""

import subprocess
import sys

import pytest

from phantom_mega.curation.config import CURATION
from phantom_mega.curation.engine.tables import Table
from phantom_mega.curation.pipeline import LAST, choose, until_nobody
from phantom_mega.curation.report.counts import count_stages
from phantom_mega.curation.report.reading import Tables
from phantom_mega.curation.sources import SOURCES, find_source
from phantom_mega.errors import UserError
from tests.curation.clips import noise, real, write_empty, write_video
from tests.scripts import run_script
from tests.training.conftest import REPOSITORY, environment


def curate(*words, code=0):
    command = [sys.executable, "launchers/curate.py", *map(str, words), "--config", "tiny", "engine.num_cpus=2"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == code, done.stdout + done.stderr[-3000:]
    return done.stdout + done.stderr


def stages_of(name, config, path):
    return SOURCES[name].stages(str(path), config, path.parent / "tables")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


@pytest.mark.slow
def test_good_clips_are_selected_and_each_other_file_is_named_with_its_reason(tmp_path):
    films = tmp_path / "films"
    (films / "deep").mkdir(parents=True)
    real(films, "bikes"), real(films / "deep", "carphone")
    (films / "copy.mp4").write_bytes((films / "deep/carphone.mp4").read_bytes())
    (films / "broken;rm -rf.mp4").write_text("no video")
    (films / "empty.webm").touch()
    write_video(films / "small.mp4", noise(1, 60))
    write_video(films / "still.mp4", [noise(2, 1, 180, 320)[0]] * 60)
    write_video(films / "turned.mp4", noise(5, 60, 180, 320), rotation=90)
    write_video(films / "ten hours.mp4", noise(3, 40, 180, 320), times=[923.0 * i for i in range(40)])
    write_empty(films / "frameless.mkv")
    printed = curate("--input", films, "--output", tmp_path / "out", "videos.max_video_duration=36000")
    assert "Traceback" not in printed and "WARNING" not in printed
    assert "stopped before the stage that captions.caption_backend=none is for" in printed
    report = (tmp_path / "out/report.html").read_text()
    assert "Left out" in report and "captions" in report.split("Left out")[1]
    config = CURATION.load("tiny")
    stages = stages_of("videos", config, films)
    counted = count_stages(Tables(tmp_path / "out/tables", stages, config.engine.parts))
    found = {counts.stage: (counts.accepted, dict(counts.ordered())) for counts in counted}
    assert found["files"][0] == 10
    assert found["videos"] == (5, {"unreadable": 3, "too long": 1, "too small": 1})
    assert found["shots"][0] == 6 + 4 and found["clips"][1] == {"too short": 2}
    accepted, reasons = found["selected"]
    assert reasons["duplicate"] == 1 and reasons["static"] == 1 and accepted >= 5
    for line in ("unreadable 3", "duplicate 1"):
        assert line in printed
    table = Table(tmp_path / "out/tables", "videos", config.engine.parts)
    rejected = {row["path"].rsplit("/")[-1]: row for row in table.read(accepted=False).to_pylist()}
    assert set(rejected) == {"broken;rm -rf.mp4", "empty.webm", "frameless.mkv", "small.mp4", "ten hours.mp4"}
    assert rejected["ten hours.mp4"]["score"] == pytest.approx(36920)
    assert rejected["small.mp4"]["score"] == 90 and "cannot be opened" in rejected["empty.webm"]["detail"]
    turned = [row for row in table.read(accepted=True).to_pylist() if row["rotation"]]
    assert [(row["width"], row["height"]) for row in turned] == [(180, 320)]

    before = files(tmp_path / "out")
    again = curate("--input", films, "--output", tmp_path / "out", "videos.max_video_duration=36000")
    assert files(tmp_path / "out") == before and "measures: done before" in again
    looser = curate("--input", films, "--output", tmp_path / "out", "--stages", "selected", "selection.min_motion=0")
    assert "static" not in looser.split("selected  ")[-1]
    changed = {name for name, data in files(tmp_path / "out").items() if before[name] != data}
    assert changed and all(name.startswith("tables/selected/") for name in changed)
    refused = curate("--input", films, "--output", tmp_path / "out", "engine.parts=5", code=2)
    assert "has tables of 4 parts; set engine.parts=4" in refused and "Traceback" not in refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "/no/such/films"], "/no/such/films is no folder, no video, and no list of videos"),
        (["--input", "x", "--stages", "shotz"], "there is no stage 'shotz'; there are files, videos, shots"),
        (["--input", "x", "shots.min_klip=2"], "unknown field shots.min_klip; did you mean shots.min_clip?"),
        (["--input", "x", "--config", "tinny"], "there is no recipe 'tinny'; did you mean tiny?"),
    ],
)
def test_mistakes_are_one_line(tmp_path, words, message):
    done = run_script("launchers/curate.py", "--output", tmp_path / "out", *words, env=environment())
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and message in done.stderr


@pytest.mark.parametrize("name", SOURCES)
def test_stages_are_chosen_by_name_in_their_own_order(name, tmp_path):
    config = SOURCES[name].recipes.load("default")
    everything = stages_of(name, config, tmp_path / "file")
    names = [stage.name for stage in everything]
    for stage in everything:
        assert all(names.index(other) < names.index(stage.name) for other in stage.inputs)
        for other, columns in stage.inputs.items():
            assert set(columns) <= {field.name for field in everything[names.index(other)].columns}
    assert {"samples", "crops", "encoded"} <= set(names), "what shards are made of"
    assert choose(everything, None) == [*names, *LAST]
    assert choose(everything, ["shards", "samples"]) == ["samples", "shards"]
    with pytest.raises(UserError, match="there is no stage 'x'"):
        choose(everything, ["x"])


def test_a_run_ends_at_what_nobody_is_named_for_and_reports():
    steps = ["clips", "captions", "subjects", "detections", "boxes", "shards", "report"]
    load = CURATION.load
    assert until_nobody(steps, load("default")) == (["clips", "report"], "captions.caption_backend")
    described = load("default", ["captions.caption_backend=openai"])
    assert until_nobody(steps, described) == (["clips", "captions", "subjects", "report"], "detections.detector")
    assert until_nobody(steps, load("default", ["captions.caption_backend=file", "detections.detector=file"])) == (
        steps, "",
    )  # fmt: skip
    assert until_nobody(steps, SOURCES["phantom_data"].recipes.load("default")) == (steps, "")


def test_an_unknown_source_is_told_the_nearest_one():
    with pytest.raises(UserError, match="there is no source 'phantomdata'; did you mean phantom_data"):
        find_source("phantomdata")


@pytest.mark.parametrize("name", SOURCES)
def test_every_setting_has_its_meaning_and_a_name_of_its_own(name):
    fields = SOURCES[name].recipes.fields
    names = [path.split(".")[1] for path in fields]
    assert len(names) == len(set(names)) and all(len(doc) > 15 for doc in fields.values())
