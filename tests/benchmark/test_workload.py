"""The sizes are those of the preset and of a 480p clip; features do not depend on how the sample is cut."""

import pytest
import torch

from phantom_mega.benchmark.workload import FULL, FULL_ATTENTION, SMALL, check_frames, layout_of, microbatch
from phantom_mega.config import RunConfig
from phantom_mega.config_io import RECIPES, Recipes
from phantom_mega.errors import UserError


def test_the_full_size_is_four_blocks_of_the_preset():
    preset = Recipes(RunConfig, RECIPES).load("model/phantom_7b", []).model
    preset.num_layers = 4
    assert preset == FULL.model


def test_a_480p_clip_has_the_tokens_of_its_latent_frames():
    shapes = [FULL.shape(frames, 1) for frames in FULL.frames]
    assert [(s.frames, s.height, s.width) for s in shapes] == [(21, 30, 52), (13, 30, 52)]
    assert {s.text_stream_tokens for s in shapes} == {256} and shapes[0].visual_tokens == 22 * 1560
    # FP8 multiplies matrices whose sides are multiples of 16.
    assert all(s.visual_tokens % 16 == 0 for s in shapes)


def test_features_are_the_same_with_windows_and_without():
    shape, cpu = SMALL.shape(33, 1), torch.device("cpu")
    one, other = (
        microbatch(SMALL.model, shape, layout_of(SMALL.model, shape, spec, cpu))
        for spec in (FULL_ATTENTION, SMALL.windows)
    )
    assert torch.equal(one[0].visual, other[0].visual) and torch.equal(one[1], other[1])
    assert one[2].sum() == shape.video_tokens
    assert len(one[0].layout.windows[0].lengths) == 1 and len(other[0].layout.windows[0].lengths) == 2


def test_lengths_and_references_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="not 4k"):
        check_frames(FULL, [80], [1])
    with pytest.raises(UserError, match="9 references fill a window"):
        check_frames(FULL, [81], [9])
    with pytest.raises(UserError, match="negative"):
        check_frames(FULL, [81], [-1])
