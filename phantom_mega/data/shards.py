"""Shards: WebDataset tars that hold clips, references and JSON; written whole or not at all, read at any sample.

A sample `key` is `key.json`, `key.webm` (or another clip or image), `key.ref0.jpg` ... `key.ref3.jpg`, and for masked
references `key.ref0.mask.png`, next to one another, so that one read of `bytes` from `offset` brings all of it.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

from phantom_mega.data.index import index_row, write_index
from phantom_mega.data.schema import CLIP_EXTENSIONS, IMAGE_EXTENSIONS, Triplet, from_json, to_json
from phantom_mega.errors import BadSampleError, UserError


@dataclass(frozen=True)
class RawTriplet:
    """A sample as stored: encoded media.

    Attributes:
        triplet: what the JSON says.
        clip: bytes of the clip or image.
        clip_ext: its file extension, without a dot.
        references: bytes of the reference images.
        masks: bytes of each reference's mask, or None.
        shard: the tar it came from.
    """

    triplet: Triplet
    clip: bytes
    clip_ext: str
    references: list[bytes]
    masks: list[bytes | None]
    shard: str = ""


class ShardWriter:
    """Writes samples into `shard-000000.tar`, `shard-000001.tar`... and their index; use as a context manager.

    Shards appear under their names when whole; the index appears last, when everything is there. Leaving the context by
    an exception removes what was begun and writes no index.

    Args:
        folder: the data set's folder; made if missing.
        max_samples_per_shard: a shard is closed after this many samples,
        max_bytes: or when it is larger than this.
        tokenizer: what `text_tokens` were counted with; kept in the index.

    Raises:
        UserError: the folder already holds a data set.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        max_samples_per_shard: int = 1000,
        max_bytes: int = 1 << 30,
        tokenizer: str | None = None,
    ):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "index.parquet").exists():
            raise UserError(f"{self.folder} already holds a data set; choose another folder or remove it first")
        self.max_samples, self.max_bytes, self.tokenizer = max_samples_per_shard, max_bytes, tokenizer
        self._rows: list[dict] = []
        self._keys: set[str] = set()
        self._shards = 0
        self._in_shard = 0
        self._tar: tarfile.TarFile | None = None
        self._file = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        elif self._tar is not None:
            self._tar.close()
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    @property
    def _name(self) -> str:
        return f"shard-{self._shards:06d}.tar"

    @property
    def _temporary(self) -> Path:
        return self.folder / f".{self._name}.tmp"

    def write(
        self,
        triplet: Triplet,
        clip: bytes,
        clip_ext: str,
        references: list[tuple[bytes, str]],
        masks: list[bytes | None] | None = None,
    ) -> None:
        """Append one sample.

        Args:
            triplet: its description; `references` must match in number.
            clip: bytes of the clip or image.
            clip_ext: one of `CLIP_EXTENSIONS`.
            references: (bytes, extension) of each reference image.
            masks: PNG bytes of each reference's mask, or None.

        Raises:
            UserError: a key that was written before, an unknown extension, or references that do not match.
        """
        masks = masks or [None] * len(references)
        self._check(triplet, clip_ext, references, masks)
        if self._tar is None:
            self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed when the shard is full)
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
        start = self._file.tell()
        self._add(f"{triplet.key}.json", json.dumps(to_json(triplet), ensure_ascii=False).encode())
        self._add(f"{triplet.key}.{clip_ext}", clip)
        for i, ((image, extension), mask) in enumerate(zip(references, masks, strict=True)):
            self._add(f"{triplet.key}.ref{i}.{extension}", image)
            if mask is not None:
                self._add(f"{triplet.key}.ref{i}.mask.png", mask)
        self._rows.append(index_row(triplet, self._name, start, self._file.tell() - start, len(clip)))
        self._keys.add(triplet.key)
        self._in_shard += 1
        if self._in_shard >= self.max_samples or self._file.tell() >= self.max_bytes:
            self._finish_shard()

    def _check(self, triplet: Triplet, clip_ext: str, references: list, masks: list) -> None:
        if triplet.key in self._keys:
            raise UserError(f"the key {triplet.key!r} was already written to {self.folder}")
        if clip_ext not in CLIP_EXTENSIONS:
            raise UserError(f"{triplet.key}: clip extension {clip_ext!r}; use one of {', '.join(CLIP_EXTENSIONS)}")
        if not len(references) == len(triplet.references) == len(masks):
            raise UserError(
                f"{triplet.key}: {len(triplet.references)} references are described, "
                f"{len(references)} images and {len(masks)} masks are given"
            )
        for described, (_, extension), mask in zip(triplet.references, references, masks):
            if extension not in IMAGE_EXTENSIONS:
                raise UserError(f"{triplet.key}: reference extension {extension!r}; use {', '.join(IMAGE_EXTENSIONS)}")
            if described.mask != (mask is not None):
                raise UserError(f"{triplet.key}: a reference's `mask` field and its mask image disagree")

    def _add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)  # owner, mode and time stay fixed: equal samples give equal shards
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))

    def _finish_shard(self) -> None:
        self._tar.close()
        self._file.close()
        os.replace(self._temporary, self.folder / self._name)
        self._tar = self._file = None
        self._shards += 1
        self._in_shard = 0

    def close(self) -> None:
        """Finish the last shard and publish the index."""
        if self._tar is not None:
            self._finish_shard()
        write_index(self.folder, self._rows, self.tokenizer)


