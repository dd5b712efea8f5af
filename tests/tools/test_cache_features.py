"""tools/cache_features.py as a command: what it prints and returns, how processes share, what an interruption loses."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from phantom_mega.conditioning import cache as cache_module
from phantom_mega.conditioning.cache import CachedFeatures, scan
from phantom_mega.config_io import load_run_config
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.plan import PackPlan
from tests.media import write_data_set

SCRIPT = Path(__file__).parents[2] / "tools" / "cache_features.py"
SAMPLES = 6


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    """Settings beside the tiny recipe: a data set of six samples, small packs."""
    folder = write_data_set(tmp_path_factory.mktemp("data"), SAMPLES, frames=12, size=(48, 80))
    return [
        f"data.index_path=[{folder}]", "data.seq_length=160", "data.decoder=pyav", "data.augment_per_epoch=false",
        "data.resolutions={64p: {frames: [1, 5]}, 96p: {frames: [1, 5]}}", "train.seed=3",
    ]  # fmt: skip


@pytest.fixture
def tool(monkeypatch):
    """Runs the command in this process: (exit code)."""
    spec = importlib.util.spec_from_file_location("cache_features", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments, **environment):
        monkeypatch.setattr(sys, "argv", ["cache_features.py", *map(str, arguments)])
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        return module.main()

    run.module = module
    yield run
    signal.signal(signal.SIGTERM, before)


def check_complete(folder, overrides):
    """The cache opens with the recipe and holds its plan."""
    config = load_run_config("tiny_stage1", overrides)
    cache = CachedFeatures(folder, config)
    plan = PackPlan(TripletIndex.open(config.data.index_path), config.data, config.model,
                    config.conditioning.clip_tokens, config.train.seed, len(cache.empty_text))  # fmt: skip
    cache.check_plan(plan)
    samples = [sample for pack in plan.packs(0) for sample in pack]
    assert len(plan) > 1 and len(samples) == len(cache) == SAMPLES
    assert all(cache.get(sample).valid for sample in samples)


def test_help_shows_examples_and_recipes(tool, capsys):
    with pytest.raises(SystemExit) as left:
        tool("--help")
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "torchrun --nproc-per-node" in shown and "tiny_stage1" in shown and "conditioning.cached_features=" in shown


def run_rank(rank, run, arguments):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")  # as torchrun does
    torch.set_num_threads(1)
    sys.exit(run(*arguments))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_processes_at_the_same_time_fill_a_cache_that_training_can_open(tool, overrides, tmp_path):
    # Forked: they share this process's slow imports, and so really run at the same time.
    arguments = ("--config", "tiny_stage1", "--output", tmp_path / "cache", *overrides)
    ranks = [mp.get_context("fork").Process(target=run_rank, args=(rank, tool, arguments)) for rank in range(2)]
    try:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
        assert [process.exitcode for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    check_complete(tmp_path / "cache", overrides)
    assert not list((tmp_path / "cache").glob(".*"))


def test_ranks_take_disjoint_parts_and_a_second_run_does_nothing(tool, overrides, tmp_path, capsys):
    arguments = ("--config", "tiny_stage1", "--output", tmp_path, *overrides)
    assert tool(*arguments, RANK=1, WORLD_SIZE=2) == 0
    first = capsys.readouterr().out
    assert "still with other processes" in first
    assert tool(*arguments, RANK=0, WORLD_SIZE=2) == 0
    second = capsys.readouterr().out
    counts = [int(report.split()[1]) for report in (first, second)]
    assert sum(counts) == SAMPLES and min(counts) > 0
    check_complete(tmp_path, overrides)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("features-*")}
    assert tool(*arguments, "--part", 0, "--parts", 1) == 0
    assert capsys.readouterr().out.startswith("encoded 0 samples")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("features-*")} == files


def test_a_terminated_process_keeps_what_it_encoded(tool, overrides, tmp_path, monkeypatch, capsys):
    add, added = cache_module.FeatureWriter.add, []

    def add_then_terminate(writer, sample, features, error=None):
        add(writer, sample, features, error)
        added.append(sample.key)
        if len(added) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    arguments = ("--config", "tiny_stage1", "--output", tmp_path, *overrides)
    with monkeypatch.context() as patched:
        patched.setattr(cache_module.FeatureWriter, "add", add_then_terminate)
        with pytest.raises(SystemExit) as left:
            tool(*arguments)
    assert left.value.code == 128 + signal.SIGTERM
    kept = scan(tmp_path)[0]
    assert {name.rpartition(".")[0] for name in kept} == set(added) and 2 <= len(kept) < SAMPLES
    assert not (tmp_path / "index.parquet").exists()
    assert tool(*arguments) == 0
    assert capsys.readouterr().out.startswith(f"encoded {SAMPLES - len(kept)} samples")
    check_complete(tmp_path, overrides)


@pytest.mark.parametrize(
    "changes, message",
    [
        (["--part", "2", "--parts", "2"], "--part 2 is not one of 0 to 1"),
        (["train.sed=1"], "did you mean train.seed"),
        (["data.index_path=[/no/such/set]"], "/no/such/set"),
        (["conditioning.text_encoder=/no/such/encoder"], "/no/such/encoder"),
    ],
)
def test_errors_are_one_line_and_write_nothing(tool, overrides, tmp_path, capsys, changes, message):
    assert tool("--config", "tiny_stage1", "--output", tmp_path / "cache", *overrides, *changes) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and message in shown and len(shown.splitlines()) == 1
    assert not list(tmp_path.glob("cache/features-*"))


def test_a_cache_of_other_encoders_is_not_added_to(tool, overrides, tmp_path, monkeypatch, capsys):
    arguments = ("--config", "tiny_stage1", "--output", tmp_path, *overrides)
    assert tool(*arguments) == 0
    files = set(tmp_path.iterdir())
    capsys.readouterr()
    monkeypatch.setattr(cache_module, "TINY_SEED", 1)  # as if another release drew the tower's weights
    assert tool(*arguments) == 2
    assert "come from other encoders: the tiny vision tower was" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == files


def test_what_draws_anew_in_each_epoch_is_written_as_drawn_in_the_first(tool, overrides, tmp_path):
    changed = [word.replace("augment_per_epoch=false", "augment_per_epoch=true") for word in overrides]
    assert tool("--config", "tiny_stage1", "--output", tmp_path, *changed) == 0
    check_complete(tmp_path, overrides)
    assert torch.isfinite(CachedFeatures(tmp_path, load_run_config("tiny_stage1", overrides)).empty_text).all()
