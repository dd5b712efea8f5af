"""Pixels and masks: exact again, masks are what changes without the actor, light keeps hue, camera moves the world."""

import dataclasses

import cv2
import numpy as np
import pytest

from phantom_mega.errors import UserError
from phantom_mega.toyworld.backgrounds import BACKGROUNDS, tile
from phantom_mega.toyworld.render import render, render_masks
from phantom_mega.toyworld.samples import make_sample
from phantom_mega.toyworld.scenes import LIGHTS, Actor, Scene
from phantom_mega.toyworld.subjects import HUES, Subject, colour_name

RED = Subject("square", "none", "plain", (235, 40, 30), (40, 90, 250))


def scene(motion="stands still", subject=RED, background="snow", light="bright", camera="static", **actor):
    one = Actor(subject, motion, **{"start": (0.5, 0.5), "angle": 0.0, "size": 0.45, "flip": False} | actor)
    return Scene(background, light, camera, (one,))


def centre(mask):
    return np.array([axis.mean() for axis in np.nonzero(mask)])


def test_a_scene_gives_the_same_bytes_each_time_in_the_asked_size():
    one = make_sample(3, 5, actors=2).scene
    video = render(one, 9, 40, 56)
    assert video.shape == (9, 40, 56, 3) and video.dtype == np.uint8 and np.array_equal(video, render(one, 9, 40, 56))
    masks = render_masks(one, 9, 40, 56)
    assert masks.shape == (9, 2, 40, 56) and masks.dtype == bool


@pytest.mark.parametrize("actors", [1, 2, 4])
def test_masks_are_the_pixels_that_change_when_the_actor_is_removed(actors):
    for number in range(12):
        whole = make_sample(1, number, actors=actors).scene
        video, masks = render(whole), render_masks(whole)
        for one in range(actors):
            rest = dataclasses.replace(whole, actors=whole.actors[:one] + whole.actors[one + 1 :])
            changed = (video != render(rest)).any(-1)
            for frame in range(17):
                mask = masks[frame, one]
                assert changed[frame][mask].mean() > 0.99
                near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
                # What changes beyond the mask is the antialiased rim, or seen between another actor's.
                assert (changed[frame] & ~near).sum() <= 3


def test_masks_of_a_frame_are_disjoint_and_the_front_hides_the_back():
    back = Actor(RED, "stands still", (0.45, 0.5), 0.0, 0.45, False)
    front = dataclasses.replace(back, start=(0.6, 0.5))
    masks = render_masks(Scene("snow", "bright", "static", (back, front)), 1)[0]
    alone = render_masks(Scene("snow", "bright", "static", (front,)), 1)[0, 0]
    assert not masks.all(0).any() and np.array_equal(masks[1], alone)
    assert 0 < masks[0].sum() < alone.sum()


def test_one_actor_takes_45_percent_of_the_height_and_two_take_35():
    for actors, share in ((1, 0.45), (2, 0.35)):
        heights = []
        for number in range(40):
            one = make_sample(2, number, actors=actors).scene
            still = [dataclasses.replace(a, motion="stands still", angle=0.0) for a in one.actors]
            bare = [dataclasses.replace(a, subject=dataclasses.replace(a.subject, part="none")) for a in still]
            masks = render_masks(Scene(one.background, one.light, "static", (bare[0],)), 1, 128, 128)
            heights.append(np.ptp(np.nonzero(masks[0, 0])[0]) / 128)
        assert abs(np.mean(heights) - share) < 0.07


@pytest.mark.parametrize(("motion", "direction"), [("moves left", (0, -1)), ("falls", (1, 0)), ("rises", (-1, 0))])
def test_actors_go_where_the_motion_says(motion, direction):
    masks = render_masks(scene(motion, travel=0.25))[:, 0]
    moved = (centre(masks[-1]) - centre(masks[0])) / 32
    assert np.allclose(moved, np.multiply(direction, 0.25), atol=0.02)


