"""Crops that are cut upright, and the training of who they show."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from phantom_mega.toyworld import identity_training as training
from phantom_mega.toyworld.identity_network import SIDE, IdentityNetwork, cut_upright
from phantom_mega.toyworld.latents import fit_vae
from phantom_mega.toyworld.render import render
from phantom_mega.toyworld.scenes import Actor, Scene
from tests.toyworld.ideal import BLUE_CIRCLE, RED_STAR


def crop_of(actor: Actor, width: int = 96) -> torch.Tensor:
    """The crop of an actor in the night, from a frame of 96 lines."""
    frame = render(Scene("night", "bright", "static", (actor,)), 1, 96, width)
    aspect = width / 96
    centre = torch.tensor([[(actor.start[0] - 0.5) * aspect, actor.start[1] - 0.5]])
    inputs = torch.from_numpy(frame).movedim(-1, 1).float()
    return cut_upright(inputs, centre, torch.tensor([actor.size]), torch.deg2rad(torch.tensor([actor.angle])))[0]


@pytest.mark.parametrize(
    "change, width",
    [({"angle": 35.0}, 96), ({"angle": -170.0}, 96), ({"size": 0.3}, 96), ({"start": (0.35, 0.6)}, 96), ({}, 192)],
)
def test_a_crop_does_not_depend_on_where_how_large_and_how_turned_its_subject_is(change, width):
    usual = Actor(RED_STAR, "stands still", (0.5, 0.5), 0.0, 0.45, False)
    one, other = crop_of(usual), crop_of(replace(usual, **change), width)
    drawn = (one - torch.tensor([28.0, 30.0, 68.0])[:, None, None]).abs().sum(0) > 150  # not the night
    assert drawn.sum() > 60
    stranger = crop_of(replace(usual, subject=BLUE_CIRCLE))
    same, different = ((one - x).abs().sum(0)[drawn].mean() for x in (other, stranger))
    assert same < 0.35 * different


def test_upright_is_up():
    hat = replace(RED_STAR, part="hat", texture="plain")
    crop = crop_of(Actor(hat, "stands still", (0.5, 0.5), 90.0, 0.4, False))
    accent = (crop - torch.tensor(hat.accent, dtype=torch.float32)[:, None, None]).abs().sum(0) < 90
    rows, columns = torch.nonzero(accent, as_tuple=True)
    assert rows.float().mean() < SIDE / 4 and abs(columns.float().mean() - (SIDE - 1) / 2) < 1


def test_batches_are_functions_of_seed_and_step_and_hold_what_their_truth_says():
    first, again, other = training.make_crops(3, 5), training.make_crops(3, 5), training.make_crops(3, 6)
    assert torch.equal(first.frames, again.frames) and first.frames.shape != other.frames.shape
    cut = cut_upright(first.frames, first.centre, first.size, first.angle)
    # The middle of a plain body has the body's colour, dimmed by the light; of a crescent it may lie outside.
    plain = (first.kinds["texture"] == 0) & (first.kinds["shape"] != 7) & (first.light == 0)
    middle = cut[plain][:, :, SIDE // 2 - 1 : SIDE // 2 + 1, SIDE // 2 - 1 : SIDE // 2 + 1].mean((2, 3))
    assert plain.sum() >= 5
    assert (middle - 255 * first.numbers["body"][plain]).abs().mean() < 25


def test_accents_and_mirrors_that_are_not_seen_are_not_taught():
    crops = training.make_crops(0, 0)
    unseen = (crops.kinds["texture"] == 0) & (crops.kinds["part"] == 0)
    assert unseen.any() and crops.numbers["accent"][unseen].isnan().all()
    assert crops.numbers["accent"][~unseen].isfinite().all()
    tail_or_crescent = (crops.kinds["part"] == 4) | (crops.kinds["shape"] == 7)
    assert crops.numbers["flip"][tail_or_crescent].isfinite().all()
    assert crops.numbers["flip"][~tail_or_crescent].isnan().float().mean() > 0.9


def test_a_vae_blurs_some_frames_of_a_batch():
    vae = fit_vae(8, videos=4)
    sharp, blurred = training.make_crops(0, 1), training.make_crops(0, 1, vae)
    assert len(blurred.frames) > len(sharp.frames)


def test_the_loss_of_one_batch_falls_and_reaches_every_weight():
    crops = training.make_crops(0, 0)
    torch.manual_seed(0)
    network = IdentityNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    losses = []
    for _ in range(8):
        loss = training.identity_loss(network, crops, np.random.default_rng(0), "cpu", False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in network.parameters())
