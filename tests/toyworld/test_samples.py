"""Samples: pure functions, splits without a common subject, references that are what their kind says."""

import numpy as np
import pytest

from phantom_mega.errors import UserError
from phantom_mega.toyworld.render import render, render_masks
from phantom_mega.toyworld.samples import LEAST_TURN, make_sample
from phantom_mega.toyworld.subjects import held_out


def same(a, b):
    images = [np.array_equal(x.image, y.image) for x, y in zip(a.references, b.references, strict=True)]
    return (a.key, a.scene, a.caption, a.kind) == (b.key, b.scene, b.caption, b.kind) and all(images)


@pytest.mark.parametrize("kind", ["cross", "in"])
def test_samples_are_functions_of_seed_split_and_number(kind):
    first = make_sample(1, 2, kind=kind, actors=2)
    assert same(first, make_sample(1, 2, kind=kind, actors=2))
    for other in (make_sample(2, 2, kind=kind), make_sample(1, 3, kind=kind), make_sample(1, 2, split="validation")):
        assert other.scene != first.scene and other.key != first.key


def test_the_clip_is_the_same_with_either_kind_and_any_style():
    cross, inside = make_sample(1, 2, kind="cross"), make_sample(1, 2, kind="in", style="vague")
    assert cross.scene == inside.scene and cross.key == inside.key
    assert not np.array_equal(cross.references[0].image.mean(), inside.references[0].image.mean())


def test_held_out_subjects_are_never_in_train_and_alone_in_validation():
    for number in range(200):
        shown = [a.subject for a in make_sample(0, number, actors=2).scene.actors]
        assert not any(map(held_out, shown))
    for number in range(40):
        sample = make_sample(0, number, split="validation", actors=2)
        assert all(held_out(actor.subject) for actor in sample.scene.actors)


def test_cross_references_show_the_subject_in_another_scene():
    for number in range(120):
        sample = make_sample(0, number, actors=1 + number % 3)
        for actor, reference in zip(sample.scene.actors, sample.references, strict=True):
            [shown] = reference.scene.actors
            assert shown.subject == actor.subject == reference.subject
            assert reference.scene.background != sample.scene.background
            assert reference.scene.light != sample.scene.light
            assert abs(shown.angle - actor.angle) >= LEAST_TURN
            assert shown.size > actor.size and reference.frame == 0


@pytest.mark.parametrize("kind", ["cross", "in"])
@pytest.mark.parametrize("actors", [1, 2])
def test_references_are_pixel_equal_to_the_box_of_their_scene(kind, actors):
    for number in range(40):
        sample = make_sample(5, number, kind=kind, actors=actors, height=32, width=48, frames=9)
        for place, (reference, actor) in enumerate(zip(sample.references, sample.scene.actors, strict=True)):
            frames = 9 if kind == "in" else 1
            assert (reference.scene is sample.scene) == (kind == "in") and reference.subject == actor.subject
            x0, y0, x1, y1 = reference.box
            source = render(reference.scene, frames, 32, 48)[reference.frame]
            mask = render_masks(reference.scene, frames, 32, 48)[reference.frame, place if kind == "in" else 0]
            assert np.array_equal(reference.image, source[y0:y1, x0:x1])
            assert np.array_equal(reference.mask, mask[y0:y1, x0:x1]) and reference.mask.sum() == mask.sum() > 0


def test_crops_are_square_but_for_the_frames_edges_and_full_of_the_subject():
    for number in range(60):
        [reference] = make_sample(0, number).references
        height, width = reference.image.shape[:2]
        assert min(height, width) >= 18 and max(height, width) <= 32 and abs(height - width) <= 2
        assert reference.mask.mean() > 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "split 'test' is unknown; use train or validation"),
        ({"kind": "out"}, "kind 'out' is unknown; use cross or in"),
        ({"style": "loud"}, "style 'loud' is unknown; use plain or distinct or vague"),
        ({"actors": 0}, "0 actors; a scene has 1 to 4"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(UserError, match=message):
        make_sample(0, 0, **change)
