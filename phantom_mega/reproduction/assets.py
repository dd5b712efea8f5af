"""What trainings need beside the trainer: data sets, the toy world's VAE and CLIP, cached features, and the judge.

Everything is made once and found again; each piece appears whole.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from phantom_mega.errors import UserError
from phantom_mega.reproduction.arms import PAIR, SINGLE, Arm
from phantom_mega.reproduction.cases import SIZES
from phantom_mega.reproduction.scale import Scale
from phantom_mega.reproduction.train import Training
from phantom_mega.toyworld.dataset import ToySettings, write_toyworld

TOOLS = Path(__file__).resolve().parents[2] / "tools"
RECIPE = "toy"
# Visual tokens of 32 samples with one actor and 16 with two: 5 latent frames and the references, 4 tokens a frame of
# 32x32, 8 of 32x64.
TOKENS = {SINGLE: 32 * (5 + 1) * 4, PAIR: 16 * (5 + 2) * 8}


@dataclass(frozen=True)
class Workplace:
    """Folders of a reproduction.

    Args:
        root: of all of them.
        scale: how much is trained.
        device: `cpu` or `cuda`.
    """

    root: Path
    scale: Scale
    device: str

    @property
    def models(self) -> Path:
        """Holds `judge`, `clip` and `vae`."""
        return self.root / "models"

    def run(self, arm: str, seed: int) -> Path:
        """Folder of a training."""
        return self.root / "runs" / f"{arm}_seed{seed}"

    def results(self, condition: str, seed: int) -> Path:
        """File of a condition's values."""
        return self.root / "results" / condition / f"seed{seed}.json"

    def videos(self, condition: str, seed: int) -> Path:
        """File of a condition's videos."""
        return self.results(condition, seed).with_suffix(".npz")


def data_sets(arm: Arm, scale: Scale) -> dict[str, ToySettings]:
    """Name -> settings of the data sets that an arm trains on."""
    height, width = SIZES[arm.world]
    if arm.world == PAIR:
        count = scale.pair_samples // 2
        common = {"samples": count, "validation_samples": 8, "height": height, "width": width, "actors": (2,)}
        # Keys of two sets must differ: so do their seeds.
        return {
            "pair_distinct": ToySettings(**common, style="distinct", seed=2),
            "pair_vague": ToySettings(**common, style="vague", seed=3),
        }
    common = {"samples": scale.train_samples, "validation_samples": 32, "height": height, "width": width, "seed": 1}
    if any(override == "data.pair_kinds=[in]" for override in arm.overrides):
        return {"single_in": ToySettings(**common, cross_share=0.0)}
    return {"single": ToySettings(**common)}


def make_data(place: Workplace, arms: Iterable[Arm]) -> None:
    """Data sets of some arms, and the features of their training samples."""
    wanted = {name: (arm, settings) for arm in arms for name, settings in data_sets(arm, place.scale).items()}
    for name, (_, settings) in wanted.items():
        write_toyworld(place.root / "data" / name, settings)
    for arm in {tuple(data_sets(arm, place.scale)): arm for arm, _ in wanted.values()}.values():
        # The order of two references is drawn by the run's seed, and a cache holds the orders that it was asked for.
        seeds = range(place.scale.seeds) if arm.world == PAIR else (0,)
        for seed in seeds:
            done = _features(place, arm) / f"seed{seed}.done"
            if not done.is_file():
                arguments = ["--config", RECIPE, "--output", _features(place, arm), *_data_arguments(place, arm, seed)]
                _tool("cache_features.py", arguments, place)
                done.touch()


def training(place: Workplace, arm: Arm, seed: int) -> Training:
    """How an arm is trained with a seed: arguments of launchers/train.py."""
    iterations = place.scale.pair_iters if arm.world == PAIR else place.scale.train_iters
    folder = place.run(arm.name, seed)
    arguments = [
        "--config", RECIPE, *_data_arguments(place, arm, seed),
        *(override for override in arm.overrides if not override.startswith("data.")),
        f"conditioning.cached_features={_features(place, arm)}", f"train.save={folder}",
        f"train.train_iters={iterations}",
        f"optimizer.lr_warmup_iters={min(100, iterations // 2)}", f"train.save_interval={iterations}",
    ]  # fmt: skip
    return Training(folder, tuple(map(str, arguments)), iterations)


def _features(place: Workplace, arm: Arm) -> Path:
    return place.root / "features" / "_".join(data_sets(arm, place.scale))


def _data_arguments(place: Workplace, arm: Arm, seed: int) -> list[str]:
    """Overrides that data and encoders need, in training and in caching alike."""
    height, width = SIZES[arm.world]
    paths = ",".join(str(place.root / "data" / name / "train") for name in data_sets(arm, place.scale))
    arguments = [
        f"data.index_path=[{paths}]",
        f"data.aspect_ratios=['{width // height}:1']",
        f"data.resolutions.32p.pixels={height * width}",
        f"data.seq_length={TOKENS[arm.world]}",
        f"train.seed={1234 + seed}",
        f"conditioning.vae={place.models / 'vae'}",
        f"conditioning.vision_encoder={place.models / 'clip'}",
    ]
    arguments += [override for override in arm.overrides if override.startswith("data.")]
    if arm.world == PAIR:
        arguments += ["data.min_references=2", "data.text_seq_length=832"]
    return arguments


def _tool(name: str, arguments: list, place: Workplace) -> None:
    environment = dict(os.environ, OMP_NUM_THREADS=str(place.scale.threads * place.scale.processes))
    if place.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run([sys.executable, str(TOOLS / name), *map(str, arguments)], env=environment, check=False)
    if done.returncode:
        raise UserError(f"{name} failed with exit code {done.returncode}; its message stands above")
