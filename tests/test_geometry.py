"""Geometry: sizes, token counts and patches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phantom_mega.errors import UserError
from phantom_mega.geometry import (
    SampleShape,
    bucket_size,
    contain_size,
    cover_size,
    latent_frames,
    patchify,
    token_grid,
    unpatchify,
)


def test_720p_145_frames_is_37_by_45_by_80_tokens():
    assert token_grid(145, 720, 1280) == (37, 45, 80)


def test_frames_that_are_not_4k_plus_1_name_the_nearest():
    with pytest.raises(UserError, match="nearest counts are 17 and 21"):
        latent_frames(18)


def test_sides_that_are_not_multiples_of_16_name_the_nearest():
    with pytest.raises(UserError, match="width 100 is not a multiple of 16; the nearest is 96"):
        token_grid(5, 64, 100)


def test_sample_shape_counts_both_streams():
    shape = SampleShape(frames=3, height=4, width=5, references=2, text_tokens=7, clip_tokens=6)
    assert (shape.video_tokens, shape.reference_tokens, shape.visual_tokens) == (60, 40, 100)
    assert shape.text_stream_tokens == 7 + 12


@given(st.integers(64 * 64, 1280 * 720), st.floats(0.4, 2.5))
def test_bucket_sizes_are_multiples_of_16_near_the_area_and_aspect(pixels, aspect):
    height, width = bucket_size(pixels, aspect)
    assert height % 16 == 0 and width % 16 == 0
    assert abs(height - (pixels / aspect) ** 0.5) <= 8 and abs(width - (pixels * aspect) ** 0.5) <= 8


sides = st.tuples(st.integers(10, 2000), st.integers(10, 2000))


@given(sides, sides)
def test_cover_covers_and_contain_stays_inside(source, target):
    cover, contain = cover_size(source, target), contain_size(source, target)
    assert all(c >= t for c, t in zip(cover, target)) and any(c == t for c, t in zip(cover, target))
    assert all(1 <= c <= t for c, t in zip(contain, target)) and any(c == t for c, t in zip(contain, target))


def test_unpatchify_inverts_patchify_and_tokens_run_frame_by_frame():
    latents = torch.arange(3 * 2 * 4 * 6).reshape(3, 2, 4, 6)
    tokens = patchify(latents)
    assert tokens.shape == (2 * 2 * 3, 12)
    assert torch.equal(unpatchify(tokens, 2, 2, 3), latents)
    assert torch.equal(tokens[:6], patchify(latents[:, :1]))
