"""Windows: every token is where the paper says, and the index arrays equal a dense masked attention."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phantom_mega.attention import Windows, window_attention
from phantom_mega.errors import UserError
from phantom_mega.geometry import SampleShape
from phantom_mega.windows import WindowSpec, axis_windows, pack_offsets, plan_windows, spatial_window_sizes
from tests.dense_attention import dense_reference
from tests.strategies import packs, small_packs, window_specs


def padded_plan(shapes, spec, shifted, padding=(3, 2)):
    visual, text = (offsets[-1] + pad for offsets, pad in zip(pack_offsets(shapes), padding))
    return plan_windows(shapes, spec, shifted, visual, text), visual, text


def rows_of(plan):
    return [plan.gather[a:b] for a, b in zip(plan.cu_seqlens[:-1], plan.cu_seqlens[1:])]


@given(packs, window_specs, st.booleans())
def test_every_video_token_is_in_exactly_one_window_and_padding_in_none(shapes, spec, shifted):
    plan, S, L = padded_plan(shapes, spec, shifted)
    count = np.bincount(plan.gather, minlength=S + L)
    visual_at, text_at = pack_offsets(shapes)
    for shape, start in zip(shapes, visual_at):
        assert (count[start : start + shape.video_tokens] == 1).all()
    assert (count[visual_at[-1] : S] == 0).all() and (count[S + text_at[-1] :] == 0).all()


@given(packs, window_specs, st.booleans())
def test_shared_tokens_are_in_every_window_of_their_own_sample_and_no_other(shapes, spec, shifted):
    plan, S, _ = padded_plan(shapes, spec, shifted)
    visual_at, text_at = pack_offsets(shapes)
    for window in map(set, rows_of(plan)):
        owners = []
        for i, shape in enumerate(shapes):
            video = set(range(visual_at[i], visual_at[i] + shape.video_tokens))
            shared = set(range(visual_at[i] + shape.video_tokens, visual_at[i + 1]))
            shared |= set(range(S + text_at[i], S + text_at[i + 1]))
            if window & video:
                owners.append(i)
                assert shared <= window
            else:
                assert not shared & window
        assert len(owners) == 1


@given(packs, window_specs, st.booleans())
def test_each_window_is_its_own_video_rows_and_then_the_shared_rows_of_its_sample(shapes, spec, shifted):
    plan, *_ = padded_plan(shapes, spec, shifted)
    cut = lambda rows, offsets: [rows[a:b].tolist() for a, b in itertools.pairwise(offsets)]  # noqa: E731
    video, shared = cut(plan.video_rows, plan.cu_video), cut(plan.shared_rows, plan.cu_shared)
    assert len(shared) == len(shapes) == len(plan.cu_windows) - 1
    owner = np.repeat(np.arange(len(shapes)), np.diff(plan.cu_windows))
    assert [rows.tolist() for rows in rows_of(plan)] == [own + shared[i] for own, i in zip(video, owner, strict=True)]


@given(packs, st.booleans())
def test_displaced_windows_never_exceed_nine_frames(shapes, shifted):
    plan, *_ = padded_plan(shapes, WindowSpec(reference_injection="displace"), shifted)
    visual_at, _ = pack_offsets(shapes)
    for window in rows_of(plan):
        sample = np.searchsorted(visual_at, window[0], side="right") - 1
        visual_rows = (window < visual_at[-1]).sum()
        assert visual_rows <= 9 * shapes[sample].frame_tokens


def test_displaced_video_frames_open_the_next_window():
    """9-frame windows with 2 references: 7 video frames each; shifted grid opens with half a window."""
    spec, shape = WindowSpec(), SampleShape(frames=16, height=1, width=1, references=2, text_tokens=1)
    frames = [window[window < 16].tolist() for window in rows_of(padded_plan([shape], spec, False)[0])]
    assert frames == [list(range(0, 7)), list(range(7, 14)), [14, 15]]
    frames = [window[window < 16].tolist() for window in rows_of(padded_plan([shape], spec, True)[0])]
    assert frames == [[0, 1, 2], list(range(3, 10)), list(range(10, 16))]


def test_appended_references_join_nine_video_frames():
    shape = SampleShape(frames=16, height=1, width=1, references=2, text_tokens=1)
    plan, *_ = padded_plan([shape], WindowSpec(reference_injection="append"), False)
    assert [len(window) for window in rows_of(plan)] == [9 + 2 + 1, 7 + 2 + 1]


def test_references_take_the_last_temporal_positions_of_the_window():
    shape = SampleShape(frames=16, height=1, width=1, references=2, text_tokens=1)
    for shifted in (False, True):
        plan, *_ = padded_plan([shape], WindowSpec(), shifted)
        assert plan.positions[16:18, 0].tolist() == [7, 8]
    plan, *_ = padded_plan([shape], WindowSpec(reference_injection="append"), False)
    assert plan.positions[16:18, 0].tolist() == [9, 10]


@given(packs, window_specs, st.booleans())
def test_positions_are_counted_inside_the_window_and_never_collide(shapes, spec, shifted):
    plan, S, _ = padded_plan(shapes, spec, shifted)
    for window in rows_of(plan):
        visual = plan.positions[window[window < S]]
        if spec.window_height == spec.window_width == 0:  # spatial windows and whole references overlap by design
            assert len({tuple(p) for p in visual}) == len(visual)
        assert visual.min() == 0


def test_layers_alternate_the_grid():
    spec = WindowSpec(window_shift="alternate")
    assert [spec.is_shifted(i) for i in range(4)] == [False, True, False, True]
    assert not any(WindowSpec(window_shift="none").is_shifted(i) for i in range(4))


@given(st.integers(1, 60), st.integers(0, 12), st.booleans())
def test_axis_windows_partition_the_axis_in_order(length, size, shifted):
    windows = axis_windows(length, size, shifted)
    assert [i for a, b in windows for i in range(a, b)] == list(range(length))
    assert all(a < b for a, b in windows) and (size == 0 or max(b - a for a, b in windows) <= max(size, 1))


def test_spatial_windows_are_counted_at_720p():
    """3 x 3 windows of a 45 x 80 frame are 15 x 27 tokens; at 480p (30 x 52) they stay near that size."""
    spec = WindowSpec(window_height=3, window_width=3)
    assert spatial_window_sizes(45, 80, spec) == (15, 27)
    assert spatial_window_sizes(30, 52, spec) == (16, 27)


@settings(max_examples=25, deadline=None)
@given(
    small_packs, st.sampled_from(["displace", "append"]), st.sampled_from([0, 5, 9]), st.booleans(), st.integers(0, 99)
)
def test_window_attention_equals_dense_masked_attention_with_gradients_in_float64(shapes, mode, size, shifted, seed):
    spec = WindowSpec(window_frames=size, reference_injection=mode)
    plan, S, L = padded_plan(shapes, spec, shifted)
    generator = torch.Generator().manual_seed(seed)
    results = []
    for run in ("indexed", "dense"):
        generator.manual_seed(seed)
        q, k, v, g = (torch.randn(S + L, 2, 4, dtype=torch.float64, generator=generator) for _ in range(4))
        for x in (q, k, v):
            x.requires_grad_()
        if run == "indexed":
            out = window_attention(q, k, v, Windows.from_plan(plan, [2, 2, 0], 10.0))
        else:
            out = dense_reference(q, k, v, shapes, spec, shifted, S)
        out.backward(g)
        results.append((out.detach(), q.grad, k.grad, v.grad))
    for indexed, dense in zip(*results):
        torch.testing.assert_close(indexed, dense, rtol=1e-12, atol=1e-12)


def test_averaging_equals_the_mean_of_per_window_outputs():
    torch.manual_seed(0)
    shape = SampleShape(frames=12, height=1, width=2, references=1, text_tokens=3, clip_tokens=2)
    plan, S, L = padded_plan([shape], WindowSpec(window_frames=5), False)
    q, k, v = torch.randn(3, S + L, 1, 4, dtype=torch.float64)
    merged = window_attention(q, k, v, Windows.from_plan(plan, [2, 2, 0], 10.0))
    outputs = []
    for rows in rows_of(plan):
        scores = q[rows, 0] @ k[rows, 0].T / 2
        outputs.append(dict(zip(rows.tolist(), scores.softmax(-1) @ v[rows, 0])))
    for token in range(24, 24 + 2):  # the reference's tokens
        mean = torch.stack([out[token] for out in outputs]).mean(0)
        torch.testing.assert_close(merged[token, 0], mean, rtol=1e-12, atol=1e-12)
    assert len(outputs) == 3


def test_displace_without_room_for_video_is_refused():
    with pytest.raises(UserError, match="3 references fill a window of 3 frames; use at most 2"):
        WindowSpec(window_frames=3).video_frames(3)


def test_a_pack_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="seq_length=3"):
        plan_windows([SampleShape(2, 2, 2, text_tokens=1)], WindowSpec(), False, 3, 9)


@pytest.mark.parametrize("field", [{"window_shift": "roll"}, {"reference_injection": "add"}, {"window_frames": -1}])
def test_unknown_window_settings_are_refused(field):
    with pytest.raises(UserError, match=next(iter(field))):
        WindowSpec(**field)
