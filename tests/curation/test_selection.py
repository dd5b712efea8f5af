"""Thresholds and duplicates: which clips go on, and why the others do not."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_mega.curation.selection import RULES, SelectionSettings, duplicates, open_selection, rejection

GOOD = {
    "black": 0.0, "contrast": 50.0, "letterbox": 0.0, "sharpness": 200.0, "motion": 0.1, "text_area": 0.0,
    "aesthetic": 5.0,
}  # fmt: skip


def test_a_good_clip_breaks_no_rule_and_one_without_a_score_is_not_judged_by_it():
    assert rejection(GOOD, SelectionSettings()) == (None, None)
    assert rejection(GOOD | {"aesthetic": None}, SelectionSettings()) == (None, None)


@pytest.mark.parametrize(("reason", "column", "setting", "least"), RULES)
def test_each_rule_takes_its_limit_and_nothing_beyond(reason, column, setting, least):
    settings = SelectionSettings()
    limit = getattr(settings, setting)
    assert rejection(GOOD | {column: limit}, settings) == (None, None)
    beyond = limit - 1e-6 if least else limit + 1e-6
    assert rejection(GOOD | {column: beyond}, settings) == (reason, beyond)


def flip(hashes, bits, seed=0):
    """Hashes with so many bits changed."""
    changed = np.unpackbits(hashes)
    changed[np.random.default_rng(seed).choice(len(changed), bits, replace=False)] ^= 1
    return np.packbits(changed)


def test_duplicates_are_those_within_the_bits_and_the_first_one_stays():
    base = np.random.default_rng(1).integers(0, 256, (3, 24), dtype=np.uint8)
    hashes = np.stack([base[0], base[1], flip(base[0], 12), flip(base[0], 13), base[2], base[1]])
    assert duplicates(hashes, 4) == {2: 0, 5: 1}, "four bits of 64 are twelve of three hashes"
    assert duplicates(hashes, 0) == {5: 1} and duplicates(hashes, -1) == {} and duplicates(hashes[:1], 4) == {}


@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_no_clip_that_stays_is_near_another_that_stays(seed, count):
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 256, (4, 24), dtype=np.uint8)
    hashes = np.stack([flip(centres[rng.integers(4)], int(rng.integers(0, 20)), seed + i) for i in range(count)])
    gone = duplicates(hashes, 4)
    stay = [i for i in range(count) if i not in gone]
    bits = np.unpackbits(hashes, axis=1)
    for i in stay:
        assert all((bits[i] != bits[j]).sum() > 12 for j in stay if j != i)
    assert all(first in stay and (bits[later] != bits[first]).sum() <= 12 for later, first in gone.items())


def test_every_clip_is_in_the_table_with_its_reason_whatever_the_order():
    hashes = bytes(range(24))
    rows = [{"clip_id": f"c{i}", "hashes": hashes if i % 2 else bytes([i] * 24)} | GOOD for i in range(6)]
    rows[2]["sharpness"] = 1.0
    select = open_selection(SelectionSettings())
    found = select({"measures": pa.Table.from_pylist(rows)})
    assert found == select({"measures": pa.Table.from_pylist(rows[::-1])})
    by_name = {row["clip_id"]: (row["accepted"], row["reason"], row["score"], row["detail"]) for row in found}
    assert by_name["c2"] == (False, "blurred", 1.0, None) and by_name["c1"][0]
    assert by_name["c3"] == by_name["c5"] == (False, "duplicate", None, "c1")
