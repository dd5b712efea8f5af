"""Image pairs as samples of one frame (paper 3.1: Subject200k and OmniGen data), to the tables that `write` reads.

`subjects200k`: parquet files of Yuanshi/Subjects200K with the columns `image` {`bytes`}: two views of an item side by
side, each in its half with 16 pixels of padding; `description` {`item`, `description_0`, `description_1`, `category`,
`description_valid`}; `quality_assessment` {`compositeStructure`, `objectConsistency`, `imageQuality`: 0 to 5}. Each
view becomes a sample whose reference is the other one. Where the padding lies is not published: what is cut off here
(`padding` at every side of a half) holds no padding in either of the layouts that fit its 1056 x 528 pixels.

`omnigen`: JSON lines {`instruction`, `input_images`: paths, `output_image` (also `output_images`): path} as OmniGen's
fine-tuning and X2I have them. The instruction is the caption without its marks `<img><|image_1|></img>`; the words
before a mark are assumed to name what image 1 shows.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from phantom_mega.curation import samples, write
from phantom_mega.curation.categories import category_of
from phantom_mega.curation.columns import fields_of
from phantom_mega.curation.cut import image_of
from phantom_mega.curation.engine.stage import Rejection, Row, Stage, verdict
from phantom_mega.curation.readers import WRONG_FIELD, get
from phantom_mega.curation.samples import SampleSettings, sample_key, split_videos
from phantom_mega.curation.transcode import EncodedClip
from phantom_mega.data.encode import encode_image, scaled_size
from phantom_mega.data.schema import MAX_REFERENCES
from phantom_mega.errors import UserError
from phantom_mega.images import open_header, upright_rgb

LAYOUTS = ("subjects200k", "omnigen")
QUALITIES = ("compositeStructure", "objectConsistency", "imageQuality")
_MARK = re.compile(r"\s*<img>\s*<\|image_(\d+)\|>\s*</img>")
_SMALL_WORDS = frozenset(("a", "an", "the", "of", "in", "on", "at", "with", "and", "or", "to", "from", "by", "this",
                          "that", "is", "are", "his", "her", "its", "their"))  # fmt: skip


@dataclass
class ImagePairSettings:
    """Where image pairs lie and which are taken."""

    layout: str = "subjects200k"
    """`subjects200k` or `omnigen`."""
    files: list[str] = field(default_factory=list)
    """Parquet files, or files of JSON lines."""
    images: str = ""
    """Folder that the paths of `omnigen` are relative to; that of the file if empty."""
    padding: int = 16
    """Pixels cut off at every side of both halves (`subjects200k`)."""
    min_quality: int = 5
    """Of each of the three qualities (`subjects200k`); 0 also takes pairs that were not assessed."""
    short_side: int = 720
    """Pixels of the shorter side of a sample at most; references have at most 512 on the longer one."""
    samples: SampleSettings = field(default_factory=SampleSettings)
    """Of the split; `validation_videos` names images."""


@dataclass
class Pair:
    """One sample: a picture, what it shows, and references.

    Attributes:
        name: unique.
        source: what the split is by: images that share one are on the same side.
        caption: of the picture.
        target: opens it.
        references: (phrase, category, image, box in it or None for all of it, opens it).
        problem: why it cannot be taken.
    """

    name: str
    source: str
    caption: str = ""
    target: Callable[[], Image.Image] | None = None
    references: list[tuple[str, str, str, list[float] | None, Callable[[], Image.Image]]] = field(default_factory=list)
    problem: Rejection | None = None


# -- layouts


def views(size: tuple[int, int], padding: int) -> list[tuple[int, int, int, int]]:
    """Boxes of the left and the right view in a picture of `size` (width, height)."""
    half, height = size[0] // 2, size[1]
    if min(half, height) <= 2 * padding:
        raise Rejection(WRONG_FIELD, None, f"a picture of {size[0]}x{size[1]} pixels holds no two views")
    return [(x + padding, padding, x + half - padding, height - padding) for x in (0, half)]


def read_subjects200k(row: Row, settings: ImagePairSettings) -> Iterator[Pair]:
    """Two pairs of each picture in a group of a parquet file."""
    with pq.ParquetFile(row["path"]) as file:
        columns = ["image", "description", "quality_assessment"]
        entries = file.read_row_group(row["group"], columns=columns).to_pylist()
    for number, entry in enumerate(entries):
        name = f"{row['image_id']}_{number}"
        try:
            yield from _two_views(name, entry, settings)
        except Rejection as rejection:
            yield Pair(name, name, problem=rejection)


def _two_views(name: str, entry: Row, settings: ImagePairSettings) -> list[Pair]:
    about, quality = get(entry, "description", dict), entry.get("quality_assessment") or {}
    worst = min((quality.get(one) or 0 for one in QUALITIES), default=0)
    if worst < settings.min_quality:
        raise Rejection("quality", worst)
    if about.get("description_valid") is False:
        raise Rejection("description not valid")
    data = get(get(entry, "image", dict), "bytes", bytes)
    boxes = views(_opened(data).size, settings.padding)
    phrase = get(about, "item", str)
    category = category_of(phrase)

    def view(i: int) -> Callable[[], Image.Image]:
        return lambda: upright_rgb(_opened(data)).crop(boxes[i])

    return [
        Pair(
            f"{name}_{i}", name, get(about, f"description_{i}", str), view(i),
            [(phrase, category, name, [float(side) for side in boxes[1 - i]], view(1 - i))],
        )
        for i in range(2)
    ]  # fmt: skip


def read_omnigen(row: Row, settings: ImagePairSettings) -> Iterator[Pair]:
    """The pair of a line."""
    entry = json.loads(row["text"])
    said = get(entry, "instruction", str)
    target, inputs = _paths(entry)
    if not 1 <= len(inputs) <= MAX_REFERENCES:
        raise Rejection("number of references", len(inputs))
    folder = Path(settings.images or Path(row["path"]).parent)

    def opener(name: str) -> Callable[[], Image.Image]:
        return lambda: upright_rgb(_opened(_bytes(folder / name)))

    phrases = [phrase_before(said, i) for i in range(1, len(inputs) + 1)]
    references = [
        (phrase, category_of(phrase), name, None, opener(name)) for phrase, name in zip(phrases, inputs, strict=True)
    ]
    yield Pair(row["image_id"], row["source"], " ".join(_MARK.sub("", said).split()), opener(target), references)


def _paths(entry: Row) -> tuple[str, list[str]]:
    output = entry.get("output_image") or entry.get("output_images")
    inputs = get(entry, "input_images", list)
    if not isinstance(output, str) or not all(isinstance(name, str) for name in inputs):
        raise Rejection(WRONG_FIELD, None, "output_image and input_images are not all paths")
    return output, inputs


def phrase_before(instruction: str, number: int) -> str:
    """What the instruction calls an image: up to three words before its mark, back to the last small word."""
    for mark in _MARK.finditer(instruction):
        if int(mark[1]) == number:
            before = re.split(r"[.,;:!?]|</img>", instruction[: mark.start()])[-1].split()[-3:]
            while any(word.lower() in _SMALL_WORDS for word in before[:-1]):
                before = before[1:]
            if before and before[-1].lower() not in _SMALL_WORDS:
                return " ".join(before)
    return f"image {number}"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Rejection("image missing", None, f"{path} ({error.strerror})") from None


def _opened(data: bytes) -> Image.Image:
    try:
        image = open_header(data)
        image.load()
    except Exception as error:  # PIL's parsers raise nearly anything on damaged files
        raise Rejection("image unreadable", None, str(error)[:200]) from None
    return image


# -- stages


def connected(groups: list[list[str]]) -> list[str]:
    """For each group of images, a name that is the same for all groups that are linked by images they share."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for group in groups:
        for name in group[1:]:
            one, other = sorted((root(group[0]), root(name)))
            parent[other] = one
    return [root(group[0]) if group else "" for group in groups]


