"""Training data of a judge, drawn without end from the toy world and spoiled as generated videos are, and its training.

Axes: B videos, K frames, A subjects (padded to `MAX_ACTORS`), H W pixels, h w cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.toyworld.backgrounds import BACKGROUNDS
from phantom_mega.toyworld.identity_training import train_identity
from phantom_mega.toyworld.judge import HEIGHT, Judge
from phantom_mega.toyworld.judge_network import CELL, FRAMES, SUBJECT_OUTPUTS, JudgeNetwork, cell_places
from phantom_mega.toyworld.latents import round_trip
from phantom_mega.toyworld.render import render, render_masks
from phantom_mega.toyworld.samples import SPLITS, ToyReference, make_sample
from phantom_mega.toyworld.scenes import CAMERAS, LIGHTS, MAX_ACTORS, MOTIONS, Scene, draw_scene, pose, seen_pose
from phantom_mega.toyworld.shapes import turns_visibly
from phantom_mega.toyworld.spoiling import bfloat16_is_fast, fit, new_network, spoil
from phantom_mega.toyworld.subjects import draw_subject

STEPS = 600
CLIPS = 14  # of a batch; a wide batch, of frames twice as wide, has half of them
REFERENCES = 4
WIDE_SHARE = 0.2
CLIP_FRAMES = 17
ACTORS = (0, 1, 2, 3, 4)
ACTOR_WEIGHTS = (0.02, 0.38, 0.36, 0.12, 0.12)
SIZES = (0.8, 1.25)  # times the size that samples have
LEARNING_RATE = 3e-3
# Weights of the losses; the rest weighs 1.
WEIGHTS = {"covered": 3.0, "anchor": 6.0, "angle": 2.0, "size": 6.0, "centre": 6.0, "camera": 2.0}


@dataclass(frozen=True)
class Truth:
    """What a batch shows. Subjects' tensors end in [A] or [K, A]; a subject that is not there is never seen.

    Attributes:
        cover: float [B, K, A, h, w], the share of every cell that a subject covers.
        motion: long [B, A]; -1 where it cannot be told.
        numbers: name -> float [B, K, A, n] of `angle` (sine, cosine), `size`, `centre`; nan where it cannot be told.
            `centre` is a place from the frame's middle in frame heights.
        scene: name -> long [B] of `background`, `light`, `camera`; -1 where it cannot be told.
    """

    cover: torch.Tensor
    motion: torch.Tensor
    numbers: dict[str, torch.Tensor]
    scene: dict[str, torch.Tensor]


def train_judge(
    seed: int = 0, steps: int = STEPS, device: torch.device | str = "cpu", progress: bool = True,
    vae: LinearVideoVAE | None = None,
) -> Judge:  # fmt: skip
    """Train a judge on renders of all subjects, held-out ones too: it must know whom it is shown.

    Args:
        seed: of weights and data.
        steps: of each of its two networks; one sees `CLIPS` clips and `REFERENCES` reference images, the other about
            150 crops.
        device: where to train.
        progress: show a bar on stderr.
        vae: some of the clips go through it, so that its blur is read as well as sharp renders.
    """
    return Judge(
        train_scene_network(seed, steps, device, progress, vae), train_identity(seed, steps, device, progress, vae)
    )


def train_scene_network(
    seed: int, steps: int, device: torch.device | str = "cpu", progress: bool = True, vae: LinearVideoVAE | None = None
) -> JudgeNetwork:
    """Train the first of the two networks; the arguments are those of `train_judge`."""
    network, optimizer = new_network(JudgeNetwork, seed, device, LEARNING_RATE)
    half = bfloat16_is_fast(torch.device(device))

    def loss_at(step: int) -> torch.Tensor:
        videos, truth = make_batch(seed, step, vae)
        videos = spoil(videos, np.random.default_rng((seed, step, 1))).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            return judge_loss(network, videos, _to(truth, device))

    fit(network, optimizer, steps, loss_at, "train judge", progress, max_norm=2.0)
    return network.float().cpu()


def _to(truth: Truth, device: torch.device | str) -> Truth:
    numbers, scene = ({name: value.to(device) for name, value in group.items()}
                      for group in (truth.numbers, truth.scene))  # fmt: skip
    return Truth(truth.cover.to(device), truth.motion.to(device), numbers, scene)


def make_batch(seed: int, step: int, vae: LinearVideoVAE | None = None) -> tuple[torch.Tensor, Truth]:
    """Clips and reference images (as videos that stand still) float32 [B, K, 3, H, W] in [0, 255], and their truth."""
    rng = np.random.default_rng((seed, step, 0))
    wide = rng.random() < WIDE_SHARE
    width = 2 * HEIGHT if wide else HEIGHT
    videos, shown = [], []
    for _ in range(CLIPS // 2 if wide else CLIPS):
        scene = _draw_scene(rng)
        videos.append(_clip(scene, width, vae if rng.random() < 1 / 3 else None))
        shown.append((scene, render_masks(scene, FRAMES, HEIGHT, width), (0.0, 0.0, 1.0)))
    for number in range(0 if wide else REFERENCES):
        sample = make_sample(seed, step * REFERENCES + number, split=str(rng.choice(SPLITS)))
        video, truth = _still(sample.references[0])
        videos.append(video)
        shown.append(truth)
    return torch.from_numpy(np.stack(videos)).movedim(-1, 2).float(), make_truth(shown, width / HEIGHT)


def _draw_scene(rng: np.random.Generator) -> Scene:
    """A scene with 0 to 4 actors, of more sizes than samples have."""
    count = int(rng.choice(ACTORS, p=ACTOR_WEIGHTS))
    scene = draw_scene(rng, [draw_subject(rng) for _ in range(max(1, count))])
    scale = float(np.exp(rng.uniform(*np.log(SIZES))))
    return replace(scene, actors=tuple(replace(actor, size=actor.size * scale) for actor in scene.actors[:count]))


def _clip(scene: Scene, width: int, vae: LinearVideoVAE | None) -> np.ndarray:
    """uint8 [K, H, W, 3]: five frames show all that 17 show at the same times."""
    if vae is None:
        return render(scene, FRAMES, HEIGHT, width)
    video = round_trip(vae, render(scene, CLIP_FRAMES, HEIGHT, width))
    return video[np.linspace(0, CLIP_FRAMES - 1, FRAMES).round().astype(int)]


def _still(reference: ToyReference) -> tuple[np.ndarray, tuple]:
    """A reference image scaled to a square frame, and what it shows."""
    frame = _scale(reference.image, "area" if min(reference.image.shape[:2]) > HEIGHT else "bilinear")
    mask = _scale(reference.mask[..., None].astype(np.float32), "bilinear")[..., 0] >= 0.5
    x0, y0, x1, y1 = reference.box
    # Where the crop's middle lies, and how often it would fit into the frame it was cut from.
    crop = ((x0 + x1) / 2 / HEIGHT - 0.5, (y0 + y1) / 2 / HEIGHT - 0.5, (y1 - y0) / HEIGHT)
    masks = np.repeat(mask[None, None], FRAMES, 0)
    return np.repeat(frame[None], FRAMES, 0), (reference.scene, masks, crop)


def _scale(image: np.ndarray, mode: str) -> np.ndarray:
    pixels = torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, 0)[None].float()
    options = {} if mode == "area" else {"antialias": True, "align_corners": False}
    scaled = F.interpolate(pixels, (HEIGHT, HEIGHT), mode=mode, **options)[0].movedim(0, -1).numpy()
    return scaled.round().astype(np.uint8) if image.dtype == np.uint8 else scaled


def make_truth(shown: list[tuple[Scene, np.ndarray, tuple[float, float, float]]], aspect: float) -> Truth:
    """Truth of scenes.

    Args:
        shown: (scene, masks bool [K, A, H, W], crop) of each video. A crop is (x, y, size): its middle from the
            scene's middle and its height, in frame heights; (0, 0, 1) is all of the scene.
        aspect: width of the frames over their height.
    """
    B, (height, width) = len(shown), shown[0][1].shape[2:]
    cover = np.zeros((B, FRAMES, MAX_ACTORS, height // CELL, width // CELL), np.float32)
    motion = np.full((B, MAX_ACTORS), -1)
    numbers = {name: np.full((B, FRAMES, MAX_ACTORS, size), np.nan, np.float32)
               for name, size in SUBJECT_OUTPUTS.items()}  # fmt: skip
    scenes = {name: np.full(B, -1) for name in ("background", "light", "camera")}
    for row, (scene, masks, crop) in enumerate(shown):
        cells = masks.reshape(*masks.shape[:2], height // CELL, CELL, width // CELL, CELL).mean((3, 5))
        cover[row, :, : len(scene.actors)] = cells
        scenes["background"][row] = BACKGROUNDS.index(scene.background)
        scenes["light"][row] = list(LIGHTS).index(scene.light)
        scenes["camera"][row] = CAMERAS.index(scene.camera)
        for place, actor in enumerate(scene.actors):
            motion[row, place] = MOTIONS.index(actor.motion)
            for name, value in _actor_numbers(scene, place, crop, aspect).items():
                numbers[name][row, :, place] = value
    return Truth(
        torch.from_numpy(cover), torch.from_numpy(motion),
        {name: torch.from_numpy(value) for name, value in numbers.items()},
        {name: torch.from_numpy(value) for name, value in scenes.items()},
    )  # fmt: skip


def _actor_numbers(scene: Scene, place: int, crop: tuple[float, float, float], aspect: float) -> dict[str, np.ndarray]:
    """`Truth.numbers` of one actor, [K, n] or [n] each."""
    actor = scene.actors[place]
    # A reference's scene stands still; what is read of it is one frame.
    frames = 1 if scene.camera == "static" and actor.motion == "stands still" else FRAMES
    centre, size = seen_pose(scene, place, frames, aspect)
    angle = pose(actor, np.linspace(0, 1, frames), aspect).angle
    turns = turns_visibly(actor.subject.shape, actor.subject.part, actor.subject.texture)
    return {
        "angle": np.stack([np.sin(angle), np.cos(angle)], -1) if turns else np.full(2, np.nan),
        "size": size[:, None] / crop[2],
        "centre": (centre - crop[:2]) / crop[2],
    }


def judge_loss(network: JudgeNetwork, videos: torch.Tensor, truth: Truth) -> torch.Tensor:
    """Sum of the weighted losses; `videos` float [B, K, 3, H, W] in [-1, 1]."""
    cells, whole = network.features(videos)
    pooled, area, middle = network.pool(cells, truth.cover)
    seen = area >= 2.0
    losses = {name: F.cross_entropy(logits, truth.scene[name], ignore_index=-1)
              for name, logits in network.scene(whole).items()}  # fmt: skip
    losses |= _cell_losses(network.cells(cells), truth, seen, middle)
    motion = network.motion(pooled, area, middle)
    losses["motion"] = F.cross_entropy(motion.flatten(0, 1), truth.motion.flatten(), ignore_index=-1)
    for name, value in network.subjects(pooled).items():
        target = truth.numbers[name] - (middle if name == "centre" else 0)
        known = seen[..., None] & target.isfinite()
        losses[name] = F.l1_loss(value[known], target[known])
    return sum(WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items())


def _cell_losses(
    told: dict[str, torch.Tensor], truth: Truth, seen: torch.Tensor, middle: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Losses of `CELL_OUTPUTS`; the anchor of a subject is the mean of its middles in the frames that show it."""
    cover = truth.cover.sum(2)
    loss = {"covered": F.binary_cross_entropy_with_logits(told["covered"][:, :, 0], cover.clamp(max=1))}
    weight = seen.to(middle)[..., None]
    anchor = (middle * weight).sum(1) / weight.sum(1).clamp(min=1)  # [B, A, 2]
    owner = truth.cover.argmax(2)  # [B, K, h, w]
    target = anchor[torch.arange(len(anchor), device=anchor.device)[:, None, None, None], owner]
    told_anchor = told["anchor"].movedim(2, -1) + cell_places(*cover.shape[2:], cover.device)
    inside = cover >= 0.5
    loss["anchor"] = F.l1_loss(told_anchor[inside], target[inside])
    return loss
