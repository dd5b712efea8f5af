"""Sample videos: which cases, which ranks, what a mean is."""

import pytest

from phantom_mega.config import DataConfig, ModelConfig, ResolutionConfig
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.plan import PackPlan
from phantom_mega.evaluation.metric import Measured
from phantom_mega.training.samples import Samples, SampleVideo, choose_cases, spread


def plan_of(folder, frames=(1, 17)):
    data = DataConfig(seq_length=448, resolutions={"64p": ResolutionConfig(4096, list(frames))})
    return PackPlan(TripletIndex.open(folder), data, ModelConfig(), 16, 0, 2)


def test_cases_are_videos_with_references_and_the_same_each_time(valid_set):
    chosen = choose_cases(plan_of(valid_set), 4)
    assert {case.key for case in chosen} == {"held_out_1", "held_out_2"}, "the others have no reference, or one frame"
    assert chosen == choose_cases(plan_of(valid_set), 4)
    assert choose_cases(plan_of(valid_set), 1) == chosen[:1]
    assert choose_cases(plan_of(valid_set, frames=[1]), 4) == [], "stills alone"


@pytest.mark.parametrize(
    ("count", "world", "ranks"),
    [(1, 1, [0]), (4, 1, [0]), (2, 2, [0, 1]), (3, 2, [0, 1]), (4, 128, [0, 32, 64, 96]), (3, 8, [0, 2, 5])],
)
def test_videos_are_spread_over_ranks_far_from_one_another(count, world, ranks):
    assert spread(count, world) == ranks


def test_means_are_over_the_videos_that_have_the_metric_and_missing_ones_count():
    videos = [
        SampleVideo("a", measured={"x": Measured(1.0), "y": Measured(0.4)}),
        SampleVideo("b", measured={"x": Measured(0.0, "no face")}, problems=("y: failed",)),
        SampleVideo("c", problems=("out of memory",)),
    ]
    samples = Samples("ema", videos)
    assert samples.means() == {"x": 0.5, "y": 0.4}
    assert videos[1].record()["metrics"]["x"] == {"value": 0.0, "missing": "no face", "detail": {}}
    assert Samples("ema", videos[2:]).means() == {}
