"""Draws by key: uniform, independent of each other, and the same on every machine."""

import numpy as np

from phantom_mega.data.hashing import draw_bits, draw_uniform, hash_keys

HASHES = hash_keys(f"clip-{i}" for i in range(20000))


def test_draws_are_uniform_and_uncorrelated_between_epochs_and_purposes():
    draws = [draw_uniform(HASHES, 7, *stream) for stream in [(0, "start"), (1, "start"), (0, "order"), (0, "ref", 1)]]
    for draw in draws:
        assert draw.min() >= 0 and draw.max() < 1
        counts = np.histogram(draw, 20, (0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-squared, 19 degrees of freedom: beyond is p < 1e-4
    off_diagonal = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(off_diagonal).max() < 0.03


def test_a_key_draws_the_same_alone_as_among_others():
    together = draw_bits(HASHES, 3, 1, "x")
    assert int(draw_bits(HASHES[17], 3, 1, "x")) == int(together[17]) == int(draw_bits(HASHES[17:18], 3, 1, "x")[0])


def test_draws_never_change_between_releases():
    assert hash_keys(["clip-0", "ä"]).tolist() == [1782847817352117355, 4152366542966443504]
    drawn = draw_bits(np.array([1, 2], dtype=np.uint64), 0, "x")
    assert drawn.tolist() == [13581827588018176652, 7023775836164460355]
