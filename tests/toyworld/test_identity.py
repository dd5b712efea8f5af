"""Crops that are cut upright, and the training of who they show."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from phantom_mega.toyworld import identity_training as training
from phantom_mega.toyworld.identity_network import SIDE, IdentityNetwork, cut_upright, refined, turned
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
    # The middle of a disk with a belt: the lower half is accent; a ring's is body. Both differ from the outline.
    disks = cut[(first.kinds["shape"] == 0)]
    assert len(disks) >= 5
    assert disks[:, :, SIDE // 2, SIDE // 2].amax(1).min() > 40


def test_mirrors_that_are_not_seen_are_not_taught():
    crops = training.make_crops(0, 0)
    tail_or_crescent = (crops.kinds["part"] == 4) | (crops.kinds["shape"] == 7)
    assert crops.flip[tail_or_crescent].isfinite().all()
    assert crops.flip[~tail_or_crescent].isnan().float().mean() > 0.9


def test_a_refinement_by_the_true_residuals_reaches_the_truth():
    generator = torch.Generator().manual_seed(0)
    true_centre, centre = (0.3 * torch.randn(9, 2, generator=generator) for _ in range(2))
    true_size, size = (0.3 + torch.rand(9, generator=generator) for _ in range(2))
    true_angle, angle = (torch.randn(9, generator=generator) for _ in range(2))
    turn = true_angle - angle
    told = {
        "shift": turned(true_centre - centre, -angle) / size[:, None],
        "scale": torch.log(true_size / size)[:, None].clamp(-0.5, 0.5),
        "turn": torch.stack([turn.sin(), turn.cos()], 1),
    }
    new_centre, new_size, new_angle = refined(told, centre, size, angle)
    assert torch.allclose(new_centre, true_centre, atol=1e-5)
    near = torch.log(true_size / size).abs() < 0.5
    assert near.any() and torch.allclose(new_size[near], true_size[near])
    assert torch.allclose(torch.cos(new_angle - true_angle), torch.ones(9))


def test_a_crop_that_lies_to_the_left_of_its_subject_must_go_right():
    """A crop shifted in the frame by a known way shows its subject shifted the other way in the crop's own axes."""
    actor = Actor(replace(RED_STAR, part="none"), "stands still", (0.5, 0.5), 90.0, 0.4, False)
    frame = torch.from_numpy(render(Scene("night", "bright", "static", (actor,)), 1, 96, 96)).movedim(-1, 1).float()
    beside = cut_upright(frame, torch.tensor([[0.0, -0.1]]), torch.tensor([0.4]), torch.deg2rad(torch.tensor([90.0])))
    drawn = (beside[0] - torch.tensor(RED_STAR.body, dtype=torch.float32)[:, None, None]).abs().sum(0) < 120
    # The truth lies below in the frame. The crop is turned clockwise by 90 degrees: its x axis points down.
    way = turned(torch.tensor([[0.0, 0.1]]), torch.deg2rad(torch.tensor([-90.0])))[0] / 0.4
    assert way.tolist() == pytest.approx([0.25, 0.0], abs=1e-5)
    columns = torch.nonzero(drawn)[:, 1].float().mean() - (SIDE - 1) / 2
    assert columns / (SIDE / 1.9) == pytest.approx(0.25, abs=0.08)


def test_a_vae_blurs_some_frames_of_a_batch():
    vae = fit_vae(8, videos=4)
    sharp, blurred = training.make_crops(0, 1), training.make_crops(0, 1, vae)
    assert len(blurred.frames) > len(sharp.frames)


def test_the_loss_of_one_batch_falls_and_reaches_every_weight(monkeypatch):
    monkeypatch.setattr(training, "SCENES", 8)
    crops = training.make_crops(0, 0)
    torch.manual_seed(0)
    network = IdentityNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    losses = []
    for _ in range(25):
        loss = training.identity_loss(network, crops, np.random.default_rng(0), "cpu", False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in network.parameters())


def test_a_short_training_reads_subjects_that_it_was_not_shown(monkeypatch):
    monkeypatch.setattr(training, "SCENES", 12)
    network = training.train_identity(0, 40, progress=False).eval()
    torch.manual_seed(0)
    untrained = IdentityNetwork().eval()
    crops = training.make_crops(9, 0)
    before, after = (
        float(training.identity_loss(which, crops, np.random.default_rng(1), "cpu", False).detach())
        for which in (untrained, network)
    )
    assert after < 0.9 * before
