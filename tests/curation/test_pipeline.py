"""From a folder of good, odd and hostile files to a table of selected clips, by the launcher."""

import subprocess
import sys

import pytest

from phantom_mega.curation.config import CURATION
from phantom_mega.curation.engine.tables import Table
from phantom_mega.curation.pipeline import choose, funnel, stages
from phantom_mega.errors import UserError
from tests.curation.clips import noise, real, write_video
from tests.training.conftest import REPOSITORY, environment


def curate(*words, code=0):
    command = [sys.executable, "launchers/curate.py", *map(str, words), "--config", "tiny", "engine.num_cpus=2"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == code, done.stdout + done.stderr[-3000:]
    return done.stdout + done.stderr


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
    printed = curate("--input", films, "--output", tmp_path / "out")
    assert "Traceback" not in printed and "WARNING" not in printed
    config = CURATION.load("tiny")
    found = {name: (accepted, reasons) for name, accepted, reasons in funnel(tmp_path / "out", config, str(films))}
    assert found["files"][0] == 8 and found["videos"] == (5, {"unreadable": 2, "too small": 1})
    assert found["shots"][0] == 6 + 4 and found["clips"][1] == {"too short": 2}
    accepted, reasons = found["selected"]
    assert reasons["duplicate"] == 1 and reasons["static"] == 1 and accepted >= 5
    for line in ("unreadable 2", "duplicate 1"):
        assert line in printed
    table = Table(tmp_path / "out/tables", "videos", config.engine.parts)
    rejected = {row["path"].rsplit("/")[-1]: row for row in table.read(accepted=False).to_pylist()}
    assert set(rejected) == {"broken;rm -rf.mp4", "empty.webm", "small.mp4"}
    assert rejected["small.mp4"]["score"] == 90 and "cannot be opened" in rejected["empty.webm"]["detail"]
    turned = [row for row in table.read(accepted=True).to_pylist() if row["rotation"]]
    assert [(row["width"], row["height"]) for row in turned] == [(180, 320)]

    before = files(tmp_path / "out")
    again = curate("--input", films, "--output", tmp_path / "out")
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
    command = [sys.executable, "launchers/curate.py", "--output", str(tmp_path / "out"), *words]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and message in done.stderr


def test_stages_are_chosen_by_name_in_their_own_order():
    everything = stages("films", CURATION.load("default"))
    names = [stage.name for stage in everything]
    for stage in everything:
        assert all(names.index(name) < names.index(stage.name) for name in stage.inputs)
    assert [stage.name for stage in choose(everything, ["selected", "shots"])] == ["shots", "selected"]
    with pytest.raises(UserError, match="there is no stage 'x'"):
        choose(everything, ["x"])


def test_every_setting_has_its_meaning_and_a_name_of_its_own():
    names = [path.split(".")[1] for path in CURATION.fields]
    assert len(names) == len(set(names)) and all(len(doc) > 15 for doc in CURATION.fields.values())
