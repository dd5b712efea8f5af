"""How well a judge reads: fresh renders of held-out subjects, sharp, blurred, and after a VAE's round trip."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.curation.report.precision import wilson
from phantom_mega.images import image_tensor, pad_white
from phantom_mega.toyworld.judge import Judge
from phantom_mega.toyworld.latents import round_trip
from phantom_mega.toyworld.reading import Reading
from phantom_mega.toyworld.render import render
from phantom_mega.toyworld.samples import ToySample, make_sample
from phantom_mega.toyworld.scenes import Scene, pose, seen_pose
from phantom_mega.toyworld.scores import (
    best_identity_score,
    binding,
    copy_paste,
    identity_distance,
    match_places,
    prompt_scores,
    retrieval,
    turn_between,
)
from phantom_mega.toyworld.shapes import turns_visibly
from phantom_mega.toyworld.spoiling import blur
from phantom_mega.toyworld.subjects import Subject, colour_name, draw_subject, shows_accent

IDENTITIES = 50  # that the right one is looked for among
BLUR = 0.8  # standard deviation in pixels
SEED_STREAM = 9001  # of the identities to tell apart


def judge_accuracy(
    judge: Judge, n: int = 200, actors: int = 1, seed: int = 1, vae: LinearVideoVAE | None = None,
    height: int = 32, width: int = 32, frames: int = 17,
) -> dict[str, dict]:  # fmt: skip
    """Read `n` fresh renders of subjects that `subjects.held_out` names, and their reference images.

    Args:
        judge: to measure.
        n: samples.
        actors: of each sample.
        seed: of the samples; another than the judge's.
        vae: measure also on its round trips.
        height, width, frames: of the videos.

    Returns:
        `sharp`, `blurred` (Gaussian, 0.8 pixels), `vae`, `reference`: for each a dict of
        - `shape`, `texture`, `part`, `body_colour` (its name), `motion`, `background`, `light`, `camera`, `count`,
          `retrieval` (the right identity among 50), `binding` (`success` of it):
          `{"accuracy", "low", "high", "n"}` with the 95% Wilson interval; a subject that is not found is wrong;
        - `identity`, the mean identity score; `body_error` and `accent_error`, mean Euclidean RGB distance (0 to 441);
          `centre_error` in pixels, `angle_error` in degrees, `size_error` relative: means over what was found.
        Of a reference image, only what can be told of it.
        `copying`: how `measure_copying` tells true videos from pasted ones.
    """
    samples = [
        make_sample(seed, number, split="validation", actors=actors, height=height, width=width, frames=frames)
        for number in range(n)
    ]
    videos = [render(sample.scene, frames, height, width) for sample in samples]
    report = {
        "sharp": measure_videos(judge, samples, videos, seed),
        "blurred": measure_videos(judge, samples, [blurred(video) for video in videos], seed),
    }
    if vae is not None:
        report["vae"] = measure_videos(judge, samples, [round_trip(vae, video) for video in videos], seed)
    return report | {
        "reference": measure_references(judge, samples, seed),
        "copying": measure_copying(judge, samples, videos),
    }


def blurred(video: np.ndarray, sigma: float = BLUR) -> np.ndarray:
    """Gaussian blur of uint8 [F, H, W, 3]."""
    out = blur(torch.from_numpy(video).movedim(-1, 1).float(), sigma)
    return out.round().clamp(0, 255).byte().movedim(1, -1).numpy()


def measure_videos(judge: Judge, samples: list[ToySample], videos: list[np.ndarray], seed: int) -> dict:
    """Measure a judge on videos uint8 [F, H, W, 3] that show the samples' scenes."""
    right, errors = defaultdict(list), defaultdict(list)
    others = _others(seed)
    for sample, video, reading in zip(samples, videos, judge.read(videos)):
        aspect = video.shape[2] / video.shape[1]
        matched = match_places(reading, sample.scene, aspect)
        scores = prompt_scores(reading, sample.scene, aspect)
        for name in ("background", "light", "camera", "count"):
            right[name].append(scores[name])
        right["binding"].append(binding(reading, sample.scene, aspect)["success"])
        for number, found in enumerate(matched):
            _compare(right, errors, reading, int(found), sample.scene.actors[number].subject, others)
            actor = sample.scene.actors[number]
            right["motion"].append(found >= 0 and reading.subjects[found].most_likely_motion == actor.motion)
            if found >= 0:
                _compare_track(errors, reading, int(found), sample.scene, number, video.shape[1], aspect)
    return _summary(right, errors)


