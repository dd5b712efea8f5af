"""Training of the judge's identity network on crops of single frames, cut as inexactly as a judge's tracks are.

n: crops.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.toyworld.identity_network import IdentityNetwork, cut_upright
from phantom_mega.toyworld.latents import round_trip
from phantom_mega.toyworld.render import render
from phantom_mega.toyworld.scenes import LIGHTS, Actor, Scene, draw_scene, pose, seen_pose
from phantom_mega.toyworld.shapes import flips_visibly, turns_visibly
from phantom_mega.toyworld.spoiling import bfloat16_is_fast, learning_rate, spoil
from phantom_mega.toyworld.subjects import PARTS, SHAPES, TEXTURES, draw_subject, shows_accent

SCENES = 64  # of a batch
HEIGHT = 32
ACTOR_WEIGHTS = (0.4, 0.4, 0.1, 0.1)  # of 1 to 4
VAE_SHARE, VAE_FRAMES, CLIP_FRAMES = 0.2, 3, 17  # of the scenes; frames taken of each such clip
LARGE = (0.75, 2.0)  # times a lone actor's size: a reference fills its frame
SIZES = (0.8, 1.2)  # of several actors
LEARNING_RATE = 2e-3
# How far a track is off: standard deviations in body heights, in logs of the size, in degrees.
OFF_CENTRE, OFF_SIZE, OFF_ANGLE = 0.07, 0.08, 10.0
WEIGHTS = {"body": 6.0, "accent": 6.0, "turn": 2.0, "shape": 1.5}


@dataclass(frozen=True)
class Crops:
    """A batch.

    Attributes:
        frames: uint8 values as float [n, 3, H, W], the frame of each crop.
        centre, size, angle: float [n, 2], [n], [n], true, as `cut_upright` takes them.
        light: long [n].
        kinds: name -> long [n] of `shape`, `texture`, `part`.
        numbers: name -> float [n, ...] of `body`, `accent`, `flip`; nan where it cannot be told.
        turns: bool [n], whether a turn is seen.
    """

    frames: torch.Tensor
    centre: torch.Tensor
    size: torch.Tensor
    angle: torch.Tensor
    light: torch.Tensor
    kinds: dict[str, torch.Tensor]
    numbers: dict[str, torch.Tensor]
    turns: torch.Tensor


def train_identity(
    seed: int, steps: int, device: torch.device | str = "cpu", progress: bool = True, vae: LinearVideoVAE | None = None
) -> IdentityNetwork:
    """Train on renders of all subjects; the arguments are those of `judge_training.train_judge`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = IdentityNetwork()
    network = network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    half = bfloat16_is_fast(torch.device(device))
    with tqdm(total=steps, desc="train identity", unit="it", disable=not progress, dynamic_ncols=True) as bar:
        for step in range(steps):
            crops = make_crops(seed, step, vae)
            loss = identity_loss(network, crops, np.random.default_rng((seed, step, 3)), device, half)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
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
    unknown = float("nan")
    known = {"shape": SHAPES, "texture": TEXTURES, "part": PARTS}
    return Crops(
        torch.from_numpy(np.stack(frames)).movedim(-1, 1).float(),
        torch.tensor(np.stack(centre), dtype=torch.float32), torch.tensor(size, dtype=torch.float32),
        torch.tensor(angle, dtype=torch.float32),
        torch.tensor([list(LIGHTS).index(scene.light) for scene in scenes]),
        {name: torch.tensor([names.index(getattr(subject, name)) for subject in cast])
         for name, names in known.items()},
        {
            "body": torch.tensor([subject.body for subject in cast]) / 255,
            "accent": torch.tensor([subject.accent if shows_accent(subject) else (unknown,) * 3 for subject in cast])
            / 255,
            "flip": torch.tensor(
                [[float(actor.flip) if flips_visibly(*look) else unknown] for actor, look in zip(actors, looks)]
            ),
        },
        torch.tensor([turns_visibly(*look) for look in looks]),
    )  # fmt: skip


def identity_loss(
    network: IdentityNetwork, crops: Crops, rng: np.random.Generator, device: torch.device | str, half: bool
) -> torch.Tensor:
    """Sum of the weighted losses on spoiled frames, cut beside the truth."""
    frames = spoil(crops.frames[:, None], rng)[:, 0]
    off = torch.from_numpy(rng.standard_normal((4, len(frames)))).float()
    turn = torch.deg2rad(OFF_ANGLE * off[3])
    size = crops.size * torch.exp(OFF_SIZE * off[2])
    centre = crops.centre + OFF_CENTRE * crops.size[:, None] * off[:2].T
    cut = cut_upright(frames, centre, size, crops.angle - turn).to(device)
    light = F.one_hot(crops.light, len(LIGHTS)).float().to(device)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
        told = {name: value.float() for name, value in network(cut, light).items()}
    losses = {name: F.cross_entropy(told[name], target.to(device)) for name, target in crops.kinds.items()}
    for name, target in crops.numbers.items():
        known = target.isfinite().to(device)
        value, target = told[name][known], target.to(device)[known]
        losses[name] = (F.binary_cross_entropy_with_logits if name == "flip" else F.l1_loss)(value, target)
    target = torch.stack([turn.sin(), turn.cos()], 1).to(device)
    losses["turn"] = F.l1_loss(told["turn"][crops.turns], target[crops.turns])
    return sum(WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items())
