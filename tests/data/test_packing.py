"""Packing: every sample once, within both budgets, full, and nothing waits long."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phantom_mega.data.packing import _largest_fit, pack_samples

SIZES = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 20)), min_size=1, max_size=60)


@given(SIZES, st.integers(1, 10))
def test_packing_uses_every_sample_once_within_both_budgets(sizes, lookahead):
    visual, text = np.array(sizes).T
    packs = pack_samples(visual, text, 50, 20, lookahead)
    assert sorted(i for pack in packs for i in pack) == list(range(len(sizes)))
    assert all(visual[pack].sum() <= 50 and text[pack].sum() <= 20 for pack in map(np.array, packs))


@given(SIZES, st.integers(1, 50), st.integers(1, 20))
def test_the_largest_sample_that_fits_is_found(sizes, room, text_room):
    waiting = sorted((visual, text, i) for i, (visual, text) in enumerate(sizes))
    fitting = [size for size in waiting if size[0] <= room and size[1] <= text_room]
    place = _largest_fit(waiting, room, text_room)
    assert (waiting[place] == fitting[-1]) if fitting else place == -1


@example([(20, 10), (20, 10)], 2)
@given(SIZES, st.integers(1, 10))
def test_a_pack_is_closed_only_when_nothing_that_waits_fits(sizes, lookahead):
    packs, seen = pack_samples(*np.array(sizes).T, 50, 20, lookahead), set()
    for pack in packs:
        waiting = [i for i in range(len(sizes)) if i not in seen][:lookahead]
        seen |= set(pack)
        visual, text = np.array(sizes)[pack].sum(0)
        rest = [sizes[i] for i in waiting if i not in pack]
        assert not any(visual + v <= 50 and text + t <= 20 for v, t in rest)


@pytest.mark.parametrize("lookahead", [1, 7, 64])
def test_no_sample_waits_longer_than_the_lookahead(lookahead):
    rng = np.random.default_rng(0)
    packs = pack_samples(rng.integers(1, 100, 500), np.ones(500, int), 100, 1000, lookahead)
    seen = 0
    for pack in packs:
        assert max(pack) < seen + lookahead  # nothing comes before its turn
        seen += len(pack)
    firsts = [pack[0] for pack in packs]
    assert firsts == sorted(firsts)  # and the oldest opens each pack


def test_nothing_to_pack_gives_no_packs():
    assert pack_samples(np.zeros(0, int), np.zeros(0, int), 10, 10, 4) == []
