"""Training of the judge's identity network on crops of single frames, cut as inexactly as a judge's tracks are.

n: crops.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.toyworld.identity_network import IdentityNetwork, cut_upright, turned
from phantom_mega.toyworld.latents import round_trip
from phantom_mega.toyworld.render import render
from phantom_mega.toyworld.scenes import Actor, Scene, draw_scene, pose, seen_pose
from phantom_mega.toyworld.shapes import flips_visibly, turns_visibly
from phantom_mega.toyworld.spoiling import bfloat16_is_fast, fit, new_network, spoil
from phantom_mega.toyworld.subjects import PARTS, SHAPES, TEXTURES, draw_subject

SCENES = 64  # of a batch
HEIGHT = 32
ACTOR_WEIGHTS = (0.4, 0.4, 0.1, 0.1)  # of 1 to 4
VAE_SHARE, VAE_FRAMES, CLIP_FRAMES = 0.2, 3, 17  # of the scenes; frames taken of each such clip
LARGE = (0.75, 2.2)  # times a lone actor's size: a reference fills its frame
SIZES = (0.8, 1.2)  # of several actors
LEARNING_RATE = 2e-3
# How far a track is off: standard deviations in body heights, in logs of the size, in degrees; all of them times a
# factor that is drawn for each crop, because a crop is cut again from where the network says it should be.
OFF_CENTRE, OFF_SIZE, OFF_ANGLE = 0.1, 0.13, 14.0
OFF_FACTOR = (0.1, 1.5)
WEIGHTS = {"turn": 2.0, "shift": 6.0, "scale": 4.0, "shape": 1.5}


@dataclass(frozen=True)
class Crops:
    """A batch.

    Attributes:
        frames: uint8 values as float [n, 3, H, W], the frame of each crop.
        centre, size, angle: float [n, 2], [n], [n], true, as `cut_upright` takes them.
        kinds: name -> long [n] of `shape`, `texture`, `part`.
        flip: float [n, 1]; nan where it cannot be told.
        turns: bool [n], whether a turn is seen.
    """

    frames: torch.Tensor
    centre: torch.Tensor
    size: torch.Tensor
    angle: torch.Tensor
    kinds: dict[str, torch.Tensor]
    flip: torch.Tensor
    turns: torch.Tensor


def train_identity(
    seed: int, steps: int, device: torch.device | str = "cpu", progress: bool = True, vae: LinearVideoVAE | None = None
) -> IdentityNetwork:
    """Train on renders of all subjects; the arguments are those of `judge_training.train_judge`."""
    network, optimizer = new_network(IdentityNetwork, seed, device, LEARNING_RATE)
    half = bfloat16_is_fast(torch.device(device))

    def loss_at(step: int) -> torch.Tensor:
        crops = make_crops(seed, step, vae)
        return identity_loss(network, crops, np.random.default_rng((seed, step, 3)), device, half)

    fit(network, optimizer, steps, loss_at, "train identity", progress)
    return network.float().cpu()


def make_crops(seed: int, step: int, vae: LinearVideoVAE | None = None) -> Crops:
    """A batch; a function of its arguments."""
    rng = np.random.default_rng((seed, step, 2))
    rows = []
    for _ in range(SCENES):
        count = int(rng.choice(4, p=ACTOR_WEIGHTS)) + 1
        scene = draw_scene(rng, [draw_subject(rng) for _ in range(count)])
        low, high = np.log(LARGE if count == 1 else SIZES)
        scale = float(np.exp(rng.uniform(low, high)))
        scene = replace(scene, actors=tuple(_vary(rng, actor, scale) for actor in scene.actors))
        if vae is not None and rng.random() < VAE_SHARE:
            video = round_trip(vae, render(scene, CLIP_FRAMES, HEIGHT, HEIGHT))
            times = rng.choice(CLIP_FRAMES, VAE_FRAMES, replace=False)
        else:
            video, times = render(scene, 1, HEIGHT, HEIGHT), [0]
        for number in range(count):
            centre, size = seen_pose(scene, number, len(video))
            angle = pose(scene.actors[number], np.arange(len(video)) / max(1, len(video) - 1)).angle
            rows += [(video[time], scene, number, centre[time], size[time], angle[time]) for time in times]
    return _stack(rows)


def _vary(rng: np.random.Generator, actor: Actor, scale: float) -> Actor:
    """Another size; one that spins is seen at any angle."""
    turn = float(rng.uniform(0, 360)) if actor.motion == "spins" else 0.0
    return replace(actor, size=actor.size * scale, angle=actor.angle + turn)


def _stack(rows: list[tuple[np.ndarray, Scene, int, np.ndarray, float, float]]) -> Crops:
    frames, scenes, numbers, centre, size, angle = zip(*rows)
    actors = [scene.actors[number] for scene, number in zip(scenes, numbers)]
    cast = [actor.subject for actor in actors]
    looks = [(subject.shape, subject.part, subject.texture) for subject in cast]
    known = {"shape": SHAPES, "texture": TEXTURES, "part": PARTS}
    flips = [float(actor.flip) if flips_visibly(*look) else float("nan") for actor, look in zip(actors, looks)]
    return Crops(
        torch.from_numpy(np.stack(frames)).movedim(-1, 1).float(),
        torch.tensor(np.stack(centre), dtype=torch.float32), torch.tensor(size, dtype=torch.float32),
        torch.tensor(angle, dtype=torch.float32),
        {name: torch.tensor([names.index(getattr(subject, name)) for subject in cast])
         for name, names in known.items()},
        torch.tensor(flips)[:, None], torch.tensor([turns_visibly(*look) for look in looks]),
    )  # fmt: skip


def identity_loss(
    network: IdentityNetwork, crops: Crops, rng: np.random.Generator, device: torch.device | str, half: bool
) -> torch.Tensor:
    """Sum of the weighted losses on spoiled frames, cut beside the truth."""
    frames = spoil(crops.frames[:, None], rng)[:, 0]
    off = torch.from_numpy(rng.standard_normal((4, len(frames))) * rng.uniform(*OFF_FACTOR, len(frames))).float()
    turn = torch.deg2rad(OFF_ANGLE * off[3])
    size, angle = crops.size * torch.exp(OFF_SIZE * off[2]), crops.angle - turn
    centre = crops.centre + OFF_CENTRE * crops.size[:, None] * off[:2].T
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
        told = {name: value.float().cpu() for name, value in
                network(cut_upright(frames, centre, size, angle).to(device)).items()}  # fmt: skip
    losses = {name: F.cross_entropy(told[name], target) for name, target in crops.kinds.items()}
    known = crops.flip.isfinite()
    losses["flip"] = F.binary_cross_entropy_with_logits(told["flip"][known], crops.flip[known])
    target = torch.stack([turn.sin(), turn.cos()], 1)
    losses["turn"] = F.l1_loss(told["turn"][crops.turns], target[crops.turns])
    losses["shift"] = F.l1_loss(told["shift"], turned(crops.centre - centre, -angle) / size[:, None])
    losses["scale"] = F.l1_loss(told["scale"][:, 0], torch.log(crops.size / size))
    return sum(WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items())
