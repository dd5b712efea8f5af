"""The videos of a folder and the cases that they show: what is there, what lacks, what is too much; digests of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phantom_mega.curation.video import EXTENSIONS
from phantom_mega.errors import UserError
from phantom_mega.evaluation.frames import read_video
from phantom_mega.evaluation.metric import Item
from phantom_mega.evaluation.statistics import shortened
from phantom_mega.files import digest_of
from phantom_mega.generation.cases import Case
from phantom_mega.images import open_reference

NO_VIDEO, UNREADABLE = "there is no video", "the video cannot be measured: it "


@dataclass(frozen=True)
class Method:
    """A folder of videos of the same cases as other folders.

    Attributes:
        name: in tables.
        folder: of the videos.
        videos: path of each case's video, by the case's id; cases without one are not there.
        extra: names of videos that are of no case.
    """

    name: str
    folder: Path
    videos: dict[str, Path]
    extra: tuple[str, ...] = ()


def find_videos(folder: Path, cases: Sequence[Case], name: str = "") -> Method:
    """The videos `<id>.mp4` (or another container) of a folder.

    Args:
        folder: of the videos.
        cases: that they show.
        name: in tables; the folder's if not given.

    Raises:
        UserError: there is no such folder, it has no video of any case, or two of one.
    """
    if not folder.is_dir():
        raise UserError(f"--videos {folder}: there is no such folder")
    known = {case.id for case in cases}
    videos: dict[str, Path] = {}
    extra = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in EXTENSIONS or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem not in known:
            extra.append(path.name)
        elif path.stem in videos:
            raise UserError(f"{folder} has two videos of case {path.stem}: {videos[path.stem].name} and {path.name}")
        else:
            videos[path.stem] = path
    if not videos:
        holds = f"its videos are {shortened(extra)}" if extra else "it holds no video at all"
        raise UserError(
            f"--videos {folder} has a video of none of the {len(cases)} cases, as {cases[0].id}.mp4 would be; {holds}"
        )
    return Method(name or folder.absolute().name, folder, videos, tuple(extra))


def name_methods(folders: Sequence[Path], names: Sequence[str] = ()) -> list[str]:
    """A name for each folder: its own, or with its parents as far as it takes to tell folders apart.

    Args:
        folders: of videos.
        names: given by hand, one for each folder, or none.

    Raises:
        UserError: a folder comes twice, or names are not as many as folders, or not different.
    """
    whole = [folder.absolute().resolve() for folder in folders]
    if len(set(whole)) < len(whole):
        raise UserError("--videos names a folder twice")
    if names:
        if len(names) != len(folders) or len(set(names)) < len(names) or not all(name.strip() for name in names):
            raise UserError(f"--names needs {len(folders)} different names, one for each folder of --videos")
        return list(names)
    for parts in range(1, max(len(path.parts) for path in whole) + 1):
        found = ["/".join(path.parts[-parts:]) for path in whole]
        if len(set(found)) == len(found):
            break
    return found


def case_digest(case: Case) -> str:
    """Of all of a case that metrics see: the prompt, the labels, the references' bytes.

    Raises:
        UserError: a reference cannot be read; names the case.
    """
    try:
        images = [digest_of(Path(path)) for path in case.images]
        for number, path in enumerate(case.images, start=1):
            open_reference(path, number)
    except OSError as error:
        raise UserError(f"case {case.id}: reference image {error.filename}: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"case {case.id}: {error}") from None
    content = json.dumps([case.prompt, labels_of(case), images])
    return hashlib.sha256(content.encode()).hexdigest()


def labels_of(case: Case) -> list[str]:
    """A label for each reference; "" where the case has none."""
    return [*case.labels, *[""] * len(case.images)][: len(case.images)]


def read_item(case: Case, path: Path) -> Item:
    """A case with its decoded video.

    Raises:
        UserError: the video cannot be read; says why, without its path.
    """
    try:
        frames, fps = read_video(path)
    except UserError as error:
        raise UserError(UNREADABLE + str(error).removeprefix(f"{path} ")) from None
    references: tuple[np.ndarray, ...] = tuple(open_reference(image, i) for i, image in enumerate(case.images, 1))
    return Item(case.id, frames, fps, case.prompt, references, tuple(labels_of(case)))
