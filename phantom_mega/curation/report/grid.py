"""Pairs to look at: the images of both sides, read for no other pair."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from phantom_mega.curation.engine.stage import Row
from phantom_mega.curation.engine.tables import part_of
from phantom_mega.curation.report.candidates import Chosen, read_rows
from phantom_mega.curation.report.reading import Tables, shown
from phantom_mega.curation.video import VideoError, frames_at, to_rgb
from phantom_mega.errors import UserError
from phantom_mega.images import open_image
from phantom_mega.pictures import COLOURS

IMAGE_BYTES = 4 << 30  # of the table `crops` that are read for one report at most
SIDE, FRAME_WIDTH = 168, 288  # pixels
_PAIR = (
    "pair_id",
    "clip_id",
    "subject",
    "crop_id",
    "kind",
    "similarity",
    "face_similarity",
    "reason",
    "score",
    "detail",
)
_CROP = ("crop_id", "clip_id", "video_id", "subject", "phrase", "category", "time", "box", "path")


@dataclass
class Shown:
    """A pair of the grid.

    Attributes:
        name: of the pair.
        phrase, category: of the clip's subject, or of the reference where nothing is known of it.
        kind: `cross` or `in`.
        similarity, face: None where unknown.
        reason, detail: why it was rejected; empty if it was accepted.
        source: where the reference comes from.
        target: where the clip's subject is seen.
        reference, subject, frame: pictures; None where there is none to read.
    """

    name: str
    phrase: str
    category: str
    kind: str
    similarity: float | None
    face: float | None
    reason: str
    detail: str
    source: str
    target: str
    reference: Image.Image | None = None
    subject: Image.Image | None = None
    frame: Image.Image | None = None


def image_parts(tables: Tables, most: int = IMAGE_BYTES) -> set[int]:
    """Parts of `crops`, from the first on, whose images are of `most` bytes together; at least one.

    Crops lie in the parts of their clips, which hashes of names decide: a few parts are a fair sample of all.
    """
    parts: set[int] = set()
    if not tables.has("crops", *_CROP, "image"):
        return parts
    for part in range(tables.parts):
        most -= tables.there["crops"].path(part).stat().st_size
        if parts and most < 0:
            break
        parts.add(part)
    return parts


def read_grid(tables: Tables, chosen: Chosen, parts: set[int], with_frames: bool) -> list[Shown]:
    """Pairs with their pictures.

    Args:
        tables: `pairs` and `crops` have run.
        chosen: rows of `pairs`.
        parts: of `crops` whose images may be read.
        with_frames: also decode the clip where its subject is seen.
    """
    pairs = read_rows(tables, "pairs", chosen.rows, _PAIR)
    references, targets = _find_crops(tables, pairs, parts)
    images = _read_images(tables, [*references.values(), *targets.values()], parts)
    clips = _clips(tables, {pair["clip_id"] for pair in pairs}) if with_frames else {}
    found = []
    for pair in pairs:
        reference, target = references.get(pair["crop_id"]), targets.get((pair["clip_id"], pair["subject"]))
        one = _described(pair, reference, target)
        one.reference = images.get(pair["crop_id"])
        one.subject = images.get(target["crop_id"]) if target else None
        one.frame = _frame(clips.get(pair["clip_id"]), target) if with_frames else None
        found.append(one)
    return found


def _described(pair: Row, reference: Row | None, target: Row | None) -> Shown:
    about = target or reference or {}
    known = [shown(about.get(name) or "unknown", 120) for name in ("phrase", "category")]
    return Shown(
        shown(pair["pair_id"]), *known, shown(pair["kind"] or "cross", 20), pair["similarity"], pair["face_similarity"],
        shown(pair["reason"] or ""), shown(pair["detail"] or ""), _place(reference), _place(target),
    )  # fmt: skip


def _place(crop: Row | None) -> str:
    return f"{shown(crop['video_id'], 60)} at {crop['time']:.1f} s" if crop else "unknown"


def _find_crops(tables: Tables, pairs: Sequence[Row], parts: set[int]) -> tuple[dict[str, Row], dict[tuple, Row]]:
    """(references by name, the middle one of the crops of each pair's subject), each with the `part` that it lies in.

    What may be read is preferred.
    """
    names = pa.array([pair["crop_id"] for pair in pairs], pa.string())
    clips = pa.array([pair["clip_id"] for pair in pairs], pa.string())
    references: dict[str, Row] = {}
    seen: dict[tuple, list[tuple[bool, Row]]] = {(pair["clip_id"], pair["subject"]): [] for pair in pairs}
    for part in range(tables.parts):
        table = tables.read_part("crops", part, _CROP, True)
        wanted = pc.or_(pc.is_in(table["crop_id"], value_set=names), pc.is_in(table["clip_id"], value_set=clips))
        for row in table.filter(wanted).to_pylist():
            references[row["crop_id"]] = row | {"part": part}
            if (row["clip_id"], row["subject"]) in seen:
                seen[row["clip_id"], row["subject"]].append((part not in parts, row | {"part": part}))
    asked = set(names.to_pylist())
    return {name: row for name, row in references.items() if name in asked}, {
        subject: _middle(crops) for subject, crops in seen.items() if crops
    }


def _middle(crops: list[tuple[bool, Row]]) -> Row:
    best = min(away for away, _ in crops)
    rows = sorted((row for away, row in crops if away == best), key=lambda row: (row["time"], row["crop_id"]))
    return rows[len(rows) // 2]


def _read_images(tables: Tables, crops: Iterable[Row], parts: set[int]) -> dict[str, Image.Image]:
    by_part: dict[int, set[str]] = {}
    for crop in crops:
        by_part.setdefault(crop["part"], set()).add(crop["crop_id"])
    found: dict[str, Image.Image] = {}
    for part in sorted(by_part.keys() & parts):
        path, wanted = tables.there["crops"].path(part), by_part[part]
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(128, columns=["crop_id", "image"]):
                    rows = batch.filter(pc.is_in(batch["crop_id"], value_set=pa.array(sorted(wanted))))
                    for row in rows.to_pylist():
                        wanted.discard(row["crop_id"])
                        if image := _opened(row["image"] or b""):
                            found[row["crop_id"]] = image
                    if not wanted:
                        break
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}); run stage crops again") from None
    return found


def _opened(data: bytes) -> Image.Image | None:
    try:
        image = Image.fromarray(open_image(data))
    except ValueError:
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image


def _clips(tables: Tables, names: set[str]) -> dict[str, Row]:
    if not tables.has("clips", "path", "start", "end"):
        return {}
    found: dict[str, Row] = {}
    for part in sorted({part_of(name, tables.parts) for name in names}):
        table = tables.read_part("clips", part, ["clip_id", "path", "start", "end"])
        rows = table.filter(pc.is_in(table["clip_id"], value_set=pa.array(sorted(names)))).to_pylist()
        found |= {row["clip_id"]: row for row in rows}
    return found


def _frame(clip: Row | None, target: Row | None) -> Image.Image | None:
    """The frame in which the target was found, its box drawn, or else the clip's middle; None if it cannot be read."""
    if clip is None:
        return None
    time = target["time"] if target else (clip["start"] + clip["end"]) / 2
    try:
        frame = frames_at(clip["path"], [time])[0]
        height, width = (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)
        image = Image.fromarray(to_rgb(frame, FRAME_WIDTH, max(2, round(FRAME_WIDTH * height / width))))
    except (VideoError, OSError, ValueError):
        return None
    if target and target["box"] and len(target["box"]) == 4:
        x0, y0, x1, y1 = (min(max(side, 0.0), 1.0) * image.size[i % 2] for i, side in enumerate(target["box"]))
        if x0 < x1 and y0 < y1:
            ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), outline=COLOURS[0], width=3)
    return image


def jpeg(image: Image.Image, quality: int = 82) -> bytes:
    """A picture's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
