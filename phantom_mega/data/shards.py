"""Shards: WebDataset tars that hold clips, references and JSON; written whole or not at all, read at any sample.

A sample `key` is `key.json`, `key.webm` (or another clip or image), `key.ref0.jpg` ... `key.ref3.jpg`, and for masked
references `key.ref0.mask.png`, next to one another, so that one read of `bytes` from `offset` brings all of it.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from phantom_mega.data.index import INDEX_NAME, index_row, write_index
from phantom_mega.data.schema import CLIP_EXTENSIONS, IMAGE_EXTENSIONS, Triplet, from_json, to_json
from phantom_mega.errors import BadSampleError, UserError
from phantom_mega.files import sync

MAX_JSON_BYTES = 1 << 20  # of one sample
MAX_SAMPLE_BYTES = 1 << 30  # all of it is read at once
MAX_MEMBERS = 64  # of one sample; ten have a meaning
_MAX_HEADER_BYTES = 4 << 20  # names of tar members, which may be as long as a header claims
# What tarfile raises on headers that lie: numbers that are none, long names of long names without end.
_DAMAGE = (tarfile.TarError, EOFError, OSError, OverflowError, ValueError, RecursionError)


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

    Nothing appears under its name before `close`: then the shards do, and the index last, when everything is there.
    Leaving the context by an exception removes what was written; a killed run leaves hidden `.tmp` files, which the
    next one writes over.

    Args:
        folder: the data set's folder; made if missing.
        max_samples_per_shard: a shard is closed after this many samples,
        max_bytes: or when it is larger than this.
        tokenizer: what `text_tokens` were counted with; kept in the index.

    Raises:
        UserError: the folder already holds a data set, or shards without an index.
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
        if (self.folder / INDEX_NAME).exists():
            raise UserError(f"{self.folder} already holds a data set; choose another folder or remove it first")
        if any(self.folder.glob("*.tar")):
            raise UserError(
                f"{self.folder} holds shards without an index; rebuild it with tools/build_index.py, or remove them"
            )
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
            return
        if self._tar is not None:
            self._file.close()
        for number in range(self._shards + 1):
            self._temporary(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:06d}.tar"

    def _temporary(self, number: int) -> Path:
        return self.folder / f".{self._path(number).name}.tmp"

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
            UserError: a key that was written before, an unknown extension, references that do not match, or more
                bytes than readers take.
        """
        masks = masks or [None] * len(references)
        self._check(triplet, clip_ext, references, masks)
        size = sum(map(len, (clip, *(image for image, _ in references), *filter(None, masks))))
        if size > MAX_SAMPLE_BYTES - (1 << 20) - MAX_JSON_BYTES:  # less what headers and the JSON take
            raise UserError(f"{triplet.key}: its media take {size} bytes; a sample has at most {MAX_SAMPLE_BYTES}")
        if self._tar is None:
            self._file = open(self._temporary(self._shards), "wb")  # noqa: SIM115 (closed when the shard is full)
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
        shard, start = self._path(self._shards).name, self._file.tell()
        self._add(f"{triplet.key}.json", json.dumps(to_json(triplet), ensure_ascii=False).encode())
        self._add(f"{triplet.key}.{clip_ext}", clip)
        for i, ((image, extension), mask) in enumerate(zip(references, masks, strict=True)):
            self._add(f"{triplet.key}.ref{i}.{extension}", image)
            if mask is not None:
                self._add(f"{triplet.key}.ref{i}.mask.png", mask)
        self._rows.append(index_row(triplet, shard, start, self._file.tell() - start, len(clip)))
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
        sync(self._temporary(self._shards))
        self._tar = self._file = None
        self._shards += 1
        self._in_shard = 0

    def close(self) -> None:
        """Finish the last shard; publish the shards, then the index."""
        if self._tar is not None:
            self._finish_shard()
        for number in range(self._shards):
            os.replace(self._temporary(number), self._path(number))
        write_index(self.folder, self._rows, self.tokenizer)


def read_sample(shard: str, offset: int, size: int, key: str) -> RawTriplet:
    """Read one sample from its shard.

    Args:
        shard: path of the tar.
        offset, size: the sample's span (`index.parquet`).
        key: its key.

    Raises:
        BadSampleError: the span holds no such sample, too many bytes, bad JSON, a missing clip or reference, or a
            hostile member.
    """
    try:
        with open(shard, "rb") as file:
            # An index that claims more than the file has must not take memory for it.
            size = min(size, max(0, os.fstat(file.fileno()).st_size - offset))
            if size > MAX_SAMPLE_BYTES:
                raise BadSampleError(key, shard, f"it takes {size} bytes; {MAX_SAMPLE_BYTES} are the most")
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise BadSampleError(key, shard, f"the shard cannot be read ({error.strerror})") from None
    except OverflowError:
        raise BadSampleError(key, shard, f"no shard has a byte {offset}") from None
    try:
        return parse_sample(_members(data, key, shard), key, shard)
    except BadSampleError:
        raise
    except _DAMAGE as error:
        raise BadSampleError(key, shard, f"the shard is damaged at byte {offset}: {error}") from None


