"""A checkpoint of any layout is the same run at any other, also through `tools/reshard_checkpoint.py`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.checkpoint.sharding import ModelParallelLayout
from phantom_mega.metrics import read_metrics
from tests.reliability.helpers import EXACT, SMALL_BUCKETS, start, unequal

REPOSITORY = Path(__file__).resolve().parents[2]
TP, PP = "parallel.tensor_model_parallel_size=", "parallel.pipeline_model_parallel_size="
CP = "parallel.context_parallel_size="
FOUR = {
    "dp4": [],
    "tp2_dp2": [f"{TP}2"],
    "pp2_dp2": [f"{PP}2"],
    "tp2_pp2": [f"{TP}2", f"{PP}2", "parallel.sequence_parallel=true"],
    "cp2_dp2": [f"{CP}2"],
}
TWO = {"tp2": [f"{TP}2"], "pp2": [f"{PP}2"], "dp2": [], "cp2": [f"{CP}2"]}
COMMON = [*SMALL_BUCKETS, "train.train_iters=6", "train.save_interval=3", "train.global_batch_size=4"]


def continuations(sources, targets):
    """Cases: every source's checkpoint of iteration 3 is saved again unchanged, then trained on, at another layout."""
    cases = []
    for source, target, overrides in ((s, t, o) for s in sources for t, o in targets.items() if s != t):
        load = [*COMMON, *overrides, f"train.load={sources[source]}/checkpoints/iter_0000003"]
        cases.append({"run": f"{source}_as_{target}", "overrides": load, "save_first": True})
    return cases


@pytest.fixture(scope="module")
def resharded(data_set, tmp_path_factory):
    """(folder, results, pairs (source, target)): layouts of four ranks, then of two, some from rewritten files."""
    folder = tmp_path_factory.mktemp("resharded")
    first = [{"run": name, "overrides": [*COMMON, *overrides]} for name, overrides in FOUR.items()]
    sources = {name: folder / name for name in FOUR}
    ring = dict(zip(FOUR, [*list(FOUR)[1:], "dp4"], strict=True))
    moves = [case for s, t in ring.items() for case in continuations({s: sources[s]}, {t: FOUR[t]})]
    results = start(folder, 4, data_set, [*first, *moves], timeout=900)
    fewer = continuations({name: sources[name] for name in ("dp4", "tp2_pp2")}, TWO)
    for name, options in {"rewritten": [], "model": ["--model-only", "--ema"]}.items():
        command = ["tools/reshard_checkpoint.py", folder / "tp2_pp2/checkpoints/iter_0000003", folder / f"{name}.files"]
        command += ["--tensor-model-parallel-size", "2", "--verify", *options]
        subprocess.run([sys.executable, *map(str, command)], cwd=REPOSITORY, check=True, capture_output=True)
        load = [*COMMON, *TWO["tp2"], f"train.load={folder / name}.files"]
        fewer += [{"run": name, "overrides": [*load, *(["train.finetune=true"] * bool(options))]}]
    results |= start(folder, 2, data_set, fewer, timeout=900)
    pairs = [*ring.items(), *((s, t) for s in ("dp4", "tp2_pp2") for t in TWO)]
    return folder, results, pairs


def test_every_layout_trains_on_the_same_numbers(resharded):
    folder, *_ = resharded
    one, *others = (read_metrics(folder / name) for name in FOUR)
    for other in others:
        np.testing.assert_allclose([m["loss"] for m in other], [m["loss"] for m in one], rtol=1e-5)
        for name in ("data_digest", "video_tokens", "visual_tokens", "bad_samples"):
            assert [m[name] for m in other] == [m[name] for m in one], name
        for mine, expected in zip(other, one, strict=True):
            assert mine["loss_per_timestep"] == pytest.approx(expected["loss_per_timestep"], rel=1e-4)


def test_a_checkpoint_read_at_another_layout_holds_the_same_tensors_to_the_bit(resharded):
    folder, results, pairs = resharded
    for source, target in pairs:
        saved = folder / f"{source}_as_{target}/checkpoints/iter_0000003"
        assert unequal(folder / source / "checkpoints/iter_0000003", saved) == [], (source, target)
    counts = {name: result["buckets"] for name, result in results.items()}
    assert min(counts.values()) >= 2, f"one bucket hides errors in offsets: {counts}"
    assert all(results[name]["padded"] >= 1 for name in ("dp4", "tp2_dp2", "dp4_as_dp2"))


def test_losses_go_on_within_1e_5_and_no_sample_is_repeated_or_lost_when_the_layout_changes(resharded):
    folder, _, pairs = resharded
    for source, target in pairs:
        whole = read_metrics(folder / source)
        after = read_metrics(folder / f"{source}_as_{target}")
        assert [m["iteration"] for m in after] == [4, 5, 6]
        assert [m["data_digest"] for m in after] == [m["data_digest"] for m in whole[3:]], (source, target)
        np.testing.assert_allclose([m["loss"] for m in after], [m["loss"] for m in whole[3:]], rtol=1e-5)


@pytest.mark.parametrize("name", FOUR)
def test_real_runs_cut_tensors_as_the_resharding_tool_does(resharded, name):
    folder, *_ = resharded
    sizes = {key: 2 if any(f"{key}_model" in word for word in FOUR[name]) else 1 for key in ("tensor", "pipeline")}
    layout = ModelParallelLayout(2, **sizes)
    reader = CheckpointReader(folder / name / "checkpoints/iter_0000003")
    assert len(reader.tensors) > 250
    for key, entry in reader.tensors.items():
        parts = {(part.offsets, part.sizes) for part in layout.parts(key, entry.shape)}
        assert {(chunk.offsets, chunk.sizes) for chunk in entry.chunks} == parts, key


def test_training_goes_on_from_rewritten_files_exactly_as_from_the_source(resharded):
    folder, results, _ = resharded
    assert results["rewritten"]["start"] == 3
    direct, rewritten = (read_metrics(folder / run) for run in ("tp2_pp2_as_tp2", "rewritten"))
    for name in EXACT:
        assert [m[name] for m in direct] == [m[name] for m in rewritten], name
    assert unequal(*(folder / run / "checkpoints/iter_0000006" for run in ("tp2_pp2_as_tp2", "rewritten"))) == []


def test_a_model_alone_starts_a_new_run_from_its_averaged_weights(resharded):
    folder, results, _ = resharded
    assert (results["model"]["start"], results["model"]["code"]) == (0, 0)
    assert [m["iteration"] for m in read_metrics(folder / "model")] == [1, 2, 3, 4, 5, 6]
    # The first loss is that of the average: close to, but not, the loss of the weights at that point.
    losses = [m["loss"] for m in read_metrics(folder / "model")]
    fresh = [m["loss"] for m in read_metrics(folder / "tp2_pp2")]
    assert losses[0] != fresh[0] and losses[0] < fresh[0]
