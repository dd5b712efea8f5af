"""`launchers/evaluate.py` as a user starts it: whole, again, killed, on several processes, and with mistakes."""

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from phantom_mega.errors import UserError
from phantom_mega.evaluation import run as measuring
from phantom_mega.evaluation.config import load_config
from phantom_mega.evaluation.metric import Measured
from phantom_mega.evaluation.records import Record, RecordWriter, digest, read_records
from phantom_mega.evaluation.videos import find_videos, name_methods
from phantom_mega.generation.cases import read_cases
from tests.evaluation.videos import write_cases, write_video, write_videos
from tests.training.conftest import REPOSITORY, environment

LAUNCHER = str(REPOSITORY / "launchers/evaluate.py")
TINY = ["--config", "tiny", "evaluation.resamples=99"]


@pytest.fixture(scope="module")
def launcher():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("evaluate", LAUNCHER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def start(launcher, monkeypatch, capsys):
    """Run the launcher's `main` with words; returns (exit code, what it printed)."""

    def started(*words):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
        code = launcher.main()
        return code, capsys.readouterr().out

    return started


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return write_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("originals") / "steady")


@pytest.fixture
def videos(originals, tmp_path):
    return shutil.copytree(originals, tmp_path / "steady")


def results(output):
    """`results.json` without what names folders."""
    raw = json.loads((output / "results.json").read_text())
    for method in raw["methods"].values():
        method.pop("folder")
    return raw


def lines(output, folder="measured"):
    return [line for path in (output / folder).glob("*.jsonl") for line in path.read_text().splitlines()]


def test_a_folder_gets_its_tables_report_and_values_and_a_second_run_measures_nothing(start, cases, videos):
    code, printed = start("--videos", videos, "--cases", cases, *TINY)
    output = videos / "evaluation"
    assert code == 0 and "8 value(s) for this process, 0 of them done before" in printed
    assert sorted(path.name for path in output.iterdir()) == [
        "grid.png", "measured", "per_case.csv", "report.html", "results.json", "table.md",
    ]  # fmt: skip
    made = results(output)
    found = made["methods"]["steady"]
    rows = list(csv.DictReader((output / "per_case.csv").open()))
    assert [row["case"] for row in rows] == [f"singleobj_{i}" for i in range(4)]
    values = [float(row["temporal_flickering"]) for row in rows]
    mean = found["summary"]["all"]["temporal_flickering"]["mean"]
    assert mean == pytest.approx(sum(values) / 4, abs=1e-5) and 0.5 < mean < 1
    assert found["summary"]["all"]["copy_paste"]["subjects"] == 2  # four cases of two references
    assert f"| steady | {mean:.3f} [" in (output / "table.md").read_text()
    code, printed = start("--videos", videos, "--cases", cases, *TINY)
    assert "8 value(s) for this process, 8 of them done before" in printed
    assert results(output) == made and len(lines(output)) == 8


def test_what_changed_is_measured_again_and_nothing_else(start, cases, videos, tmp_path):
    words = ["--videos", videos, "--cases", cases, *TINY, "--output", tmp_path / "out"]
    start(*words)
    before = results(tmp_path / "out")["methods"]["steady"]["cases"]
    write_video(videos / "singleobj_2.mp4", 2, noise=60)
    _, printed = start(*words)
    assert "8 value(s) for this process, 6 of them done before" in printed
    after = results(tmp_path / "out")["methods"]["steady"]["cases"]
    assert after.pop("singleobj_2") != before.pop("singleobj_2") and after == before


def test_a_missing_and_a_broken_video_count_as_the_worst_and_are_named_as_extra_ones_are(start, cases, videos):
    (videos / "singleobj_0.mp4").unlink()
    (videos / "singleobj_1.mp4").write_bytes(b"no video at all")
    (videos / "leftover.webm").write_bytes(b"")
    code, printed = start("--videos", videos, "--cases", cases, *TINY)
    assert code == 1 and "no video of singleobj_0 (1 video)" in printed and "leftover.webm" in printed
    found = results(videos / "evaluation")["methods"]["steady"]
    assert found["missing_videos"] == ["singleobj_0"] and found["extra_videos"] == ["leftover.webm"]
    for id, reason in (("singleobj_0", "there is no video"), ("singleobj_1", "cannot be opened")):
        values = found["cases"][id]
        assert (values["temporal_flickering"]["value"], values["copy_paste"]["value"]) == (0, 1)
        assert all(reason in value["missing"] and value["applies"] for value in values.values())
    summary = found["summary"]["all"]["temporal_flickering"]
    whole = [found["cases"][f"singleobj_{i}"]["temporal_flickering"]["value"] for i in (2, 3)]
    assert (summary["videos"], summary["missing"]) == (4, 2)
    assert summary["mean_of_videos"] == pytest.approx(sum(whole) / 4)


