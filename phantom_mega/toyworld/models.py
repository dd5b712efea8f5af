"""The models that the toy world is measured and conditioned with: a VAE, a judge and a tiny CLIP, each in a folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from phantom_mega.conditioning.linear_vae import FRAME_SIZE, LinearVideoVAE
from phantom_mega.conditioning.vision import load_tiny_tower
from phantom_mega.errors import UserError
from phantom_mega.files import hidden_folder, publish_folder, whole_file
from phantom_mega.toyworld import judge_training, latents, tiny_clip
from phantom_mega.toyworld.judge import Judge
from phantom_mega.toyworld.judge_accuracy import judge_accuracy

JUDGE_FILE = "judge.safetensors"
MADE = "made.json"  # in every folder: settings that made it, and what was measured
REPORT = "report.json"
FORMAT = 3  # raise when the same settings give other models
MEASURED_ACTORS = (1, 2)


@dataclass(frozen=True)
class ModelSettings:
    """What decides the models.

    Raises:
        UserError: a value that cannot be right.
    """

    seed: int = 0
    """Of all weights and data."""
    latent_channels: int = 48
    """Of the VAE."""
    vae_videos: int = latents.FIT_VIDEOS
    """Renders that the VAE is fitted on."""
    judge_steps: int = judge_training.STEPS
    """Training steps of the judge."""
    clip_steps: int = tiny_clip.STEPS
    """Training steps of the CLIP."""
    clip_pool: int = tiny_clip.POOL
    """Reference images that the CLIP is trained on."""
    samples: int = 200
    """Held-out samples that everything is measured on."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            least = 0 if field.name == "seed" else 1
            if getattr(self, field.name) < least:
                raise UserError(f"{field.name}={getattr(self, field.name)} must be at least {least}")
        if self.latent_channels > FRAME_SIZE:
            raise UserError(f"latent_channels={self.latent_channels} must be at most {FRAME_SIZE}")


def make_models(output: Path, settings: ModelSettings, progress: bool = True) -> dict[str, dict]:
    """Make `vae/`, `judge/` and `clip/` and measure them; a folder that the same settings made is kept.

    Args:
        output: folder of the three and of `report.json`.
        settings: of all; a model is made anew if one that it depends on has changed.
        progress: show bars on stderr.

    Returns:
        What `report.json` holds: settings and accuracies.

    Raises:
        UserError: a folder holds something else, or cannot be written to.
    """
    common = {"format": FORMAT, "seed": settings.seed, "samples": settings.samples}
    vae = common | {"latent_channels": settings.latent_channels, "vae_videos": settings.vae_videos}
    parts: dict[str, tuple[dict, Callable[[Path], dict]]] = {
        "vae": (vae, lambda folder: _make_vae(folder, settings)),
        "judge": (vae | {"judge_steps": settings.judge_steps},
                  lambda folder: _make_judge(folder, output / "vae", settings, progress)),
        "clip": (common | {"clip_steps": settings.clip_steps, "clip_pool": settings.clip_pool},
                 lambda folder: _make_clip(folder, settings, progress)),
    }  # fmt: skip
    report: dict[str, dict] = {"settings": dataclasses.asdict(settings)}
    for name, (wanted, make) in parts.items():
        report[name] = _made(output / name, wanted) or _make(output / name, wanted, make)
    with whole_file(output / REPORT) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _made(folder: Path, wanted: dict) -> dict | None:
    """What was measured of a model that is there already; None if it is to be made.

    Raises:
        UserError: the folder holds something that this did not write.
    """
    try:
        told = json.loads((folder / MADE).read_text())
        return told["measured"] if told["settings"] == wanted else None
    except (OSError, ValueError, KeyError, TypeError):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} holds something else; choose another --output or remove it first") from None
        return None


def _make(folder: Path, wanted: dict, make: Callable[[Path], dict]) -> dict:
    """Make a model in a hidden folder; it takes its name when all is measured, and goes if anything fails."""
    try:
        temporary = hidden_folder(folder)
        try:
            measured = make(temporary)
            (temporary / MADE).write_text(json.dumps({"settings": wanted, "measured": measured}, indent=2) + "\n")
            publish_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}") from None
    return measured


def _make_vae(folder: Path, settings: ModelSettings) -> dict:
    vae = latents.fit_vae(settings.latent_channels, settings.vae_videos, settings.seed)
    vae.save_pretrained(folder)
    return latents.measure_vae(vae, settings.samples, settings.seed + 1)


def _make_judge(folder: Path, vae_folder: Path, settings: ModelSettings, progress: bool) -> dict:
    vae = LinearVideoVAE.from_pretrained(vae_folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judge = judge_training.train_judge(settings.seed, settings.judge_steps, device, progress, vae)
    judge.save(folder / JUDGE_FILE)
    return {
        f"{actors} actor{'s' if actors > 1 else ''}":
        judge_accuracy(judge, settings.samples, actors, settings.seed + 1, vae) for actors in MEASURED_ACTORS
    }  # fmt: skip


def _make_clip(folder: Path, settings: ModelSettings, progress: bool) -> dict:
    clip = tiny_clip.train_tiny_clip(settings.seed, settings.clip_steps, settings.clip_pool, progress)
    clip.write(folder)
    count, seed = 2 * settings.samples, settings.seed + 1
    return {
        "zero_shot": tiny_clip.zero_shot_accuracy(clip, count, seed),
        "probe": tiny_clip.probe_accuracy(clip.tower, 4 * count, count, seed),
        "probe_of_random_tower": tiny_clip.probe_accuracy(load_tiny_tower(), 4 * count, count, seed),
    }


def load_judge(folder: Path | str) -> Judge:
    """The judge of a folder that `make_models` wrote.

    Raises:
        UserError: there is none.
    """
    return Judge.load(Path(folder) / "judge" / JUDGE_FILE)
