"""A run that was stopped and resumed is, to the bit, the run that was not."""

import signal

import pytest
import torch

from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.metrics import read_metrics
from tests.reliability.helpers import EXACT, SMALL_BUCKETS, start, unequal

LAYOUTS = {
    "tp1": (1, []),
    "tp2_sp": (2, ["parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"]),
    "pp2": (2, ["parallel.pipeline_model_parallel_size=2"]),
    "dp2": (2, SMALL_BUCKETS),
}
STEPS = ["train.train_iters=8", "train.save_interval=8"]


@pytest.fixture(scope="module", params=LAYOUTS)
def stopped(request, data_set, tmp_path_factory):
    """(folder, results): one uninterrupted run and three stopped ones, each resumed; all in one start."""
    ranks, layout = LAYOUTS[request.param]
    cases = [{"run": "whole", "overrides": [*STEPS, *layout]}]
    stops = {
        "interval": {"overrides": ["train.exit_interval=4"]},
        "sigterm": {"signal": signal.SIGTERM, "signal_rank": 0, "signal_after": 2},
        "sigusr1": {"signal": signal.SIGUSR1, "signal_rank": ranks - 1, "signal_after": 3},
    }
    for name, stop in stops.items():
        first = [*STEPS, *layout, *stop.pop("overrides", [])]
        cases += [{"run": name, "overrides": first, **stop}]
        cases += [{"run": name, "name": f"{name}_resumed", "overrides": [*STEPS, *layout, "train.async_save=true"]}]
    folder = tmp_path_factory.mktemp(request.param)
    return folder, start(folder, ranks, data_set, cases)


@pytest.mark.parametrize("stop", ["interval", "sigterm", "sigusr1"])
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_to_the_bit(stopped, stop):
    folder, results = stopped
    assert results[stop]["code"] == 75 and results[f"{stop}_resumed"]["code"] == 0
    assert 2 <= results[stop]["stopped_at"] < 8 and results[f"{stop}_resumed"]["start"] == results[stop]["stopped_at"]
    whole, parts = (read_metrics(folder / run) for run in ("whole", stop))
    for name in EXACT:
        assert [m[name] for m in whole] == [m[name] for m in parts], name
    assert len({m["data_digest"] for m in whole}) > 1
    assert unequal(*(folder / run / "checkpoints/iter_0000008" for run in ("whole", stop))) == []


def test_what_is_compared_is_there_and_the_average_is_not_the_weights(stopped):
    folder, _ = stopped
    reader = CheckpointReader(folder / "whole/checkpoints/iter_0000008")
    weights = [key for key in reader.tensors if not key.startswith("optimizer.")]
    for kind in ("param", "exp_avg", "exp_avg_sq", "ema"):
        assert {f"optimizer.state.{kind}.{key}" for key in weights} <= set(reader.tensors), kind
    assert any(not torch.equal(reader.read(key), reader.read(f"optimizer.state.ema.{key}")) for key in weights)