@pytest.mark.slow
def test_killed_in_the_middle_and_on_two_workers_the_results_are_those_of_one_whole_run(start, tmp_path):
    cases = write_cases(tmp_path, 8)
    videos = write_videos(tmp_path / "steady", 8)
    words = ["--videos", videos, "--cases", cases, *TINY]
    start(*words, "--output", tmp_path / "whole")
    output = tmp_path / "killed"
    command = [sys.executable, LAUNCHER, *map(str, words), "--output", str(output)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path, deadline = output / "measured/copy_paste.0.jsonl", time.monotonic() + 240
    while not (path.is_file() and b"\n" in path.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(lines(output))
    assert 8 < done < 16 and not (output / "results.json").exists()
    with path.open("ab") as file:
        file.write(b'{"digest": "torn')
    code, printed = start(*words, "--output", output, "--workers", 2)
    assert code == 0 and f"16 value(s) for this process, {done} of them done before" in printed
    assert {p.name for p in (output / "measured").iterdir()} >= {"copy_paste.0.jsonl", "copy_paste.1.jsonl"}
    assert results(output) == results(tmp_path / "whole")
    assert len({json.dumps(line) for line in lines(output)}) == 17


def test_processes_of_torchrun_take_turns_and_the_last_one_reports(start, cases, videos, tmp_path, monkeypatch):
    words = ["--videos", videos, "--cases", cases, *TINY, "--output", tmp_path / "ranks"]
    for rank in (1, 0):
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, str(value))
        _, printed = start(*words)
        assert ("the last one writes the report" in printed) == (rank == 1)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    start(*words[:-1], tmp_path / "alone")
    assert results(tmp_path / "ranks") == results(tmp_path / "alone")


def test_all_models_that_lack_are_named_at_once_before_anything_is_measured(start, cases, videos, tmp_path):
    words = ["--videos", videos, "--cases", cases, *TINY, "--output", tmp_path / "out"]
    words += ["--metrics", "viclip_t,imaging_quality,temporal_flickering", f"dino_i.model={tmp_path}/none"]
    with pytest.raises(UserError) as caught:
        start(*words)
    message = str(caught.value)
    assert "2 of 3 metrics cannot be measured" in message and "--metrics temporal_flickering" in message
    assert "viclip_t: viclip_t.weights='': no such file" in message and "imaging_quality.weights is not set" in message
    assert not lines(tmp_path / "out")
    code, printed = start(*words, "--skip-missing")
    made = results(tmp_path / "out")
    assert code == 0 and list(made["metrics"]) == ["temporal_flickering"]
    assert list(made["skipped"]) == ["viclip_t", "imaging_quality"] and "ViCLIP-T was left out: " in printed
    with pytest.raises(UserError, match="1 of 1 metrics"):
        start("--videos", videos, "--cases", cases, "--metrics", "viclip_t", "--skip-missing")


@pytest.mark.parametrize(("words", "message"), [
    (["--videos", "nowhere"], "--videos nowhere: there is no such folder"),
    (["--videos", "empty"], "a video of none of the 4 cases, as singleobj_0.mp4 would be; it holds no video at all"),
    (["--videos", "empty", "steady"], "--output is needed"),
    (["--videos", "steady", "steady", "--output", "o"], "names a folder twice"),
    (["--videos", "steady", "--workers", "0"], "--workers 0; it must be at least 1"),
    (["--videos", "steady", "--metrics", "clipi"], "there is no metric 'clipi'; did you mean clip_i"),
    (["--videos", "steady", "--split", "Open"], "has no split 'Open'"),
    (["--videos", "steady", "--opens2v", "empty"], "empty holds no result of OpenS2V-Eval"),
    (["--videos", "steady", "--names", "a", "b"], "--names needs 1 different names"),
    (["--videos", "steady", "copy_paste.x=1"], "unknown field copy_paste.x"),
])  # fmt: skip
def test_mistakes_are_told_before_anything_is_measured(start, cases, videos, tmp_path, monkeypatch, words, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        start("--cases", cases, *TINY, *words)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_reference_that_cannot_be_read_names_its_case(start, videos, tmp_path):
    cases = write_cases(tmp_path / "own")
    (tmp_path / "own/1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"case singleobj_2: reference image 1 .*1\.png.* cannot be used"):
        start("--videos", videos, "--cases", cases, *TINY)


def test_two_videos_of_a_case_are_refused_and_folders_of_one_name_told_apart(cases, videos, tmp_path):
    shutil.copy(videos / "singleobj_0.mp4", videos / "singleobj_0.webm")
    with pytest.raises(UserError, match=r"two videos of case singleobj_0: singleobj_0.mp4 and singleobj_0.webm"):
        find_videos(videos, read_cases(cases))
    assert name_methods([tmp_path / "a/videos", tmp_path / "b/videos"]) == ["a/videos", "b/videos"]


def test_a_metric_that_fails_on_a_video_is_recorded_tried_again_and_never_counts_as_measured(
    cases, videos, tmp_path, monkeypatch
):
    config = load_config("tiny", ["evaluation.metrics=[temporal_flickering]"])
    listed = read_cases(cases)
    tasks = measuring.plan([find_videos(videos, listed)], listed, config)
    from phantom_mega.evaluation.temporal_flickering import TemporalFlickering

    measure = TemporalFlickering.measure

    def fails(self, item):
        if item.id == "singleobj_1":
            raise RuntimeError("out of memory")
        return Measured(float("nan")) if item.id == "singleobj_3" else measure(self, item)

    with monkeypatch.context() as patched:
        patched.setattr(TemporalFlickering, "measure", fails)
        measuring.measure_on_workers(tasks, config, ["cpu"], tmp_path / "out")
    records = read_records(tmp_path / "out")
    failed = {record.case: record.failed for record in records["temporal_flickering"].values() if record.failed}
    assert failed["singleobj_1"] == "RuntimeError: out of memory" and "the value is nan" in failed["singleobj_3"]
    again = measuring.left(tasks, records)
    assert [task.case.id for task in again] == ["singleobj_1", "singleobj_3"]
    measuring.measure_on_workers(again, config, ["cpu"], tmp_path / "out")
    assert measuring.left(tasks, read_records(tmp_path / "out")) == []


def test_equal_videos_of_two_folders_are_measured_once(cases, videos, tmp_path):
    shutil.copytree(videos, tmp_path / "copy")
    listed, config = read_cases(cases), load_config("tiny", [])
    methods = [find_videos(folder, listed) for folder in (videos, tmp_path / "copy")]
    tasks = measuring.plan(methods, listed, config)
    assert len(tasks) == 8 and sum(len(task.digests) for task in measuring.left(tasks, read_records(tmp_path))) == 8


def test_a_digest_depends_on_settings_video_and_case():
    one, other = (load_config("tiny", [f"clip_i.frames={n}"]).clip_i for n in (5, 6))
    keys = {digest("clip_i", one, "v", "c"), digest("clip_i", other, "v", "c"), digest("clip_i", one, "w", "c"),
            digest("clip_i", one, "v", "d"), digest("dino_i", one, "v", "c")}  # fmt: skip
    assert len(keys) == 5 and digest("clip_i", one, "v", "c") in keys


@pytest.mark.parametrize("torn", [b'{"digest": "a", "case": "x", "va', b"[1]\n", b"\xff\xfe\n", b'{"digest": "a"}\n'])
def test_damaged_lines_are_passed_over_and_the_next_one_stands_alone(tmp_path, torn):
    (tmp_path / "clip_i.0.jsonl").write_bytes(torn)
    writer = RecordWriter(tmp_path, 0)
    writer.write("clip_i", Record("b", "x", Measured(0.5, "no “face”", {"reference_1": 0.5})))
    writer.write("clip_i", Record("c", "x", None, "it failed"))
    found = read_records(tmp_path)["clip_i"]
    assert set(found) == {"b", "c"} and found["b"].measured == Measured(0.5, "no “face”", {"reference_1": 0.5})
    writer.write("clip_i", Record("c", "x", Measured(1.0)))
    writer.write("clip_i", Record("c", "x", None, "it failed"))
    assert read_records(tmp_path)["clip_i"]["c"].measured == Measured(1.0)


@pytest.mark.slow
def test_a_worker_that_dies_is_told_and_what_was_measured_is_kept(cases, videos, tmp_path):
    listed, config = read_cases(cases), load_config("tiny", ["evaluation.metrics=[temporal_flickering]"])
    tasks = measuring.plan([find_videos(videos, listed)], listed, config)
    os.mkfifo(tmp_path / "pipe")  # the second worker waits for a video that never comes
    tasks[1] = measuring.Task(tasks[1].case, tmp_path / "pipe", tasks[1].digests)
    output = tmp_path / "out"

    def kill_the_waiting_worker():
        while not output.is_dir() or len(lines(tmp_path, "out")) < 2:
            time.sleep(0.05)
        workers = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
        max(workers, key=lambda worker: worker.pid).kill()

    thread = threading.Thread(target=kill_the_waiting_worker, daemon=True)
    thread.start()
    with pytest.raises(measuring.WorkerError, match=r"worker \d died \(signal 9\); the same command goes on"):
        measuring.measure_on_workers(tasks, config, ["cpu", "cpu"], output)
    assert len(read_records(output)["temporal_flickering"]) == 2
