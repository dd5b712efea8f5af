"""Tile tables: every row is somebody's work once, and slots belong to one window and shared row each."""

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from phantom_mega.attention import Windows
from phantom_mega.kernels.tiles import TileIndex, count_slots, tile_table, window_table
from phantom_mega.windows import pack_offsets, plan_windows
from tests.strategies import packs, window_specs


def plan_of(shapes, spec, shifted):
    visual, text = (offsets[-1] + 2 for offsets in pack_offsets(shapes))
    return plan_windows(shapes, spec, shifted, visual, text)


def offsets_of(plan):
    return tuple(tuple(x.tolist()) for x in (plan.cu_video, plan.cu_shared, plan.cu_windows))


@given(packs, window_specs, st.booleans(), st.sampled_from([16, 128]))
def test_tiles_hold_every_position_once_and_never_cross_a_window_or_a_sample(shapes, spec, shifted, tile):
    plan = plan_of(shapes, spec, shifted)
    table, shared_tiles = tile_table(*offsets_of(plan), tile)
    V, H = len(plan.video_rows), len(plan.shared_rows)
    covered = np.concatenate([np.arange(row[0], row[1]) for row in table])
    assert sorted(covered) == list(range(V + H)) and (table[:, 1] - table[:, 0] <= tile).all()
    for i, (start, stop, h0, h1, w0, w1, is_shared, count) in enumerate(table):
        assert is_shared == (i < shared_tiles) == (start >= V)
        b = np.searchsorted(plan.cu_windows, w0, side="right") - 1
        assert (h0 - V, h1 - V) == tuple(plan.cu_shared[b : b + 2]) and count == np.diff(plan.cu_windows)[b]
        if is_shared:
            assert (w0, w1) == tuple(plan.cu_windows[b : b + 2]) and h0 <= start < stop <= h1
        else:
            assert w1 == w0 + 1 and plan.cu_video[w0] <= start < stop <= plan.cu_video[w1]


@given(packs, window_specs, st.booleans())
def test_tiles_with_most_keys_come_first(shapes, spec, shifted):
    plan = plan_of(shapes, spec, shifted)
    table, shared_tiles = tile_table(*offsets_of(plan), 16)
    keys = table[:, 3] - table[:, 2] + plan.cu_video[table[:, 5]] - plan.cu_video[table[:, 4]]
    for part in (keys[:shared_tiles], keys[shared_tiles:]):
        assert (np.diff(part) <= 0).all()


@given(packs, window_specs, st.booleans())
def test_slots_number_the_pairs_of_window_and_shared_row_without_a_gap(shapes, spec, shifted):
    plan = plan_of(shapes, spec, shifted)
    table = window_table(*offsets_of(plan))
    V, H = len(plan.video_rows), len(plan.shared_rows)
    slots = []
    for b, (w0, w1) in enumerate(itertools.pairwise(plan.cu_windows)):
        own = np.arange(*plan.cu_shared[b : b + 2]) + V
        slots += [own + table[w, 1] for w in range(w0, w1)]
    assert np.concatenate(slots).tolist() == list(range(V + H, V + H + count_slots(plan)))


@given(packs, window_specs)
def test_the_index_is_made_once_for_a_pack_and_names_the_plans_rows(shapes, spec):
    plan = plan_of(shapes, spec, False)
    windows = Windows.from_plan(plan, [2, 2, 0], 10.0)
    index = TileIndex.of(windows, {16, 32})
    assert TileIndex.of(windows, {32, 16}) is index and set(index.tables) == {16, 32}
    assert index.rows.dtype == torch.int32
    assert index.rows.tolist() == [*plan.video_rows, *plan.shared_rows]