def scan_shard(shard: str | os.PathLike) -> Iterator[tuple[Triplet, dict] | BadSampleError]:
    """Go through a tar without reading its media; yields (triplet, row of the index) or what is wrong with a sample.

    Members of a sample must be next to each other. Damage of the tar is yielded last: nothing can be found after.
    """
    shard = Path(shard)
    sample = _Scanned("the first sample", 0)
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=_Bounded(file), mode="r:") as tar:
            while info := tar.next():
                tar.members = []  # tarfile keeps them all otherwise
                key, suffix = member_name(info, sample.key, shard.name)
                if key != sample.key:
                    if sample.members:
                        yield sample.finish(shard.name)
                    sample = _Scanned(key, info.offset)
                json_size = min(info.size, MAX_JSON_BYTES + 1) if suffix == "json" else 0
                sample.add(suffix, info.size, tar.extractfile(info).read(json_size), tar.offset)
            if sample.members:
                yield sample.finish(shard.name)
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("the end mark is missing, so samples may be too")
    except BadSampleError as error:
        yield error
    except _DAMAGE as error:
        yield BadSampleError(sample.key, shard.name, f"the shard is damaged at or after this sample: {error}")


class _Bounded:
    """A file for tarfile that refuses to read what only a lying header would ask for."""

    def __init__(self, file):
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """As of a file.

        Raises:
            tarfile.ReadError: `size` is larger than any header.
        """
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._file.read(size)


@dataclass
class _Scanned:
    """Members of the sample that a scan is at: JSON as bytes, media empty."""

    key: str
    offset: int
    end: int = 0
    members: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def add(self, suffix: str, size: int, content: bytes, end: int) -> None:
        """Note a member of `size` bytes, after which the next one starts at `end`."""
        self.members[suffix], self.sizes[suffix], self.end = content, size, end
        if len(self.members) > MAX_MEMBERS:
            raise tarfile.ReadError(f"it has more than {MAX_MEMBERS} files")

    def finish(self, shard: str) -> tuple[Triplet, dict] | BadSampleError:
        try:
            raw = parse_sample(self.members, self.key, shard)
        except BadSampleError as error:
            return error
        size = self.end - self.offset
        if size > MAX_SAMPLE_BYTES:
            return BadSampleError(self.key, shard, f"it takes {size} bytes; {MAX_SAMPLE_BYTES} are the most")
        return raw.triplet, index_row(raw.triplet, shard, self.offset, size, self.sizes[raw.clip_ext])


def _members(data: bytes, key: str, shard: str) -> dict[str, bytes]:
    """Suffix after the key -> content, of the members of one span."""
    members = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", ignore_zeros=False) as tar:
        for info in tar:
            owner, suffix = member_name(info, key, shard)
            if owner != key:
                raise BadSampleError(key, shard, f"found the member {info.name!r} in its place; rebuild the index")
            content = tar.extractfile(info).read()
            if len(content) != info.size:
                raise BadSampleError(key, shard, f"{info.name} ends after {len(content)} of {info.size} bytes")
            members[suffix] = content
            if len(members) > MAX_MEMBERS:
                raise BadSampleError(key, shard, f"it has more than {MAX_MEMBERS} files")
    return members


def member_name(info: tarfile.TarInfo, key: str, shard: str) -> tuple[str, str]:
    """(key, suffix) of a tar member.

    Raises:
        BadSampleError: a folder, a link, a file with holes (a few bytes that unpack to any size) or of negative size
            (which would be found again without end), or a name that could lead out of a folder or control a terminal.
    """
    plain = info.isreg() and not info.issparse() and info.size >= 0 and info.name.isprintable()
    if not plain or "/" in info.name or "\\" in info.name or ".." in info.name:
        raise BadSampleError(
            key, shard, f"refused the member {info.name[:200]!r} ({info.size} bytes): only plain files are allowed"
        )
    owner, _, suffix = info.name.partition(".")
    return owner, suffix


def parse_sample(members: dict[str, bytes], key: str, shard: str) -> RawTriplet:
    """Put the members of one sample together.

    Raises:
        BadSampleError: as `read_sample`.
    """
    if "json" not in members:
        raise BadSampleError(key, shard, "there is no .json member")
    if len(members["json"]) > MAX_JSON_BYTES:
        raise BadSampleError(key, shard, f"its JSON is larger than {MAX_JSON_BYTES} bytes")
    try:
        triplet = from_json(json.loads(members["json"]))
    except UserError as error:
        raise BadSampleError(key, shard, str(error)) from None
    except (ValueError, RecursionError) as error:  # wrong syntax, bytes that are no UTF-8, absurd nesting
        raise BadSampleError(key, shard, f"bad JSON: {error}") from None
    if triplet.key != key:
        raise BadSampleError(key, shard, f"its JSON is of the sample {triplet.key!r}")
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
        shard, offset, size, key = (self.index.value(name, row) for name in ("shard", "offset", "bytes", "key"))
        return read_sample(shard, offset, size, key)
