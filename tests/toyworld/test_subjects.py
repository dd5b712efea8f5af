"""Subjects: millions of identities, colours that are told apart, and a rule that holds a tenth of them out."""

import colorsys
from itertools import product

import numpy as np
import pytest

from phantom_mega.toyworld.subjects import (
    HUES,
    LEAST_LUMA,
    LEAST_LUMA_STEP,
    PARTS,
    SHAPES,
    TEXTURES,
    Subject,
    colour_name,
    draw_subject,
    held_out,
    identity_key,
    luma,
)  # fmt: skip


def drawn(count, seed=0, **options):
    rng = np.random.default_rng(seed)
    return [draw_subject(rng, **options) for _ in range(count)]


def hue_colour(hue):
    return tuple(round(255 * value) for value in colorsys.hsv_to_rgb(hue / 360, 1, 1))


def test_there_are_millions_of_identities():
    subjects = drawn(6000)
    assert {(s.shape, s.part, s.texture) for s in subjects} == set(product(SHAPES, PARTS, TEXTURES))
    # Of n drawn from K alike, n^2 / 2K pairs would be equal: none among 18 million pairs, so K is in the millions.
    assert len({identity_key(subject) for subject in subjects}) == len(subjects)
    # Counted: the colours drawn here, in steps of 16 levels that an eye tells apart, go with all 240 looks.
    coarse = {tuple(value // 16 for value in (*s.body, *s.accent)) for s in subjects}
    assert len(SHAPES) * len(PARTS) * len(TEXTURES) * len(coarse) > 1_000_000


def test_the_key_tells_every_attribute_apart():
    first = Subject("star", "ears", "dots", (208, 42, 16), (42, 196, 224))
    others = [
        Subject("heart", "ears", "dots", (208, 42, 16), (42, 196, 224)),
        Subject("star", "hat", "dots", (208, 42, 16), (42, 196, 224)),
        Subject("star", "ears", "belt", (208, 42, 16), (42, 196, 224)),
        Subject("star", "ears", "dots", (208, 42, 17), (42, 196, 224)),
        Subject("star", "ears", "dots", (208, 42, 16), (42, 196, 225)),
    ]
    assert identity_key(first) == "star-ears-dots-d02a10-2ac4e0"
    assert len({identity_key(subject) for subject in (first, *others)}) == 6


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((255, 0, 0), "red"), ((250, 130, 20), "orange"), ((250, 220, 30), "yellow"), ((30, 200, 40), "green"),
        ((40, 60, 240), "blue"), ((150, 50, 220), "purple"), ((250, 60, 180), "pink"), ((255, 0, 30), "red"),
    ],
)  # fmt: skip
def test_colours_have_the_names_people_give_them(rgb, name):
    assert colour_name(rgb) == name


def test_names_follow_the_hue_alone_and_cover_the_circle():
    assert {colour_name(hue_colour(hue)) for hue in range(360)} == set(HUES)
    assert colour_name((120, 20, 20)) == colour_name((255, 120, 120)) == "red"


def test_body_and_accent_differ_in_name_and_brightness_and_are_not_dark():
    for subject in drawn(500):
        assert colour_name(subject.body) != colour_name(subject.accent)
        assert abs(luma(subject.body) - luma(subject.accent)) >= LEAST_LUMA_STEP
        assert min(luma(subject.body), luma(subject.accent)) >= LEAST_LUMA


def test_a_tenth_of_all_combinations_is_held_out_and_every_name_trains():
    colours = {colour_name(hue_colour(hue)): hue_colour(hue) for hue in range(360)}
    subjects = [Subject(*parts, (1, 2, 3)) for parts in product(SHAPES, PARTS, TEXTURES, colours.values())]
    share = np.mean([held_out(subject) for subject in subjects])
    assert 0.08 < share < 0.12
    train = [subject for subject in subjects if not held_out(subject)]
    for attribute, names in (("shape", SHAPES), ("part", PARTS), ("texture", TEXTURES)):
        assert {getattr(subject, attribute) for subject in train} == set(names)


def test_whether_one_is_held_out_is_the_same_for_all_shades_and_accents():
    one = Subject("star", "hat", "dots", (255, 0, 0), (0, 200, 0))
    assert held_out(one) == held_out(Subject("star", "hat", "dots", (220, 30, 20), (0, 0, 250)))


def test_drawing_keeps_to_the_side_that_is_asked_for():
    assert all(held_out(subject) for subject in drawn(60, from_held_out=True))
    assert not any(held_out(subject) for subject in drawn(300, from_held_out=False))
    assert 0.03 < np.mean([held_out(subject) for subject in drawn(600)]) < 0.2


def test_the_same_generator_draws_the_same():
    assert drawn(5, seed=3) == drawn(5, seed=3) != drawn(5, seed=4)
