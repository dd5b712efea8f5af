"""The triplet: a clip, a caption, and one to four references. Dataclasses, and the JSON that stands beside a clip.

The schema is versioned: a reader refuses what a newer writer made, by name, instead of guessing.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field

from phantom_mega.errors import UserError

SCHEMA_VERSION = 1
PAIR_KINDS = ("cross", "in")
CATEGORIES = ("human", "animal", "clothes", "product", "landmark", "ip_character", "others")
MAX_REFERENCES = 4
MAX_FPS = 1_000_000
MAX_NUMBER = (1 << 31) - 1  # of frames, pixels and tokens: what the index holds
CLIP_EXTENSIONS = ("webm", "mp4", "mkv", "avi", "mov", "jpg", "jpeg", "png")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png")
KEY_PATTERN = r"[A-Za-z0-9_\-]{1,200}"


@dataclass(frozen=True)
class ReferenceSource:
    """Where a reference was cut from: video, frame number, and box (x0, y0, x1, y1) in that frame's pixels."""

    video_id: str
    frame: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Reference:
    """One reference image, already cropped to its box.

    Attributes:
        phrase: what the caption calls the subject.
        category: one of `CATEGORIES`.
        kind: `cross` (cut from another shot or video) or `in` (from the clip itself).
        source: where it was cut from.
        height, width: of the stored image, in pixels.
        mask: whether a mask image of the same size is stored with it.
    """

    phrase: str
    category: str
    kind: str
    source: ReferenceSource
    height: int
    width: int
    mask: bool = False


@dataclass(frozen=True)
class Triplet:
    """One training sample without its media.

    Attributes:
        key: unique name, letters, digits, `_` and `-`.
        caption: the prompt.
        video_id: the source video; train and validation are split by it.
        frames: of the stored clip; 1 for an image.
        fps: frames per second of the stored clip; 0 for an image.
        height, width: of the stored clip, in pixels.
        codec: of the stored clip (`vp9`, `h264`, `ffv1`, `jpeg`...).
        references: at most four.
        text_tokens: tokens of the caption by the tokenizer that the index names; 0 where not counted.
        scores: quality scores by name.
    """

    key: str
    caption: str
    video_id: str
    frames: int
    fps: float
    height: int
    width: int
    codec: str
    references: tuple[Reference, ...] = ()
    text_tokens: int = 0
    scores: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        problem = self._problem() or self._unfit_for_the_index()
        if problem:
            raise UserError(f"sample {str(self.key)[:80]!r}: {problem}")

    def _problem(self) -> str | None:
        if not isinstance(self.key, str) or not re.fullmatch(KEY_PATTERN, self.key):
            return "the key may hold letters, digits, _ and - only (at most 200)"
        if self.frames < 1 or self.height < 1 or self.width < 1:
            return f"frames={self.frames}, height={self.height}, width={self.width} must all be at least 1"
        if not 0 <= self.fps <= MAX_FPS or (self.frames > 1 and not self.fps):
            return f"fps={self.fps} must be positive for a clip (at most {MAX_FPS}), 0 for an image"
        if self.text_tokens < 0:
            return f"text_tokens={self.text_tokens} must be at least 0"
        if len(self.references) > MAX_REFERENCES:
            return f"{len(self.references)} references; at most {MAX_REFERENCES} are allowed"
        for i, reference in enumerate(self.references):
            if reference.kind not in PAIR_KINDS:
                return f"reference {i}: kind {reference.kind!r} is unknown; use {' or '.join(PAIR_KINDS)}"
            if reference.category not in CATEGORIES:
                return f"reference {i}: category {reference.category!r} is unknown; use one of {', '.join(CATEGORIES)}"
            if reference.height < 1 or reference.width < 1:
                return f"reference {i}: height={reference.height}, width={reference.width} must be at least 1"
            if reference.source.frame < 0:
                return f"reference {i}: frame {reference.source.frame} of its source; the first is 0"
            box = reference.source.box
            if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
                return f"reference {i}: box {box[:4]} is empty; write x0, y0, x1, y1"
        wrong = [name for name, score in self.scores.items() if not math.isfinite(score)]
        if wrong:
            return f"score {wrong[0]!r} is {self.scores[wrong[0]]}; leave out what was not measured"
        return None

    def _unfit_for_the_index(self) -> str | None:
        """What neither the index nor a tokenizer could take."""
        numbers = [self.frames, self.height, self.width, self.text_tokens]
        texts = [self.caption, self.video_id, self.codec, *self.scores]
        for reference in self.references:
            numbers += [reference.height, reference.width, reference.source.frame]
            texts += [reference.phrase, reference.source.video_id]
        if max(numbers) > MAX_NUMBER:
            return f"a number of frames, pixels or tokens is larger than {MAX_NUMBER}"
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError:
                return f"{text[:80]!a} is no text: it holds half of a character"
        return None


def to_json(triplet: Triplet) -> dict:
    """The JSON object that a shard stores."""
    return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(triplet)}


def from_json(data: object) -> Triplet:
    """Read a JSON object.

    Raises:
        UserError: another schema version, a missing field, or a value of the wrong kind; names the field.
    """
    if not isinstance(data, dict):
        raise UserError(f"the sample's JSON is a {type(data).__name__}, not an object")
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(f"schema version {version!r} is not {SCHEMA_VERSION}, the one this release reads")
    try:
        references = tuple(
            Reference(
                phrase=str(entry["phrase"]),
                category=entry["category"],
                kind=entry["kind"],
                source=ReferenceSource(
                    str(entry["source"]["video_id"]),
                    int(entry["source"]["frame"]),
                    tuple(float(side) for side in entry["source"]["box"]),
                ),
                height=int(entry["height"]),
                width=int(entry["width"]),
                mask=bool(entry.get("mask", False)),
            )
            for entry in data.get("references", ())
        )
        return Triplet(
            key=data["key"],
            caption=str(data["caption"]),
            video_id=str(data["video_id"]),
            frames=int(data["frames"]),
            fps=float(data["fps"]),
            height=int(data["height"]),
            width=int(data["width"]),
            codec=str(data["codec"]),
            references=references,
            text_tokens=int(data.get("text_tokens", 0)),
            scores={str(name): float(score) for name, score in data.get("scores", {}).items()},
        )
    except KeyError as error:
        raise UserError(f"the sample's JSON lacks the field {error}") from None
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"the sample's JSON has a field of the wrong kind: {error}") from None