def list_images(settings: ImagePairSettings) -> Iterator[Row]:
    """Rows of the stage `images`: row groups of parquet files, or lines.

    Raises:
        UserError: an unknown layout, or a file that cannot be read.
    """
    if settings.layout not in LAYOUTS:
        raise UserError(f"layout {settings.layout!r} is unknown; use {' or '.join(LAYOUTS)}")
    for path in map(Path, settings.files):
        try:
            if settings.layout == "subjects200k":
                for group in range(pq.read_metadata(path).num_row_groups):
                    size = path.stat().st_size
                    yield {"image_id": f"{path.stem}_{group}", "path": str(path), "group": group, "text": str(size)}
            else:
                yield from _lines(path)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None


def _lines(path: Path) -> Iterator[Row]:
    rows, groups = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = {"image_id": f"{path.stem}_{number}", "path": str(path), "group": 0, "text": line}
        try:
            target, inputs = _paths(json.loads(line))
        except (ValueError, AttributeError, Rejection) as error:
            yield verdict(row, WRONG_FIELD, None, str(error)[:200])
            continue
        rows.append(row)
        groups.append([target, *inputs])
    for row, source in zip(rows, connected(groups), strict=True):
        yield row | {"source": source}


def _sample(pair: Pair, settings: ImagePairSettings) -> list[Row]:
    key = sample_key(pair.name)
    if pair.problem:
        return [
            verdict({"key": key, "clip_id": pair.name}, pair.problem.reason, pair.problem.score, pair.problem.detail)
        ]
    sources = []
    for phrase, category, image, box, view in pair.references:
        box = box or [0.0, 0.0, *map(float, view().size)]
        about = {"phrase": phrase, "category": category, "kind": "cross"}
        sources.append(about | {"video_id": image, "frame": 0, "box": box})
    row = {"key": key, "clip_id": pair.name, "video_id": pair.source, "caption": pair.caption, "sources": sources}
    row["split"] = split_videos([pair.source], settings.samples)[pair.source]
    row["references"] = [_crop_id(pair, i) for i in range(len(sources))]
    return [row | {"path": "", "start": 0.0, "end": 0.0, "fps": 0.0}]


