"""Label maps: silhouettes differ at 14 pixels at any angle, the body colour prevails, parts are seen."""

from itertools import combinations, product

import cv2
import numpy as np
import pytest

from phantom_mega.toyworld.shapes import ACCENT, BODY, EXTENT, NOTHING, OUTLINE, PER_UNIT, SIDE, label_map
from phantom_mega.toyworld.subjects import PARTS, SHAPES, TEXTURES

LOOKS = list(product(SHAPES, PARTS, TEXTURES))


def small(labels, angle):
    """Coverage of a silhouette whose body is 14 pixels high, turned by some degrees."""
    turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), angle, 1)
    area = cv2.warpAffine((labels != NOTHING).astype(np.float32), turn, (SIDE, SIDE))
    return cv2.resize(area, (round(28 * EXTENT),) * 2, interpolation=cv2.INTER_AREA)


def test_nothing_reaches_the_edge_and_the_body_is_about_one_high():
    for look in LOOKS:
        labels = label_map(*look)
        assert not (labels[[0, -1]].any() or labels[:, [0, -1]].any()), look
    for shape in SHAPES:
        rows = np.flatnonzero(np.isin(label_map(shape, "none", "plain"), (BODY, ACCENT)).any(1))
        assert 0.85 < len(rows) / PER_UNIT < 1.2, shape


@pytest.mark.parametrize("pair", combinations(SHAPES, 2), ids="-".join)
def test_silhouettes_differ_at_14_pixels_at_any_angle(pair):
    first, second = (label_map(shape, "none", "plain") for shape in pair)
    overlaps = []
    for angle in range(0, 360, 15):
        a, b = small(first, 0), small(second, angle)
        overlaps.append(np.minimum(a, b).sum() / np.maximum(a, b).sum())
    assert max(overlaps) < 0.87


def test_the_body_colour_prevails_on_every_body_so_that_captions_name_it():
    for shape, texture in product(SHAPES, TEXTURES):
        labels = label_map(shape, "none", texture)
        body, accent = (labels == BODY).sum(), (labels == ACCENT).sum()
        assert body > accent, (shape, texture)
        assert (accent == 0) if texture == "plain" else (accent > 0.2 * body), (shape, texture)


def test_every_part_adds_accent_outside_the_body():
    for shape, part in product(SHAPES, PARTS[1:]):
        bare = label_map(shape, "none", "plain")
        added = (label_map(shape, part, "plain") == ACCENT) & (bare == NOTHING)
        assert added.sum() > 0.04 * PER_UNIT**2, (shape, part)


def test_the_outline_encloses_all_colour():
    for look in LOOKS[::7]:
        labels = label_map(*look)
        coloured = np.isin(labels, (BODY, ACCENT))
        grown = cv2.dilate(coloured.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert (labels[grown & ~coloured] == OUTLINE).all(), look
