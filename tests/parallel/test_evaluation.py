"""Evaluation at every kind of layout against one process: one start of two ranks for all of them, one of one rank."""

import json

import av
import numpy as np
import pytest

from phantom_mega.metrics import read_evaluations, read_metrics
from tests.parallel.launch import launch
from tests.training.conftest import data_set, valid_set  # noqa: F401

COMMON = [
    *("model.num_layers=4", "train.train_iters=2", "optimizer.lr_warmup_iters=0", "train.ema_decay=0.9"),
    *("train.eval_interval=1", "train.eval_iters=3", "train.eval_timesteps=[0.2,0.8]", "data.seq_length=224"),
    *("train.eval_videos=2", "train.eval_video_steps=2", "parallel.distributed_timeout_minutes=2"),
    *("train.global_batch_size=4", "optimizer.lr=1e-4"),
]
TP, PP = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
OVERLAP = [
    *("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true", "parallel.ddp_bucket_size=5000"),
]
LAYOUTS = {
    # Under full recompute layers are called otherwise while gradients are kept.
    "tp2": [TP, "parallel.sequence_parallel=true", "parallel.recompute_granularity=full"],
    "pp2": [PP],
    "pp2_interleaved": [PP, "parallel.virtual_pipeline_model_parallel_size=2"],
    "dp2": OVERLAP,
    "cp2": ["parallel.context_parallel_size=2"],
}


@pytest.fixture(scope="module")
def runs(data_set, valid_set, tmp_path_factory):  # noqa: F811
    """(folder, results): `one` of one process, and every layout."""
    folder, results = tmp_path_factory.mktemp("evaluation"), {}
    paths = [f"data.index_path=[{data_set}]", f"data.valid_index_path=[{valid_set}]"]
    for ranks, layouts in ((1, {"one": []}), (2, LAYOUTS)):
        cases = [{"run": name, "overrides": [*paths, *COMMON, *words]} for name, words in layouts.items()]
        (folder / "cases.json").write_text(json.dumps(cases))
        launch("tests.parallel.evaluation_worker", ranks, folder, str(folder / "cases.json"), timeout=400)
        results |= json.loads((folder / "results.json").read_text())
    return folder, results


def frames_of(run, iteration):
    found = {}
    for path in sorted((run / f"samples/iter_{iteration:07d}").glob("*.mp4")):
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        found[path.stem] = np.stack(frames).astype(int)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_held_out_loss_is_that_of_one_process(runs, layout):
    folder, results = runs
    assert results[layout]["code"] == 0
    one, other = (read_evaluations(folder / name) for name in ("one", layout))
    assert [found["iteration"] for found in other] == [1, 2]
    for expected, found in zip(one, other, strict=True):
        assert found["video_tokens"] == expected["video_tokens"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["loss_per_timestep"] == pytest.approx(expected["loss_per_timestep"], rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_goes_on_as_in_one_process(runs, layout):
    folder, _ = runs
    one, other = ([step["loss"] for step in read_metrics(folder / name)] for name in ("one", layout))
    assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_averages_are_put_together_bit_equal(runs, layout):
    assert runs[1][layout]["averages_equal"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sample_videos_are_those_of_one_process_and_shared_out_over_ranks(runs, layout):
    folder, results = runs
    assert results[layout]["ranks"] == [0, 1] and results["one"]["ranks"] == [0]
    one, other = (frames_of(folder / name, 2) for name in ("one", layout))
    assert one.keys() == other.keys() and len(one) == 2
    for name in one:
        assert np.abs(one[name] - other[name]).mean() < 0.5, name
    expected, found = (read_evaluations(folder / name)[1] for name in ("one", layout))
    assert found["s2v"] == pytest.approx(expected["s2v"], rel=1e-3)
    assert [video["id"] for video in found["videos"]] == [video["id"] for video in expected["videos"]]


def test_a_rank_is_filled_up_with_packs_that_do_not_count(runs):
    """Three packs: with two data-parallel ranks, and in groups of two stages, a fourth one is passed along."""
    _, results = runs
    assert {name: result["packs"] for name, result in results.items()} == {
        "one": [3, 3], "tp2": [3, 3], "pp2": [3, 3], "pp2_interleaved": [3, 4], "dp2": [3, 2], "cp2": [3, 3]
    }  # fmt: skip
