"""Likeness by the run's own tower: exact on vectors, in order on pictures, by the frames that it says."""

import numpy as np
import pytest
import torch

from phantom_mega.conditioning.vision import load_vision_tower
from phantom_mega.config import ConditioningConfig
from phantom_mega.evaluation.metric import Item
from phantom_mega.evaluation.tower_i import FRAMES, TowerI
from tests.media import draw_frames


def item(frames, *references):
    return Item("a", frames, 24.0, "a square", references, ("",) * len(references))


def test_a_video_of_its_reference_is_one_and_another_scene_is_less():
    metric = TowerI(load_vision_tower(ConditioningConfig(), "cpu").encode)
    still, other = draw_frames(1, 48, 64)[0], draw_frames(1, 48, 64, seed=7)[0]
    same = metric.measure(item(np.stack([still] * 12), still))
    assert same.value == pytest.approx(1.0, abs=1e-6)
    both = metric.measure(item(np.stack([still] * 12), still, other))
    assert both.detail["reference_1"] == pytest.approx(1.0, abs=1e-6) and both.detail["reference_2"] < 0.999
    assert both.value == pytest.approx(np.mean(list(both.detail.values())))


def test_ten_even_frames_are_read_and_patches_are_averaged():
    seen = []

    def encode(images):
        seen.append([int(image[0, 0, 0]) for image in images])
        return torch.tensor([[[image[0, 0, 0], 1.0], [3.0 * image[0, 0, 0], 1.0]] for image in images])

    frames = np.arange(28, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    found = TowerI(encode).measure(item(frames, frames[4]))
    assert seen[0] == list(range(0, 28, 3)) and len(seen[0]) == FRAMES
    expected = [(8 * 2 * i + 1) / ((64 + 1) * (4 * i * i + 1)) ** 0.5 for i in seen[0]]
    assert found.value == pytest.approx(np.mean(expected), rel=1e-5)


def test_without_a_reference_it_is_zero_and_says_so():
    found = TowerI(None).measure(item(draw_frames(2, 16, 16)))
    assert found.value == 0.0 and found.missing == "the case has no reference"