def measure_references(judge: Judge, samples: list[ToySample], seed: int) -> dict:
    """Measure a judge on the samples' reference images; the subject that is most seen counts."""
    right, errors = defaultdict(list), defaultdict(list)
    others = _others(seed)
    for sample in samples:
        for reference in sample.references:
            reading = judge.read_image(reference.image)
            areas = [subject.mask.sum() for subject in reading.subjects]
            _compare(right, errors, reading, int(np.argmax(areas)) if areas else -1, reference.subject, others)
            for name, value in reading.scene.items():
                if name != "camera":
                    right[name].append(value == getattr(reference.scene, name))
            right["count"].append(reading.count == 1)
    return _summary(right, errors)


def measure_copying(judge: Judge, samples: list[ToySample], videos: list[np.ndarray]) -> dict[str, dict]:
    """The two ends of the scale of `scores.copy_paste`: `true` videos, and `pasted` ones that hold still references.

    Returns:
        For each the mean of every attribute over the samples where it can be told (about 0, and about 1), and
        `identity`, which is high in both.
    """
    frames, height, width = videos[0].shape[:3]
    shown = {
        "true": videos,
        "pasted": [paste([sample.references[0].image], *videos[0].shape[:3]) for sample in samples],
    }
    result = {}
    for name, some in shown.items():
        told = defaultdict(list)
        for sample, reading in zip(samples, judge.read(some)):
            copied = copy_paste(reading, sample.references, sample.scene, height=height, width=width, frames=frames)
            for attribute, value in copied.items():
                told[attribute].append(value)
            told["identity"].append(best_identity_score(reading, sample.scene.actors[0].subject))
        result[name] = {attribute: mean_of_known(values) for attribute, values in told.items()}
    return result


def mean_of_known(values: list[float]) -> float | None:
    """The mean of those that are not nan; None if there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None


def paste(images: Sequence[np.ndarray], frames: int = 17, height: int = 32, width: int = 32) -> np.ndarray:
    """The trivial answer, uint8 [F, H, W, 3]: reference images side by side, padded with white, standing still."""
    parts = [pad_white(image_tensor(image), height, width // len(images)) for image in images]
    return np.repeat(torch.cat(parts, dim=2).permute(1, 2, 0).numpy()[None], frames, 0)


def _others(seed: int) -> list[Subject]:
    rng = np.random.default_rng((seed, SEED_STREAM))
    return [draw_subject(rng) for _ in range(IDENTITIES - 1)]


def _compare(right: dict, errors: dict, reading: Reading, found: int, subject: Subject, others: list[Subject]) -> None:
    """Add what one found subject (-1: none) tells of its identity."""
    shown = reading.subjects[found] if found >= 0 else None
    for name in ("shape", "texture", "part"):
        right[name].append(shown is not None and getattr(shown.subject, name) == getattr(subject, name))
    right["body_colour"].append(shown is not None and colour_name(shown.subject.body) == colour_name(subject.body))
    right["retrieval"].append(shown is not None and retrieval(shown, subject, others))
    errors["identity"].append(1 - identity_distance(shown, subject) if shown else 0.0)
    if shown:
        errors["body_error"].append(np.linalg.norm(np.subtract(shown.body, subject.body)))
        if shows_accent(subject):
            errors["accent_error"].append(np.linalg.norm(np.subtract(shown.accent, subject.accent)))


def _compare_track(
    errors: dict, reading: Reading, found: int, scene: Scene, number: int, height: int, aspect: float
) -> None:
    actor, track = scene.actors[number], reading.subjects[found].track
    frames, seen = len(track.seen), track.seen
    centre, size = seen_pose(scene, number, frames, aspect)
    at = (track.centre - 0.5) * (aspect, 1)
    errors["centre_error"].extend(height * np.linalg.norm(at - centre, axis=-1)[seen])
    errors["size_error"].extend(abs(track.size / size - 1)[seen])
    if turns_visibly(actor.subject.shape, actor.subject.part, actor.subject.texture) and actor.motion != "spins":
        angle = np.degrees(pose(actor, np.linspace(0, 1, frames), aspect).angle)
        errors["angle_error"].extend(abs(turn_between(track.angle, angle))[seen])


def _summary(right: dict[str, list], errors: dict[str, list]) -> dict:
    summary = {}
    for name, values in right.items():
        hits, total = int(sum(values)), len(values)
        low, high = wilson(hits, total)
        summary[name] = {"accuracy": hits / total, "low": low, "high": high, "n": total}
    return summary | {name: float(np.mean(values)) for name, values in errors.items() if values}
