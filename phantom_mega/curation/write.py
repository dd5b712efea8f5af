"""From samples to the data set that training reads: stage `encoded`, then shards, one data set for each split.

`encoded` transcodes on Ray, a file for each clip. Shards are written by one process from these files and from the
crops' images, in the order of keys: equal samples give equal bytes, on any number of machines.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from phantom_mega.curation.engine.stage import Rejection, Row, Stage
from phantom_mega.curation.engine.tables import Table
from phantom_mega.curation.samples import SPLITS
from phantom_mega.curation.transcode import EncodedClip, TranscodeSettings, transcode
from phantom_mega.curation.video import VideoError
from phantom_mega.data.index import INDEX_NAME
from phantom_mega.data.publish import claim, is_complete, publish
from phantom_mega.data.samples import TOKENIZER
from phantom_mega.data.schema import Reference, ReferenceSource, Triplet
from phantom_mega.data.shards import ShardWriter
from phantom_mega.errors import UserError
from phantom_mega.files import sync, whole_file
from phantom_mega.images import open_header

logger = logging.getLogger(__name__)
CLIPS = "clips_encoded"  # folder of the files, beside the tables
MARKER = "curated.json"
SOURCE = "phantom_mega.curation"
FORMAT = 1  # raise when shards of the same samples get other bytes
COLUMNS = (
    pa.field("key", pa.string()),
    pa.field("file", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("sha256", pa.string()),
    pa.field("codec", pa.string()),
    pa.field("frames", pa.int32()),
    pa.field("fps", pa.float64()),
    pa.field("height", pa.int32()),
    pa.field("width", pa.int32()),
)


@dataclass
class WriteSettings:
    """How shards are written."""

    tokenizer: str = TOKENIZER
    """Counts the captions' tokens (as the `conditioning.text_encoder` that will read them); empty counts none."""
    max_samples_per_shard: int = 1000
    """A shard is closed after this many samples,"""
    max_shard_bytes: int = 1 << 30
    """or when it is larger than this."""


@dataclass
class Written:
    """What `write_shards` did.

    Attributes:
        samples: of each split.
        made: splits that were written; the others were there already.
        left_out: samples that could not be written, by reason; of the splits that were written.
    """

    samples: dict[str, int] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)


# -- stage `encoded`


def keep_clip(clip: EncodedClip, name: str, folder: Path) -> Row:
    """Put an encoded clip into a file, whole or absent; returns its row without the key.

    Args:
        clip: to keep.
        name: of the file, hexadecimal.
        folder: of all tables.

    Raises:
        UserError: the disk is full.
    """
    path = folder / CLIPS / name[:2] / f"{name}.{clip.extension}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(clip.data)
        sync(temporary)
    about = {"codec": clip.codec, "frames": clip.frames, "fps": clip.fps, "height": clip.height, "width": clip.width}
    about |= {"bytes": len(clip.data), "sha256": hashlib.sha256(clip.data).hexdigest()}
    return about | {"file": str(path.relative_to(folder))}


def open_encode(settings: TranscodeSettings, folder: str) -> Callable[[Row], list[Row]]:
    """The function of a sample; `folder` is that of all tables."""
    settings.check()
    how = json.dumps(dataclasses.asdict(settings), sort_keys=True)

    def encode(row: Row) -> list[Row]:
        try:
            clip = transcode(row["path"], row["start"], row["end"], row["fps"], settings)
        except VideoError as error:
            raise Rejection("cannot be encoded", None, f"{row['path']} {error}") from None
        name = hashlib.sha256(f"{row['key']} {row['start']} {row['end']} {how}".encode()).hexdigest()[:40]
        return [{"key": row["key"]} | keep_clip(clip, name, Path(folder))]

    return encode


def stage(settings: TranscodeSettings, folder: Path) -> Stage:
    """Stage `encoded`.

    Args:
        settings: of the clips.
        folder: of all tables; the clips' files lie beside them. Not a part of what the results depend on.
    """
    inputs = {"samples": ("key", "path", "start", "end", "fps")}
    return Stage("encoded", COLUMNS, inputs, settings, functools.partial(open_encode, folder=str(folder)))


# -- shards


class Spool:
    """Images of crops in one file without a name: a million of them take little memory, and nothing stays behind.

    Args:
        folder: on a disk with room for them.
    """

    def __init__(self, folder: Path):
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it lives as long as the spool)
        self._places: dict[str, tuple[int, int, int]] = {}

    def add(self, crops: Table, wanted: set[str]) -> None:
        """Copy the images, and masks where the table has them, of those that are wanted."""
        for part in range(crops.parts):
            try:
                with pq.ParquetFile(crops.path(part)) as file:
                    columns = {"crop_id", "image", "mask", "accepted"} & set(file.schema_arrow.names)
                    for batch in file.iter_batches(256, columns=sorted(columns)):
                        for row in batch.to_pylist():
                            if row["accepted"] and row["crop_id"] in wanted:
                                self._put(row["crop_id"], row["image"] or b"", row.get("mask") or b"")
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{crops.path(part)} cannot be read ({error}); run stage {crops.stage} again") from None

    def _put(self, name: str, image: bytes, mask: bytes) -> None:
        self._places[name] = (self._file.seek(0, 2), len(image), len(mask))
        self._file.write(image + mask)

    def get(self, name: str) -> tuple[bytes, bytes | None]:
        """(image, mask or None) of a crop.

        Raises:
            KeyError: it has none.
        """
        place, image, mask = self._places[name]
        self._file.seek(place)
        return self._file.read(image), self._file.read(mask) or None

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error) -> None:
        self._file.close()


