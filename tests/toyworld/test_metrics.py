"""The judge behind the interface of metrics: the true video scores, what cannot be read counts zero and says why."""

import dataclasses

import numpy as np
import pytest
import torch

from phantom_mega.config import RunConfig
from phantom_mega.errors import UserError
from phantom_mega.evaluation.metric import Item
from phantom_mega.toyworld import metrics
from phantom_mega.toyworld.dataset import ToySettings, toy_sample, write_toyworld
from phantom_mega.toyworld.judge import Judge
from phantom_mega.toyworld.judge_training import train_judge
from phantom_mega.toyworld.models import JUDGE_FILE
from phantom_mega.toyworld.render import render

SETTINGS = ToySettings(samples=1, validation_samples=3)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    write_toyworld(root / "data", SETTINGS, quiet=True)
    (root / "models" / "judge").mkdir(parents=True)
    judge: Judge = train_judge(0, 2, progress=False)
    judge.save(root / "models" / "judge" / JUDGE_FILE)
    config = RunConfig()
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, valid_index_path=[str(root / "data" / "validation")]),
        conditioning=dataclasses.replace(config.conditioning, vae=str(root / "models" / "vae")),
    )


def item(number=0, **other):
    sample = toy_sample(SETTINGS, "validation", number)
    fields = dict(id=sample.key, frames=render(sample.scene), fps=8.0, prompt=sample.caption, references=(), labels=())
    return Item(**fields | other)


@pytest.mark.parametrize("make", [metrics.identity, metrics.prompt, metrics.copy_paste])
def test_each_metric_gives_a_number_between_0_and_1_or_says_why_not(config, make):
    metric = make(config, torch.device("cpu"))
    for number in range(3):
        found = metric.measure(item(number))
        assert 0 <= found.value <= 1
        assert found.missing or found.detail


def test_scores_of_a_perfect_reading_are_those_of_the_truth(config):
    metric = metrics.identity(config, torch.device("cpu"))
    metric.scores = lambda reading, truth, aspect: {"value": 0.75}
    metric.judge = type("Seen", (), {"read": lambda self, videos: [type("R", (), {"subjects": (1,)})()]})()
    assert metric.measure(item()).value == 0.75


def test_a_video_without_a_subject_and_one_without_truth_count_zero_and_say_so(config):
    metric = metrics.prompt(config, torch.device("cpu"))
    assert "truth of other" in metric.measure(item(id="other")).missing
    metric.judge = type("Blind", (), {"read": lambda self, videos: [type("R", (), {"subjects": ()})()]})()
    found = metric.measure(item(frames=np.zeros((17, 32, 32, 3), np.uint8)))
    assert (found.value, found.missing) == (0.0, "no subject in any frame")


def test_missing_held_out_data_and_judge_are_named(config, tmp_path):
    without = dataclasses.replace(config, data=dataclasses.replace(config.data, valid_index_path=[]))
    with pytest.raises(UserError, match=r"valid_index_path is empty.*make_toyworld"):
        metrics.identity(without, torch.device("cpu"))
    vae = dataclasses.replace(config.conditioning, vae=str(tmp_path / "vae"))
    with pytest.raises(UserError, match="make_toy_models"):
        metrics.identity(dataclasses.replace(config, conditioning=vae), torch.device("cpu"))
