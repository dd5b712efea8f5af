"""Which videos to generate: one from the command line, or many in OpenS2V-Eval's input schema.

{"<id>": {"img_paths": ["Images/a.png", ...], "prompt": "...", "class_label": ["...", ...]}, ...}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from phantom_mega.errors import UserError
from phantom_mega.files import read_json_object

_ID = re.compile(r"[\w.+-][\w.+ -]{0,199}")


@dataclass(frozen=True)
class Case:
    """One video to generate.

    Attributes:
        id: name of its files.
        prompt: what happens.
        images: paths of the reference images.
        labels: what each shows; may be empty.
        seed: of its noise; None takes the run's.
    """

    id: str
    prompt: str
    images: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    seed: int | None = None


def read_cases(path: Path, image_root: Path | None = None, max_references: int = 4) -> list[Case]:
    """Cases of a JSON file.

    Args:
        path: the file.
        image_root: what relative image paths are relative to; the file's folder by default.
        max_references: most images of a case.

    Raises:
        UserError: the file is not of this schema, or an id cannot be a file's name; names the case. Images are opened
            later: one that is missing fails its case alone.
    """
    raw = read_json_object(path)
    if not raw:
        raise UserError(f'{path} must be an object {{"<id>": {{"img_paths": [...], "prompt": "..."}}}} with cases')
    root = image_root or path.parent
    return [_case(path, root, str(name), entry, max_references) for name, entry in raw.items()]


def _case(path: Path, root: Path, name: str, entry: object, max_references: int) -> Case:
    def refuse(reason: str) -> UserError:
        return UserError(f"{path}, case {name!r}: {reason}")

    if not _ID.fullmatch(name):
        raise refuse("its id must be a file's name: letters, digits and . _ + - alone")
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
        raise refuse('it needs a "prompt" of text')
    images, labels = entry.get("img_paths") or [], entry.get("class_label") or []
    labels = [labels] if isinstance(labels, str) else labels
    for key, values in (("img_paths", images), ("class_label", labels)):
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise refuse(f'"{key}" must be a list of texts')
    if len(images) > max_references:
        raise refuse(f"it has {len(images)} reference images; the model takes at most {max_references}")
    seed = entry.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise refuse('"seed" must be a whole number')
    return Case(name, entry["prompt"], tuple(str(root / image) for image in images), tuple(labels), seed)


def settings_of(case: Case, common: dict) -> dict:
    """What decides how a case's video looks; equal settings need no second run.

    Args:
        case: the case; its images count by their bytes, not by where they lie.
        common: of the whole run: checkpoint, size, steps, scales...
    """
    described = dataclasses.asdict(case) | {"images": [_digest(image) for image in case.images]}
    return json.loads(json.dumps(described | common))


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError:
        return "unreadable"
