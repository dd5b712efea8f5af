"""Metrics of sample videos by name: what is found, what is called, what is refused."""

import numpy as np
import pytest
import torch

from phantom_mega.config import RunConfig
from phantom_mega.errors import UserError
from phantom_mega.evaluation.metric import Item
from phantom_mega.training.sample_metrics import BUILT_IN, load_metrics
from tests.media import draw_frames
from tests.training import eval_metrics

CPU = torch.device("cpu")
OWN = "tests.training.eval_metrics:"


def test_built_in_and_own_metrics_come_in_the_order_of_their_names():
    config = RunConfig()
    found = load_metrics(["temporal_flickering", f"{OWN}remembering", "tower_i"], config, CPU, None)
    assert [metric.name for metric in found] == ["temporal_flickering", "references", "tower_i"]
    assert eval_metrics.ARGUMENTS[-1] == (config, CPU)


def test_built_in_metrics_need_no_download_and_measure_real_frames():
    frames = draw_frames(12, 48, 64)
    item = Item("a", frames, 24.0, "a square", (frames[3], draw_frames(1, 48, 64, seed=9)[0]), ("", ""))
    found = {metric.name: metric.measure(item) for metric in load_metrics(BUILT_IN, RunConfig(), CPU, None)}
    assert found["tower_i"].detail["reference_1"] > found["tower_i"].detail["reference_2"]
    assert 0.9 < found["temporal_flickering"].value < 1
    assert all(np.isfinite(one.value) and not one.missing for one in found.values())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tower_x"], "'tower_x' is unknown; use tower_i, .*; did you mean tower_i"),
        (["tower_i", "tower_i"], "names tower_i twice"),
        ([f"{OWN}nowhere"], "eval_metrics:nowhere cannot be imported"),
        (["nowhere.at.all:f"], "nowhere.at.all:f cannot be imported"),
        ([f"{OWN}NOT_A_FUNCTION"], "is a int, not a function"),
        ([f"{OWN}broken"], "broken failed: OSError: no weights here"),
        ([f"{OWN}no_metric"], "returns a int, not a Metric"),
        ([f"{OWN}remembering", f"{OWN}remembering_too"], "a second metric of the name 'references'"),
    ],
)
def test_what_is_no_metric_is_refused(names, message):
    with pytest.raises(UserError, match=message):
        load_metrics(names, RunConfig(), CPU, None)
