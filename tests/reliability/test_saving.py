"""A checkpoint is whole or absent, whatever happens to the run, the files or the disk."""

import filecmp
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from phantom_mega.checkpoint import folder as names
from phantom_mega.checkpoint import integrity
from phantom_mega.errors import UserError
from phantom_mega.metrics import read_metrics
from phantom_mega.training.checkpoint import choose_checkpoint
from tests.reliability.saver_server import Run, wrong_values
from tests.training.conftest import train

REPOSITORY = Path(__file__).resolve().parents[2]
KILLS = 12  # every moment of a kill, with and without the writers, of both kinds of savers


def saved(folder):
    return [names.iteration_of(path) for path in names.list_checkpoints(names.checkpoint_root(folder))]


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_latest_naming_a_complete_checkpoint(tmp_path):
    """SIGKILL to sync and async savers in turn, to the run alone and to its writers too."""
    command = [sys.executable, "-m", "tests.reliability.saver_server", str(tmp_path / "run"), str(KILLS), "7"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400)
    trials = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    log = (tmp_path / "run/child.log").read_text()
    assert len(trials) == KILLS, done.stderr[-2000:] + log[-2000:]
    assert all(trial["killed"] for trial in trials), log[-2000:]
    assert [trial for trial in trials if trial["problems"]] == []
    left = Counter(name for trial in trials for name in trial["left"])
    print(f"{KILLS} kills; hidden folders left: {dict(left)}; last checkpoint {trials[-1]['latest']}")
    assert left["saving"] >= KILLS // 3, "the kills must come in the middle of saves"
    assert trials[-1]["latest"] >= 10 * KILLS // 3, "the run goes on between kills"


@pytest.mark.parametrize("background", [False, True])
def test_a_save_is_published_whole_holds_the_moment_of_the_call_and_can_be_read_back(single_rank, tmp_path, background):
    run = Run(tmp_path, async_save=background)
    run.save(10)
    run.fill(-1.0)  # training goes on while the files are written
    if background:
        assert run.saver._queue.get_num_unfinalized_calls() == 1 and names.find_root(tmp_path) is None
    run.saver.wait()
    checkpoint = names.find_checkpoint(tmp_path)
    assert names.iteration_of(checkpoint) == 10 and wrong_values(checkpoint) == []
    assert integrity.verify(checkpoint) == []
    assert run.load(checkpoint)["consumed_samples"] == 10
    assert float(next(run.chunks[0].parameters()).detach().flatten()[0]) == 10.0
    assert [path.name for path in names.checkpoint_root(tmp_path).glob(".*")] == []


def test_async_and_sync_saves_are_equal_byte_for_byte(single_rank, tmp_path):
    for name, background in (("sync", False), ("async", True)):
        run = Run(tmp_path / name, async_save=background)
        run.save(10)
        run.saver.wait()
    one, two = (names.find_checkpoint(tmp_path / name) for name in ("sync", "async"))
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in two.iterdir()) and ".metadata" in files
    differing = filecmp.cmpfiles(one, two, files, shallow=False)[1]
    # The recorded settings differ in the one that is compared, and so does that file's digest.
    assert differing == ["config.yaml", "integrity.json"]


@pytest.fixture
def three(single_rank, tmp_path):
    """(run, folder) with checkpoints of iterations 10, 20, 30."""
    run = Run(tmp_path / "run")
    for iteration in (10, 20, 30):
        run.save(iteration)
    return run, tmp_path / "run"


def test_every_flipped_byte_is_found_and_the_file_is_named(three):
    checkpoint, rng = names.find_checkpoint(three[1]), random.Random(3)
    flips = 0
    for path in sorted(checkpoint.iterdir()):
        data = path.read_bytes()
        for _ in range(20):
            place, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
            path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
            problems = integrity.verify(checkpoint)
            # A flip in the manifest looks like a change of the file whose digest it hit.
            assert problems and (path.name == "integrity.json" or path.name in problems[0]), (path.name, place, bit)
            flips += 1
        path.write_bytes(data)
    assert integrity.verify(checkpoint) == [] and flips >= 100
    print(f"{flips} flips found")


