"""Scenes: motions go where their names say, nobody overlaps or leaves, draws use all that there is."""

import numpy as np
import pytest

from phantom_mega.errors import UserError
from phantom_mega.toyworld.backgrounds import BACKGROUNDS
from phantom_mega.toyworld.scenes import CAMERAS, LIGHTS, MOTIONS, Actor, camera_view, draw_scene, pose
from phantom_mega.toyworld.subjects import Subject, draw_subject

TIME = np.arange(17) / 16
STAR = Subject("star", "none", "plain", (250, 40, 40), (20, 200, 60))


def scenes(count, actors, seed=0):
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, [draw_subject(rng) for _ in range(actors)]) for _ in range(count)]


def way(motion):
    """(x, y, angle, scale) at all times, less those at the start."""
    p = pose(Actor(STAR, motion, (0.5, 0.5), 10.0, 0.4, False, travel=0.3), TIME)
    return p.x - p.x[0], p.y - p.y[0], p.angle - p.angle[0], p.scale / p.scale[0]


@pytest.mark.parametrize(
    ("motion", "end"),
    [
        ("stands still", (0, 0, 0)), ("moves left", (-0.3, 0, 0)), ("moves right", (0.3, 0, 0)),
        ("rises", (0, -0.3, 0)), ("falls", (0, 0.3, 0)), ("spins", (0, 0, 2 * np.pi)), ("jumps", (0, 0, 0)),
        ("grows", (0, 0, 0)),
    ],
)  # fmt: skip
def test_motions_end_where_their_names_say(motion, end):
    x, y, angle, scale = way(motion)
    assert np.allclose((x[-1], y[-1], angle[-1]), end)
    assert (scale[-1] > 1.5) if motion == "grows" else np.allclose(scale, 1)


def test_a_jump_goes_up_and_comes_back_twice_and_standing_is_still():
    y = way("jumps")[1]
    assert y.min() == pytest.approx(-0.3) and y.max() <= 1e-9 and np.allclose(y[[0, 8, 16]], 0)
    assert all(not change.any() for change in way("stands still")[:3])


def test_no_two_motions_are_the_same():
    ways = [np.concatenate(way(motion)) for motion in MOTIONS]
    assert all(np.abs(a - b).max() > 0.1 for i, a in enumerate(ways) for b in ways[:i])


def test_cameras_pan_zoom_or_stay():
    for camera, (pans, zooms) in {"static": (0, 0), "pan": (1, 0), "zoom": (0, 1)}.items():
        way, magnification = camera_view(camera, TIME)
        assert (np.ptp(way) > 0, np.ptp(magnification) > 0) == (pans, zooms)


@pytest.mark.parametrize("actors", [1, 2, 3, 4])
def test_bodies_stay_in_the_frame_and_off_each_other(actors):
    for scene in scenes(150, actors):
        poses = [pose(actor, TIME) for actor in scene.actors]
        for p in poses:
            assert (np.minimum(p.x, 1 - p.x) >= 0.3 * p.scale).all() and (
                np.minimum(p.y, 1 - p.y) >= 0.3 * p.scale
            ).all()
        for i, a in enumerate(poses):
            for b in poses[:i]:
                assert (np.hypot(a.x - b.x, a.y - b.y) > 0.8 * (a.scale + b.scale) / 2).all()


def test_of_two_the_first_is_on_the_left():
    for scene in scenes(100, 2):
        assert scene.actors[0].start[0] < scene.actors[1].start[0]


def test_draws_use_every_background_light_camera_and_motion():
    found = scenes(300, 1)
    assert {scene.background for scene in found} == set(BACKGROUNDS) and {scene.light for scene in found} == set(LIGHTS)
    assert {scene.camera for scene in found} == set(CAMERAS)
    assert {scene.actors[0].motion for scene in found} == set(MOTIONS)
    assert {scene.actors[0].flip for scene in found} == {True, False}


def test_what_looks_the_same_at_any_angle_does_not_spin():
    rng = np.random.default_rng(0)
    disk = Subject("circle", "none", "ring", (250, 40, 40), (20, 200, 60))
    assert "spins" not in {draw_scene(rng, [disk]).actors[0].motion for _ in range(150)}


def test_mistakes_are_named():
    with pytest.raises(UserError, match="5 actors; a scene has 1 to 4"):
        draw_scene(np.random.default_rng(0), [STAR] * 5)
    with pytest.raises(UserError, match="motion 'dances' is unknown; use one of stands still"):
        pose(Actor(STAR, "dances", (0.5, 0.5), 0.0, 0.4, False), TIME)
    with pytest.raises(UserError, match="camera 'drone' is unknown; use one of static"):
        camera_view("drone", TIME)
