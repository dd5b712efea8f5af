"""Colours by least squares: exact where the silhouette is known, in any light, also where subjects are mirrored."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from phantom_mega.toyworld.colours import fit_colours, shares
from phantom_mega.toyworld.identity_network import cut_upright
from phantom_mega.toyworld.latents import fit_vae, round_trip
from phantom_mega.toyworld.render import render
from phantom_mega.toyworld.scenes import LIGHTS, Actor, Scene
from phantom_mega.toyworld.subjects import draw_subject
from tests.toyworld.ideal import RED_STAR


def crops_of(subject, light, flip=False, vae=None):
    """float [1, 3, S, S] of a subject in a frame of 32 lines."""
    actor = Actor(subject, "stands still", (0.5, 0.5), 10.0, 0.45, flip)
    frame = render(Scene("sea", light, "static", (actor,)), 1)
    frame = round_trip(vae, frame) if vae else frame
    pixels = torch.from_numpy(frame).movedim(-1, 1).float()
    return cut_upright(
        pixels, torch.zeros(1, 2), torch.tensor([actor.size]), torch.deg2rad(torch.tensor([10.0]))
    ).numpy()


def error(found, true):
    return float(np.linalg.norm(np.subtract(found, true)))


@pytest.mark.parametrize("light", LIGHTS)
def test_colours_come_back_in_every_light(light):
    errors = []
    for seed in range(25):
        subject = draw_subject(np.random.default_rng(seed))
        look = (subject.shape, subject.part, subject.texture)
        body, accent = fit_colours(crops_of(subject, light), np.ones(1), look, False, light)
        errors.append(error(body, subject.body))
        if subject.texture != "plain":
            errors.append(error(accent, subject.accent))
    assert np.mean(errors) < 20  # of 441


def test_the_wrong_light_is_the_wrong_colour():
    look = (RED_STAR.shape, RED_STAR.part, RED_STAR.texture)
    crops = crops_of(RED_STAR, "dim")
    right, wrong = (fit_colours(crops, np.ones(1), look, False, light)[0] for light in ("dim", "bright"))
    assert error(right, RED_STAR.body) < error(wrong, RED_STAR.body) - 20


def test_a_mirrored_subject_is_fitted_mirrored():
    tail = replace(RED_STAR, shape="crescent", texture="plain")
    look = ("crescent", "tail", "plain")
    crops = crops_of(tail, "bright", flip=True)
    right, wrong = (fit_colours(crops, np.ones(1), look, flip, "bright") for flip in (True, False))
    assert error(right[0], tail.body) + error(right[1], tail.accent) < 40
    assert error(wrong[0], tail.body) + error(wrong[1], tail.accent) > 60


def test_weights_choose_among_frames():
    look = (RED_STAR.shape, RED_STAR.part, RED_STAR.texture)
    both = np.concatenate([crops_of(RED_STAR, "bright"), np.zeros((1, 3, 28, 28), np.float32)])
    body, _ = fit_colours(both, np.array([1.0, 0.0]), look, False, "bright")
    assert error(body, RED_STAR.body) < 25


def test_colours_survive_a_vae():
    vae = fit_vae(48, videos=24)
    look = (RED_STAR.shape, RED_STAR.part, RED_STAR.texture)
    body, accent = fit_colours(crops_of(RED_STAR, "bright", vae=vae), np.ones(1), look, False, "bright")
    assert error(body, RED_STAR.body) < 60 and error(accent, RED_STAR.accent) < 60


def test_an_accent_that_nothing_shows_is_grey():
    plain = replace(RED_STAR, part="none", texture="plain")
    _, accent = fit_colours(crops_of(plain, "bright"), np.ones(1), ("star", "none", "plain"), False, "bright")
    assert accent == pytest.approx((128, 128, 128), abs=1)


def test_shares_of_a_pixel_are_at_most_one():
    planes = shares("heart", "hat", "dots", False)
    assert planes.min() >= 0 and planes.sum(0).max() <= 1 + 1e-6
    assert all(plane.sum() > 5 for plane in planes)