DAMAGE = {
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "trainer_state.json", "integrity.json"])
def test_a_damaged_checkpoint_is_named_and_the_newest_good_one_is_taken(three, kind, name):
    run, folder = three
    lines = []
    DAMAGE[kind](names.find_checkpoint(folder) / name)
    good = choose_checkpoint(folder, hashes=True, own=True, say=lines.append)
    assert names.iteration_of(good) == 20 and "iter_0000030 is damaged" in lines[0] and name in lines[0]
    # The next start takes it at once, and the damaged one is kept for inspection, under another name.
    assert names.find_checkpoint(folder) == good and saved(folder) == [10, 20]
    assert (names.checkpoint_root(folder) / ".iter_0000030.damaged").is_dir()
    run.load(good)
    run.save(30)
    assert names.iteration_of(names.find_checkpoint(folder)) == 30


def test_with_no_good_checkpoint_left_the_run_refuses_instead_of_starting_anew(three):
    folder = three[1]
    for path in names.list_checkpoints(names.checkpoint_root(folder)):
        (path / ".metadata").unlink()
    with pytest.raises(UserError, match=r"no good checkpoint \(iter_0000030: .metadata is missing; iter_0000020"):
        choose_checkpoint(folder, hashes=True, own=True)
    assert names.find_checkpoint(folder), "nothing is moved when nothing is good"


def test_a_checkpoint_of_another_run_falls_back_but_is_not_touched(three):
    folder = three[1]
    (names.find_checkpoint(folder) / ".metadata").unlink()
    assert names.iteration_of(choose_checkpoint(folder, hashes=True, own=False)) == 20
    assert names.iteration_of(names.find_checkpoint(folder)) == 30
    with pytest.raises(UserError, match="no good checkpoint"):  # who names one wants that one
        choose_checkpoint(names.find_checkpoint(folder), hashes=True, own=False)


def test_retention_keeps_the_newest_and_every_mth_for_good(single_rank, tmp_path):
    run = Run(tmp_path, most_recent_k=2, save_retain_interval=40)
    for iteration in range(10, 120, 10):
        run.save(iteration)
    assert saved(tmp_path) == [40, 80, 100, 110]
    assert not list(names.checkpoint_root(tmp_path).glob(".iter*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_one_clear_error_and_older_checkpoints_stay(single_rank, small_disk, background):
    run = Run(small_disk, async_save=background)
    with pytest.raises(UserError, match=r"iter_\d+ could not be written .* the disk is full") as error:
        for iteration in range(10, 200, 10):
            run.save(iteration)
        run.saver.wait()
    assert "older checkpoints are untouched" in str(error.value) and "\n" not in str(error.value)
    kept = names.list_checkpoints(names.checkpoint_root(small_disk))
    assert len(kept) >= 2 and all(integrity.verify(path) == [] and wrong_values(path) == [] for path in kept)
    assert names.find_checkpoint(small_disk) == kept[-1]
    assert not list(names.checkpoint_root(small_disk).glob(".iter*")), "the part is removed, so that there is room"
    # With room again, the same process can go on.
    for path in kept[:-1]:
        shutil.rmtree(path)
    run.save(500)
    run.saver.wait()
    assert names.iteration_of(names.find_checkpoint(small_disk)) == 500


def test_a_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(data_set, tmp_path):
    train(data_set, tmp_path)  # eight iterations, saved at 4 and 8
    losses = [m["loss"] for m in read_metrics(tmp_path)]
    (names.find_checkpoint(tmp_path) / "__0_0.distcp").write_bytes(b"not a checkpoint")
    printed = train(data_set, tmp_path)
    assert "iter_0000008 is damaged: __0_0.distcp has 16 bytes" in printed and "iter_0000004" in printed
    assert [m["loss"] for m in read_metrics(tmp_path)] == losses
    assert saved(tmp_path) == [4, 8]