def read_sample(shard: str, offset: int, size: int, key: str) -> RawTriplet:
    """Read one sample from its shard.

    Args:
        shard: path of the tar.
        offset, size: the sample's span (`index.parquet`).
        key: its key.

    Raises:
        BadSampleError: the span holds no such sample, bad JSON, a missing clip or reference, or a hostile member name.
    """
    try:
        with open(shard, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise BadSampleError(key, shard, f"the shard cannot be read ({error.strerror})") from None
    try:
        return parse_sample(_members(data, key, shard), key, shard)
    except (tarfile.TarError, EOFError, OverflowError, UnicodeDecodeError) as error:
        raise BadSampleError(key, shard, f"the shard is damaged at byte {offset}: {error}") from None


def _members(data: bytes, key: str, shard: str) -> dict[str, bytes]:
    """Suffix after the key -> content, of the members of one span."""
    members = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", ignore_zeros=False) as tar:
        for info in tar:
            if not info.isfile() or "/" in info.name or "\\" in info.name or ".." in info.name:
                raise BadSampleError(key, shard, f"refused the member {info.name!r}: only plain file names are allowed")
            owner, _, suffix = info.name.partition(".")
            if owner != key:
                raise BadSampleError(key, shard, f"found the member {info.name!r} in its place; rebuild the index")
            content = tar.extractfile(info).read()
            if len(content) != info.size:
                raise BadSampleError(key, shard, f"{info.name} ends after {len(content)} of {info.size} bytes")
            members[suffix] = content
    return members


def parse_sample(members: dict[str, bytes], key: str, shard: str) -> RawTriplet:
    """Put the members of one sample together.

    Raises:
        BadSampleError: as `read_sample`.
    """
    if "json" not in members:
        raise BadSampleError(key, shard, "there is no .json member")
    try:
        triplet = from_json(json.loads(members["json"]))
    except json.JSONDecodeError as error:
        raise BadSampleError(key, shard, f"bad JSON: {error}") from None
    except UserError as error:
        raise BadSampleError(key, shard, str(error)) from None
    clips = [extension for extension in CLIP_EXTENSIONS if extension in members]
    if len(clips) != 1:
        raise BadSampleError(key, shard, f"{len(clips)} clips are stored ({', '.join(clips) or 'none'}); one is needed")
    references, masks = [], []
    for i, described in enumerate(triplet.references):
        found = [members[f"ref{i}.{ext}"] for ext in IMAGE_EXTENSIONS if f"ref{i}.{ext}" in members]
        if not found:
            raise BadSampleError(key, shard, f"reference {i} ({described.phrase!r}) is missing")
        mask = members.get(f"ref{i}.mask.png")
        if described.mask and mask is None:
            raise BadSampleError(key, shard, f"the mask of reference {i} is missing")
        references.append(found[0])
        masks.append(mask)
    return RawTriplet(triplet, members[clips[0]], clips[0], references, masks, shard)


class ShardReader:
    """Random access to the samples of an index; opens a shard for each read, so no handle outlives it.

    Args:
        index: of the data sets.
    """

    def __init__(self, index):
        self.index = index

    def read(self, row: int) -> RawTriplet:
        """The sample of an index row.

        Raises:
            BadSampleError: it cannot be read; names shard, key and reason.
        """
        column = self.index.column
        return read_sample(
            str(column("shard")[row]), int(column("offset")[row]), int(column("bytes")[row]), str(column("key")[row])
        )
