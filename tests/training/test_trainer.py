"""Whole runs of launchers/train.py: resume to the bit, layouts agree, signals, bad data, messages."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from phantom_mega.metrics import read_metrics
from tests.training.conftest import REPOSITORY, command, damage_first_clip, environment, train

GOLDEN = Path(__file__).with_name("golden_losses.txt")


def losses(run):
    return [m["loss"] for m in read_metrics(run)]


@pytest.fixture(scope="module")
def finished(data_set, tmp_path_factory):
    """An uninterrupted run of eight iterations."""
    run = tmp_path_factory.mktemp("finished")
    printed = train(data_set, run)
    return run, printed


def test_a_run_leaves_checkpoints_config_events_and_metrics(finished):
    run, printed = finished
    assert (run / "checkpoints/latest_checkpointed_iteration.txt").read_text() == "8"
    for name in ("iter_0000004", "iter_0000008"):
        saved = yaml.safe_load((run / "checkpoints" / name / "config.yaml").read_text())
        assert saved["train"]["train_iters"] == 8 and saved["model"]["hidden_size"] == 64
    assert list((run / "tensorboard").glob("events*")) and len(losses(run)) == 8
    assert "iteration        8/       8 | consumed samples:           16" in printed
    assert [p.name for p in (run / "checkpoints").iterdir() if p.name.startswith(".")] == []


def test_losses_are_the_golden_ones(finished):
    golden = [float(line) for line in GOLDEN.read_text().split()]
    np.testing.assert_allclose(losses(finished[0]), golden, rtol=2e-4)


def test_a_finished_run_has_nothing_to_do(finished, data_set):
    assert "nothing to do: 8 of 8 iterations" in train(data_set, finished[0])
    assert len(losses(finished[0])) == 8


def test_sigterm_saves_and_exits_and_the_next_start_goes_on(finished, data_set, tmp_path):
    process = subprocess.Popen(
        command(data_set, tmp_path, "train.save_interval=1000"), env=environment(), stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 75 and "received SIGTERM" in printed, printed
    train(data_set, tmp_path)
    assert losses(tmp_path) == losses(finished[0])


def test_a_signal_from_the_first_file_of_the_run_on_is_no_kill(data_set, tmp_path):
    code = (
        "import os, runpy, signal\n"
        "from phantom_mega.training.source import BatchSource\n"
        "was = BatchSource.open\n"
        "BatchSource.open = lambda self, at: (os.kill(os.getpid(), signal.SIGTERM), was(self, at))\n"
        "runpy.run_path('launchers/train.py', run_name='__main__')"
    )
    words = command(data_set, tmp_path)[2:]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=REPOSITORY, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 75, done.stdout + done.stderr
    assert "stopped at iteration 1: received SIGTERM" in done.stdout


def test_finetune_takes_the_weights_and_starts_anew(finished, data_set, tmp_path):
    overrides = [f"train.load={finished[0]}", "train.finetune=true", "train.train_iters=3", "optimizer.lr=2e-4"]
    printed = train(data_set, tmp_path, *overrides)
    assert "weights and EMA only" in printed
    metrics = read_metrics(tmp_path)
    assert [m["iteration"] for m in metrics] == [1, 2, 3] and metrics[0]["consumed_samples"] == 2
    assert metrics[0]["loss"] < losses(finished[0])[0]


def test_a_checkpoint_of_another_model_is_refused_by_field(finished, data_set, tmp_path):
    printed = train(data_set, tmp_path, f"train.load={finished[0]}", "model.num_layers=4", code=2)
    assert "holds another model: model.num_layers: 2 saved, 4 asked for" in printed and "Traceback" not in printed


def test_unreadable_samples_are_named_counted_and_move_no_other(finished, data_set, tmp_path):
    broken = damage_first_clip(data_set, tmp_path / "broken")
    printed = train(broken, tmp_path / "run")
    metrics = read_metrics(tmp_path / "run")
    assert "bad sample, skipped" in printed and "sample clip_0" in printed
    assert metrics[-1]["bad_samples"] > 0 and metrics[-1]["iteration"] == 8
    whole = read_metrics(finished[0])
    assert metrics[0]["visual_tokens"] == whole[0]["visual_tokens"], "a bad sample keeps its place in the pack"
    assert metrics[0]["video_tokens"] < whole[0]["video_tokens"], "a bad sample has no loss"
    printed = train(broken, tmp_path / "stops", "data.max_bad_samples=0", code=2)
    assert "more than data.max_bad_samples=0" in printed


def test_dry_run_prints_the_plan_and_writes_nothing(data_set, valid_set, tmp_path):
    held_out = f"data.valid_index_path=[{valid_set}]"
    printed = train(data_set, tmp_path / "run", "--dry-run", "precision.bf16=true", "--fp8", "hybrid", held_out)
    assert "evaluation   every 100 iterations: loss on 5 held-out samples in " in printed
    assert "2 sample videos (" in printed and "by ema weights, on rank 0, which hold" in printed
    assert "there is no GPU: precision.bf16 is set to false and precision.fp8 to null\n" in printed
    assert "linears      megatron-core, fp32\n" in printed and "optimizer    torch AdamW\n" in printed
    assert "1 ranks = TP 1 x CP 1 x PP 1 x DP 1\n" in printed
    assert "first batch  loss" in printed and "peak memory" in printed and "filled to" in printed
    assert "planned      for one h100" in printed and "workspace" in printed and "seconds of an iteration" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.load=/nowhere"], "holds no checkpoint"),
        (["model.text_dim=128"], "model.text_dim is 128, but .* gives 384"),
        (["--tensor-model-parallel-size", "2"], "start a multiple of 2"),
        (["optimizer.lr_decay_style=linear"], "use constant or cosine"),
        (["precision.bf16=true", "--fp8", "hybrid", "data.seq_length=440"], "data.seq_length=440: .*; use 448"),
    ],
)
def test_mistakes_end_with_one_message_and_no_traceback(data_set, overrides, message):
    import re

    printed = train(data_set, None, *overrides, code=2)
    assert re.search(message, printed) and "Traceback" not in printed
