"""Toy data sets for the trainer: lossless shards with their index and truth, one folder for each split."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from phantom_mega.data.encode import encode_frames, find_codec
from phantom_mega.data.hashing import draw_uniform, hash_keys
from phantom_mega.data.publish import claim, is_complete, publish
from phantom_mega.data.samples import TOKENIZER
from phantom_mega.data.schema import Reference, ReferenceSource, Triplet
from phantom_mega.data.shards import ShardWriter
from phantom_mega.errors import UserError
from phantom_mega.toyworld.captions import STYLES, phrase
from phantom_mega.toyworld.render import render
from phantom_mega.toyworld.samples import SPLITS, ToySample, make_sample
from phantom_mega.toyworld.scenes import MAX_ACTORS
from phantom_mega.toyworld.truth import TRUTH_NAME, truth_of, write_truth

CODEC = "ffv1"
FPS = 8
MIN_SIDE = 16  # pixels; with less, two subjects are a few pixels each
MARKER = "toyworld.json"
SOURCE = "phantom_mega.toyworld"
FORMAT = 1  # raise when the same settings get other bytes
_BATCH = 500  # samples whose captions are counted at once


@dataclass(frozen=True)
class ToySettings:
    """What decides every byte of a toy data set.

    Raises:
        UserError: a value that cannot be right.
    """

    samples: int = 1000
    """Of the split `train`."""
    validation_samples: int = 100
    """Of the split `validation`, whose subjects are never seen in training; 0 writes none."""
    height: int = 32
    """Pixels."""
    width: int = 32
    """Pixels."""
    frames: int = 17
    """Of every clip, 4k+1."""
    actors: tuple[int, ...] = (1,)
    """How many subjects a scene has, each number equally often."""
    cross_share: float = 1.0
    """Of samples with cross references, from 0 to 1; the others cut theirs out of the clip. A larger share keeps all
    that a smaller one has."""
    style: str = "plain"
    """Of captions (`captions.STYLES`)."""
    seed: int = 0
    """Of everything."""

    def __post_init__(self):
        for name, least in (("samples", 1), ("validation_samples", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}; it must be at least {least}")
        if min(self.height, self.width) < MIN_SIDE:
            raise UserError(f"{self.width}x{self.height} pixels (width x height); sides are at least {MIN_SIDE}")
        if self.frames < 5 or self.frames % 4 != 1:
            below = max(5, self.frames - (self.frames - 1) % 4)
            raise UserError(f"frames={self.frames}; training takes 4k+1 frames, at least 5, such as {below}")
        if not self.actors or not all(1 <= number <= MAX_ACTORS for number in self.actors):
            raise UserError(f"actors={list(self.actors)}; scenes have 1 to {MAX_ACTORS}")
        if not 0 <= self.cross_share <= 1:
            raise UserError(f"cross_share={self.cross_share}; it must lie between 0 and 1")
        if self.style not in STYLES:
            raise UserError(f"caption style {self.style!r} is unknown; use one of {', '.join(STYLES)}")


def toy_sample(settings: ToySettings, split: str, number: int) -> ToySample:
    """Sample `number` of a split: how many actors and which kind of reference are drawn, the rest is `make_sample`."""
    key = hash_keys([f"{split}/{number}"])
    actors = settings.actors[int(draw_uniform(key, settings.seed, "actors")[0] * len(settings.actors))]
    kind = "cross" if draw_uniform(key, settings.seed, "kind")[0] < settings.cross_share else "in"
    return make_sample(
        settings.seed, number, split=split, actors=actors, kind=kind, style=settings.style,
        height=settings.height, width=settings.width, frames=settings.frames,
    )  # fmt: skip


def write_toyworld(output: Path, settings: ToySettings, quiet: bool = False) -> dict[str, int]:
    """Write the data sets `output/train` and `output/validation`; what is there already with these settings stays.

    Args:
        output: folder of both.
        settings: what to write.
        quiet: no bar.

    Returns:
        samples by split.

    Raises:
        UserError: a folder holds something else or cannot be written to, or the tokenizer cannot be loaded.
    """
    counts = {"train": settings.samples, "validation": settings.validation_samples}
    counts = {split: counts[split] for split in SPLITS if counts[split]}
    missing = {split: count for split, count in counts.items() if not _is_made(output, split, settings)}
    if missing:
        count_tokens = _token_counter()
        for split, count in missing.items():
            _write_split(output / split, split, count, settings, count_tokens, quiet)
    return counts


def _digest(split: str, settings: ToySettings) -> str:
    """Of all that decides a split's bytes: the other split's size does not."""
    decides = dataclasses.asdict(settings)
    size = {"train": decides.pop("samples"), "validation": decides.pop("validation_samples")}[split]
    text = json.dumps([FORMAT, split, size, decides], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_made(output: Path, split: str, settings: ToySettings) -> bool:
    return is_complete(output / split, MARKER, _digest(split, settings)) and (output / split / TRUTH_NAME).is_file()


def _write_split(
    folder: Path, split: str, count: int, settings: ToySettings, count_tokens: Callable, quiet: bool
) -> None:
    building = claim(folder, MARKER, SOURCE)
    numbers = tqdm(range(count), desc=f"write {split}", unit=" samples", disable=quiet or None, file=sys.stderr)
    truths = []
    try:
        with ShardWriter(building, tokenizer=TOKENIZER) as writer:
            for batch in itertools.batched(_samples(settings, split, numbers), _BATCH):
                tokens = count_tokens([sample.caption for sample in batch])
                for sample, number in zip(batch, tokens, strict=True):
                    triplet, clip, images = encode_sample(sample, settings, number)
                    writer.write(triplet, clip, find_codec(CODEC).extension, [(image, "png") for image in images])
                    size = (settings.frames, settings.height, settings.width)
                    truths.append((sample.key, truth_of(sample, *size, settings.style)))
        write_truth(building / TRUTH_NAME, truths)
        publish(folder, MARKER, SOURCE, _digest(split, settings), beside=(TRUTH_NAME,))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None


def _samples(settings: ToySettings, split: str, numbers: Iterator[int]) -> Iterator[ToySample]:
    return (toy_sample(settings, split, number) for number in numbers)


def encode_sample(sample: ToySample, settings: ToySettings, text_tokens: int) -> tuple[Triplet, bytes, list[bytes]]:
    """What a shard stores of a sample: (description, FFV1 clip, PNG references); nothing loses a bit."""
    video = render(sample.scene, settings.frames, settings.height, settings.width)
    frames = (av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in video)
    clip, _ = encode_frames(frames, Fraction(FPS), settings.height, settings.width, CODEC)
    described = tuple(
        Reference(
            phrase(reference.subject, settings.style),
            "others",
            sample.kind,
            ReferenceSource(
                sample.key if sample.kind == "in" else f"{sample.key}_ref{number}",
                reference.frame,
                tuple(map(float, reference.box)),
            ),
            *reference.image.shape[:2],
        )
        for number, reference in enumerate(sample.references)
    )
    triplet = Triplet(
        sample.key, sample.caption, sample.key, settings.frames, float(FPS), settings.height, settings.width, CODEC,
        described, text_tokens,
    )  # fmt: skip
    return triplet, clip, [_png(reference.image) for reference in sample.references]


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _token_counter() -> Callable[[list[str]], list[int]]:
    from phantom_mega.conditioning.text import load_tokenizer  # takes seconds to import, and only counting needs it

    tokenizer = load_tokenizer(TOKENIZER)
    return lambda captions: [len(ids) for ids in tokenizer(captions, verbose=False)["input_ids"]]