def _crops(pair: Pair, settings: ImagePairSettings) -> list[Row]:
    rows = []
    for i, (phrase, category, name, _, view) in enumerate([] if pair.problem else pair.references):
        image = view()
        rows.append({
            "crop_id": _crop_id(pair, i), "clip_id": pair.name, "video_id": name, "path": "", "subject": i,
            "phrase": phrase, "category": category, "time": 0.0, "box": [0.0, 0.0, 1.0, 1.0], "width": image.width,
            "height": image.height, "image": image_of(image),
        })  # fmt: skip
    return rows


def _encoded(pair: Pair, settings: ImagePairSettings, folder: str) -> list[Row]:
    if pair.problem:
        return []
    image = pair.target()
    height, width = scaled_size(image.height, image.width, settings.short_side)
    data = encode_image(image.resize((width, height), Image.Resampling.LANCZOS))
    name = hashlib.sha256(f"{pair.name} {settings.short_side}".encode()).hexdigest()[:40]
    clip = EncodedClip(data, "jpg", "jpeg", 1, 0.0, height, width)
    return [{"key": sample_key(pair.name)} | write.keep_clip(clip, name, Path(folder))]


def _crop_id(pair: Pair, number: int) -> str:
    return f"{pair.name}:{number}"


def open_rows(settings: ImagePairSettings, key: str, make: Callable[..., list[Row]]) -> Callable[[Row], list[Row]]:
    """The function of a row of `images`; `make` gives the rows of a pair, `key` names them."""
    read = read_subjects200k if settings.layout == "subjects200k" else read_omnigen

    def rows(row: Row) -> list[Row]:
        made: list[Row] = []
        for pair in read(row, settings):
            try:
                made += make(pair, settings)
            except Rejection as rejection:
                name = sample_key(pair.name) if key == "key" else _crop_id(pair, 0)
                made.append(verdict({key: name}, rejection.reason, rejection.score, rejection.detail))
        return made

    return rows


def stages(settings: ImagePairSettings, folder: Path) -> list[Stage]:
    """`images`, `samples`, `crops` and `encoded`: all that `write_shards` needs.

    Args:
        settings: of the pairs.
        folder: of all tables, not shared with videos.
    """
    text, whole = pa.string(), pa.int64()
    images = {"image_id": text, "source": text, "path": text, "group": whole, "text": text}
    crops = fields_of("crops", "mask")
    encode = functools.partial(_encoded, folder=str(folder))
    made = [("samples", samples.COLUMNS, _sample), ("crops", crops, _crops), ("encoded", write.COLUMNS, encode)]
    names = tuple(pa.field(*one) for one in images.items())
    first = Stage("images", names, {}, settings, None, source=list_images)
    return [first] + [
        Stage(name, columns, {"images": tuple(images)}, settings,
              functools.partial(open_rows, key=columns[0].name, make=make))
        for name, columns, make in made
    ]  # fmt: skip
