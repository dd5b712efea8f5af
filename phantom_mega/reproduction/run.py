"""Run studies: make what they need, train their arms, sample their conditions and judge. Re-running goes on."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from phantom_mega.errors import UserError
from phantom_mega.files import whole_file
from phantom_mega.reproduction.arms import ARMS, Arm, Condition
from phantom_mega.reproduction.assets import Workplace, make_data, training
from phantom_mega.reproduction.cases import make_cases
from phantom_mega.reproduction.generate import generate
from phantom_mega.reproduction.score import METRICS, score
from phantom_mega.reproduction.studies import Study
from phantom_mega.reproduction.train import Training, train_all
from phantom_mega.toyworld.judge import Judge
from phantom_mega.toyworld.models import ModelSettings, load_judge, make_models


def prepare(studies: Iterable[Study], place: Workplace) -> None:
    """Models of the world, data sets, and all trainings of some studies, those that they share once.

    Args:
        studies: what to compare.
        place: where, how much, on what.

    Raises:
        UserError: a tool or a training failed, or files of another scale are in the way.
    """
    _claim(place)
    make_models(place.models, ModelSettings(**place.scale.models))
    arms = arms_of(studies)
    make_data(place, arms)
    train_all(trainings_of(arms, place), place.scale.processes, place.scale.threads, place.device)


def arms_of(studies: Iterable[Study]) -> list[Arm]:
    """What some studies train, each once."""
    conditions = [condition for study in studies for condition in study.conditions]
    return [ARMS[name] for name in dict.fromkeys(one.arm for one in conditions if needs_training(one))]


def trainings_of(arms: Sequence[Arm], place: Workplace) -> list[Training]:
    """Every arm with the first seed before any with the second, so that what is done early can be compared."""
    return [training(place, arm, seed) for seed in range(place.scale.seeds) for arm in arms]


def measure_study(study: Study, place: Workplace) -> None:
    """Sample and judge what is not measured yet: every condition and seed of a study that `prepare` has trained.

    Args:
        study: what to compare.
        place: whose scale says how many are measured at a time.
    """
    missing = [
        (condition, seed)
        for condition in study.conditions
        for seed in range(place.scale.seeds)
        if not place.results(condition.name, seed).is_file()
    ]
    workers = min(place.scale.processes, len(missing))
    if not workers:
        return
    # Spawned: a process forked after torch has started its threads may hang.
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(place.scale.threads,)
    ) as pool:
        waiting = [pool.submit(measure, condition, seed, place) for condition, seed in missing]
        try:
            for done in tqdm(as_completed(waiting), desc=f"measure {study.name}", total=len(waiting), disable=None):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def needs_training(condition: Condition) -> bool:
    """Whether a condition samples a trained model; an untrained one still needs its arm's configuration."""
    return condition.references != "pasted"


def measure(condition: Condition, seed: int, place: Workplace) -> None:
    """Sample and judge a condition with a seed; leaves `results/CONDITION/seedN.json` and `.npz`."""
    cases = make_cases(condition, place.scale.cases)
    run = place.run(condition.arm, seed)
    videos = generate(condition, run, cases, place.scale.steps, seed, place.device)
    values = score(_judge(place.models, place.device), cases, videos)
    target = place.results(condition.name, seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(place.videos(condition.name, seed)) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, videos=videos)
    rows = [{"key": case.sample.key, **one} for case, one in zip(cases, values, strict=True)]
    with whole_file(target) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n")


@functools.cache
def _judge(models: Path, device: str) -> Judge:
    judge = load_judge(models)
    judge.network.to(device)
    return judge


def read_values(condition: Condition, place: Workplace) -> dict[str, np.ndarray]:
    """Metric -> float [S, N] over seeds and cases."""
    rows = [json.loads(place.results(condition.name, seed).read_text()) for seed in range(place.scale.seeds)]
    return {name: np.array([[case[name] for case in seed] for seed in rows], dtype=np.float64) for name in METRICS}


def _claim(place: Workplace) -> None:
    """Keep results of different scales apart.

    Raises:
        UserError: the folder was begun at another scale.
    """
    place.root.mkdir(parents=True, exist_ok=True)
    marker, now = place.root / "scale.json", json.loads(json.dumps(dataclasses.asdict(place.scale)))
    if marker.is_file():
        before = json.loads(marker.read_text())
        differ = [f"{name} {before.get(name)} (now {now[name]})" for name in now if before.get(name) != now[name]]
        if differ:
            raise UserError(f"{place.root} was begun at another scale: {', '.join(differ)}; name another --output")
    else:
        with whole_file(marker) as temporary:
            temporary.write_text(json.dumps(now, indent=1) + "\n")


def contact_videos(condition: Condition, place: Workplace, seed: int = 0) -> np.ndarray:
    """uint8 [N, F, H, W, 3] as sampled."""
    return np.load(Path(place.videos(condition.name, seed)))["videos"]
