"""COCO's run lengths, against masks and texts worked out by hand."""

import numpy as np
import pytest

from phantom_mega.curation.readers.rle import decode_mask, run_lengths

# Down the columns: 0 0 1 | 1 1 1 | 1 0 0 | 0 0 0.
MASK = [[0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("counts", [[2, 5, 5], "255", b"255"])
def test_a_mask_worked_out_by_hand(counts):
    mask = decode_mask({"size": [3, 4], "counts": counts})
    assert mask.dtype == bool and mask.astype(int).tolist() == MASK


def test_text_holds_numbers_of_several_letters_and_differences_of_both_signs():
    # 40 = 8 + 1 * 32: "X1"; from the fourth run on, less the one before the last: 41 - 40, 19 - 10, 38 - 41.
    assert run_lengths(":X1:19M") == [10, 40, 10, 41, 19, 38]


@pytest.mark.parametrize(
    ("rle", "problem"),
    [
        ({"size": [3, 4], "counts": "25"}, "cover 7 of 12"), ({"size": [3, 4], "counts": [2, 5, 6]}, "cover 13 of 12"),
        ({"size": [3, 4], "counts": "25X"}, "breaks off"), ({"size": [3, 4], "counts": "2 5"}, "holds ' '"),
        ({"size": [3, 4], "counts": [-2, 14]}, "no numbers of pixels"), ({"size": [3], "counts": "255"}, "no size"),
        ({"size": [1 << 20, 1 << 20], "counts": [1 << 40]}, "pixels"), ({"counts": "255"}, "no size"),
        ({"size": [3, 4], "counts": ["a"]}, "no numbers of pixels"), ({"size": [3, 4], "counts": None}, "no numbers"),
        (None, "no size"),
    ],
)  # fmt: skip
def test_what_is_no_mask_is_refused_before_it_takes_memory(rle, problem):
    with pytest.raises(ValueError, match=problem):
        decode_mask(rle)


def test_random_masks_survive_the_way_there_and_back():
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.random(rng.integers(1, 40, 2)) < rng.random()
        flat = np.concatenate([[0], mask.T.ravel().astype(int), [2]])
        edges = np.flatnonzero(np.diff(flat))
        runs = np.diff(np.concatenate([[0], edges])).tolist()
        assert (decode_mask({"size": mask.shape, "counts": runs}) == mask).all()