def test_an_actor_that_spins_comes_round_and_one_that_leans_is_turned_clockwise():
    crescent = dataclasses.replace(RED, shape="crescent", part="tail")
    masks = render_masks(scene("spins", crescent))[:, 0]
    assert np.array_equal(masks[0], masks[-1]) and (masks[0] ^ masks[8]).mean() > 0.05
    hat = dataclasses.replace(RED, part="hat")
    upright, leaning = (centre(render_masks(scene(subject=hat, angle=angle), 1)[0, 0]) for angle in (0.0, 40.0))
    assert leaning[1] > upright[1] + 1  # the hat moves to the right


def test_flipping_mirrors_the_actor():
    tail = dataclasses.replace(RED, part="tail", texture="stripes")
    plain, flipped = (render_masks(scene(subject=tail, flip=flip), 1)[0, 0] for flip in (False, True))
    assert np.array_equal(flipped, plain[:, ::-1]) and not np.array_equal(flipped, plain)


def test_the_body_has_its_colour_and_light_keeps_its_hue():
    for light, gains in LIGHTS.items():
        pixel = render(scene(light=light), 1)[0, 16, 16]
        assert np.abs(pixel - np.multiply(RED.body, gains)).max() <= 1
    for name, hue in HUES.items():
        middle = np.uint8([[[(hue + 12) % 360 // 2, 220, 230]]])
        body = tuple(map(int, cv2.cvtColor(middle, cv2.COLOR_HSV2RGB)[0, 0]))
        assert colour_name(body) == name
        shown = render(scene(subject=dataclasses.replace(RED, body=body), light="dim"), 1)[0, 16, 16]
        assert colour_name(tuple(map(int, shown))) == name


def test_a_panning_camera_moves_the_world_to_the_left_and_a_zooming_one_brings_it_near():
    still, pan, zoom = (render_masks(scene(camera=camera))[:, 0] for camera in ("static", "pan", "zoom"))
    assert np.array_equal(still[0], still[-1])
    assert centre(pan[0])[1] - centre(pan[-1])[1] > 3
    assert zoom[-1].sum() > 1.3 * zoom[0].sum()
    empty = [dataclasses.replace(scene(camera=c, background="brick"), actors=()) for c in ("static", "pan", "zoom")]
    videos = [render(one) for one in empty]
    assert (videos[0][0] == videos[0][-1]).all()
    assert all((video[0] != video[-1]).any(-1).mean() > 0.2 for video in videos[1:])


def test_backgrounds_differ_clearly_in_any_light():
    for light in LIGHTS:
        means = [
            render(Scene(name, light, "static", (), place), 1)[0].reshape(-1, 3)
            for name in BACKGROUNDS
            for place in (0.0, 1.7)
        ]
        for i, a in enumerate(means):
            for j, b in enumerate(means[:i]):
                if i // 2 != j // 2:
                    assert np.abs(a.astype(int) - b).mean() > 12, (light, BACKGROUNDS[i // 2], BACKGROUNDS[j // 2])


def test_tiles_go_on_sideways_without_a_seam():
    for name in BACKGROUNDS:
        painted = tile(name).astype(int)
        inner = np.abs(np.diff(painted, axis=1)).sum(2).max(0)
        assert (
            np.abs(painted[:, 0] - painted[:, -1]).sum(1).mean()
            <= np.abs(np.diff(painted, axis=1)).sum(2).mean(0).max()
        )
        assert inner.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"background": "moon"}, "background 'moon' is unknown; use one of meadow"),
        ({"light": "neon"}, "light 'neon' is unknown; use one of bright"),
        ({"camera": "drone"}, "camera 'drone' is unknown; use one of static"),
    ],
)
def test_unknown_names_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        render(dataclasses.replace(scene(), **change), 5)


def test_sizes_below_one_are_refused():
    with pytest.raises(UserError, match="frames=0, height=32, width=32 must all be at least 1"):
        render(scene(), 0)
