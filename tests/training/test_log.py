"""Records of a run: Megatron's line, TensorBoard's tags, the JSON lines that survive a restart."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from phantom_mega.config import TrainConfig
from phantom_mega.errors import UserError
from phantom_mega.metrics import keep_until, metrics_path, read_metrics
from phantom_mega.training.log import IterationMetrics, RunLog, log_line

TRAIN = TrainConfig(train_iters=50000, global_batch_size=64, progress_bar=False)


def metrics(iteration):
    return IterationMetrics(
        iteration, iteration * 64, 1.25, 0.5, 1e-4, 2.0, 0.1, 900, 1000, 512.0, 41.5, 1, 1, 2, 0.99, {"0.50-0.60": 1.5}
    )


def test_line_has_megatrons_form():
    line = log_line(metrics(100), TRAIN)
    assert (
        "iteration      100/   50000 | consumed samples:         6400 | elapsed time per iteration (ms): 2000.0" in line
    )
    assert "learning rate: 1.000000E-04 | global batch size:    64 | flow loss: 1.250000E+00" in line
    assert "number of skipped iterations:   1 | number of nan iterations:   1" in line and "MFU" not in line
    assert "MFU: 4.2%" in log_line(metrics(100), TrainConfig(peak_tflops=989))


def test_tensorboard_has_megatrons_tags_and_the_loss_per_timestep(tmp_path):
    log = RunLog(tmp_path, TRAIN, 0, active=True)
    log.iteration(metrics(1))
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = events.Tags()["scalars"]
    wanted = {"flow loss", "learning-rate", "grad-norm", "iteration-time", "throughput", "flow loss vs samples"}
    assert wanted | {"loss per timestep/0.50-0.60"} <= set(tags)
    assert events.Scalars("flow loss")[0].value == 1.25 and events.Scalars("flow loss vs samples")[0].step == 64


def test_a_restart_drops_later_and_torn_lines(tmp_path):
    log = RunLog(tmp_path, TRAIN, 0, active=True)
    for i in range(1, 6):
        log.iteration(metrics(i))
    log.close()
    with open(metrics_path(tmp_path), "a") as file:
        file.write('{"iteration": 6, "lo')
    keep_until(metrics_path(tmp_path), 3)
    assert [m["iteration"] for m in read_metrics(tmp_path)] == [1, 2, 3]
    assert all(json.loads(line) for line in metrics_path(tmp_path).read_text().splitlines())


def test_other_ranks_write_nothing(tmp_path):
    log = RunLog(tmp_path / "run", TRAIN, 0, active=False)
    log.iteration(metrics(1))
    log.close()
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_record_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no training record"):
        read_metrics(tmp_path)