def write_shards(folder: Path, parts: int, output: Path, settings: WriteSettings, quiet: bool = False) -> Written:
    """Write `output/train` and `output/validation`: WebDataset shards and the index.

    A split that is there, made of the same samples, is left alone; another one is replaced as a whole.

    Args:
        folder: of all tables; `samples`, `encoded` and `crops` must be there.
        parts: of each table.
        output: folder of the data sets.
        settings: of the shards.
        quiet: no bar.

    Raises:
        UserError: a table or a clip's file is missing or damaged, or the output holds something else.
    """
    tables = {name: Table(folder, name, parts) for name in ("samples", "encoded", "crops")}
    digest = _digest(tables.values(), settings)
    encoded = {row["key"]: row for row in tables["encoded"].read(accepted=True).to_pylist()}
    columns = ["key", "video_id", "split", "caption", "references", "sources"]
    samples = [row for row in tables["samples"].read(columns, accepted=True).to_pylist() if row["key"] in encoded]
    samples.sort(key=lambda row: row["key"])
    result = Written(made=[split for split in SPLITS if not is_complete(output / split, MARKER, digest)])
    if result.made:
        building = {split: claim(output / split, MARKER, SOURCE) for split in result.made}
        count_tokens = _token_counter(settings.tokenizer)
        limits = {"max_samples_per_shard": settings.max_samples_per_shard, "max_bytes": settings.max_shard_bytes}
        with Spool(output) as spool:
            spool.add(
                tables["crops"], {name for row in samples if row["split"] in building for name in row["references"]}
            )
            for split in result.made:
                rows = [row for row in samples if row["split"] == split]
                bar = tqdm(rows, desc=f"write {split}", unit=" samples", disable=quiet, file=sys.stderr)
                with ShardWriter(building[split], tokenizer=settings.tokenizer or None, **limits) as writer:
                    for row in bar:
                        try:
                            sample = _sample(row, encoded[row["key"]], spool, count_tokens)
                        except _Unfit as problem:
                            result.left_out[str(problem)] += 1
                        else:
                            clip = _read_clip(folder, encoded[row["key"]])
                            writer.write(sample.triplet, clip, sample.extension, sample.images, sample.masks)
                publish(output / split, MARKER, SOURCE, digest)
    result.samples = {split: pq.read_metadata(output / split / INDEX_NAME).num_rows for split in SPLITS}
    return result


class _Unfit(Exception):  # noqa: N818 (no error: the sample is left out and counted)
    """A sample cannot be written; a few fixed words say why."""


@dataclass
class _Sample:
    """What a shard takes beside the clip's bytes."""

    triplet: Triplet
    extension: str
    images: list[tuple[bytes, str]]
    masks: list[bytes | None]


def _sample(row: Row, about: Row, spool: Spool, count_tokens: Callable[[str], int]) -> _Sample:
    """Put a sample together; raises _Unfit."""
    references, images, masks = [], [], []
    for name, source in zip(row["references"], row["sources"], strict=True):
        try:
            image, mask = spool.get(name)
            header = open_header(image)
        except KeyError:
            raise _Unfit("a reference has no image") from None
        except Exception:  # PIL's parsers raise nearly anything on damaged files
            raise _Unfit("a reference's image cannot be read") from None
        images.append((image, {"JPEG": "jpg", "PNG": "png"}[header.format]))
        masks.append(mask)
        place = ReferenceSource(source["video_id"], source["frame"], tuple(source["box"]))
        fields = [source[field] for field in ("phrase", "category", "kind")]
        references.append(Reference(*fields, place, header.height, header.width, mask is not None))
    described = {name: about[name] for name in ("frames", "fps", "height", "width", "codec")}
    described |= {name: row[name] for name in ("key", "caption", "video_id")}
    try:
        triplet = Triplet(**described, references=tuple(references), text_tokens=count_tokens(row["caption"]))
    except UserError as error:
        logger.warning("%s", error)
        raise _Unfit("its description is not valid") from None
    return _Sample(triplet, Path(about["file"]).suffix[1:], images, masks)


def _read_clip(folder: Path, about: Row) -> bytes:
    path = folder / about["file"]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); remove {folder / 'encoded'} and run again"
        ) from None
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise UserError(f"{path} is damaged; remove {folder / 'encoded'} and run again")
    return data


def _digest(tables: Iterable[Table], settings: WriteSettings) -> str:
    """Of all that the shards are made of."""
    digest = hashlib.sha256(f"{FORMAT} {json.dumps(dataclasses.asdict(settings), sort_keys=True)}".encode())
    for table in tables:
        for part in range(table.parts):
            stamp = table.stamp(part)
            if stamp is None:
                raise UserError(f"shards need stage {table.stage}, which has not run")
            digest.update(stamp[1])
    return digest.hexdigest()


def _token_counter(tokenizer: str) -> Callable[[str], int]:
    if not tokenizer:
        return lambda text: 0
    from phantom_mega.conditioning.text import load_tokenizer  # slow to import, and not needed where all is ready

    tokens = load_tokenizer(tokenizer)
    return lambda text: len(tokens(text)["input_ids"])
