"""The paper's evaluation set (4.1) as a generator: cases from any folder of labelled reference images.

Three tracks: `single` (50 references, 3 prompts each, 3 seeds each: 450 videos), `multi` (50 groups of references),
`portrait` (50 faces). The authors' own images and prompts are not public; a set is a function of the references, the
prompt templates and a seed. Cases are files in OpenS2V-Eval's schema, a manifest says what each case is.

References are a folder `<category>/<label>/*.png`, its categories those of the training data and `portrait`, or a
folder with a `references.json`: {"<image>": {"category": "...", "label": "...", "portrait": false}, ...}.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

from tqdm import tqdm

from phantom_mega.data.schema import CATEGORIES, IMAGE_EXTENSIONS
from phantom_mega.errors import UserError
from phantom_mega.files import hidden_folder, publish_folder, read_json_object, write_json
from phantom_mega.images import open_reference

TRACKS = ("single", "multi", "portrait")
MANIFEST = "manifest.json"
_PORTRAIT = "portrait"  # as a category: a human's face, for the portrait track alone
_MOST_DRAWS = 10_000  # groups of a pair of categories that are looked at


@dataclass(frozen=True)
class LabelledImage:
    """A reference image.

    Attributes:
        path: relative to the folder of references.
        category: one of `CATEGORIES`.
        label: what it shows, as a prompt calls it.
        portrait: whether it is a face for the portrait track.
    """

    path: str
    category: str
    label: str
    portrait: bool = False


@dataclass(frozen=True)
class SetSettings:
    """What decides, with the references and the templates, which cases there are.

    Attributes:
        subjects: references, groups and portraits of a track.
        prompts: of each reference of the single track; groups and portraits have one.
        seeds: of each prompt of the single track; groups and portraits have one.
        seed: of the choice of references and prompts.
        tracks: of `TRACKS`.
    """

    subjects: int = 50
    prompts: int = 3
    seeds: int = 3
    seed: int = 0
    tracks: tuple[str, ...] = TRACKS


@dataclass(frozen=True)
class PlannedCase:
    """One video of the set.

    Attributes:
        id: of the case; begins as OpenS2V-Eval's ids do, by which its scores tell what they measure.
        track: one of `TRACKS`.
        references: one, or a group.
        prompt: what happens.
        prompt_number: of its references' prompts, from 0.
        seed: of the noise.
    """

    id: str
    track: str
    references: tuple[LabelledImage, ...]
    prompt: str
    prompt_number: int
    seed: int

    @property
    def subject(self) -> str:
        """Name of what it shows, the same for all prompts and seeds: cases of one subject are not independent."""
        return "+".join(image.path for image in self.references)


def read_references(folder: Path) -> list[LabelledImage]:
    """The labelled images of a folder, in the order of their paths.

    Raises:
        UserError: there are none, a category is unknown, or `references.json` is not of its schema; names it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of references")
    listed = folder / "references.json"
    if listed.is_file():
        found = [_listed(folder, listed, path, entry) for path, entry in read_json_object(listed).items()]
    else:
        found = list(_by_folders(folder))
    if not found:
        raise UserError(f"{folder} holds no references: they are <category>/<label>/*.png or a references.json")
    return sorted(found, key=lambda image: image.path)


def _by_folders(folder: Path) -> Iterator[LabelledImage]:
    for category in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        for path in sorted(category.glob("*/*")):
            if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS and not path.name.startswith("."):
                portrait = category.name == _PORTRAIT
                name = _category(category, "human" if portrait else category.name)
                label = path.parent.name.replace("_", " ").strip()
                yield LabelledImage(path.relative_to(folder).as_posix(), name, label, portrait)


def _category(where: object, name: object) -> str:
    if name not in CATEGORIES:
        raise UserError(f"{where}: {name!r} is no category; they are {', '.join(CATEGORIES)} and {_PORTRAIT}")
    return name


def _listed(folder: Path, listed: Path, path: str, entry: object) -> LabelledImage:
    where = f"{listed}, {path!r}"
    if not isinstance(entry, dict) or not isinstance(entry.get("label"), str) or not entry["label"].strip():
        raise UserError(f'{where}: it needs a "category" and a "label" of text')
    if Path(path).is_absolute() or not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{where}: images lie in the folder of references, named relative to it")
    portrait = entry.get("portrait", False) is True or entry.get("category") == _PORTRAIT
    category = "human" if entry.get("category") == _PORTRAIT else entry.get("category")
    return LabelledImage(Path(path).as_posix(), _category(where, category), entry["label"].strip(), portrait)


def read_templates(path: Path | None = None) -> dict[str, dict[str, list[str]]]:
    """Prompt templates: `single` by category (and `portrait`), `groups` by categories joined by `+`.

    In a template {0}, {1}... stand for the references, in the order of the categories.

    Args:
        path: of a JSON file; by default the package's.

    Raises:
        UserError: it is not of this schema; names the place.
    """
    with resources.as_file(resources.files("phantom_mega.evaluation") / "prompts.json") as default:
        path = path or default
        raw = read_json_object(path)
    for kind in ("single", "groups"):
        if not isinstance(raw.get(kind), dict):
            raise UserError(f'{path}: it needs "single" and "groups", objects of lists of templates')
        for key, templates in raw[kind].items():
            parts = key.split("+") if kind == "groups" else [key.replace(_PORTRAIT, "human")]
            for part in parts:
                _category(f"{path}, {kind}", part)
            wanted = {f"{{{i}}}" for i in range(len(parts))}
            for template in templates:
                if not isinstance(template, str) or set(re.findall(r"\{.*?\}", template)) != wanted:
                    raise UserError(f"{path}, {kind}, {key}: {template!r} must name {', '.join(sorted(wanted))}")
    return raw


def named(label: str) -> str:
    """A label as a prompt's words: with an article, where it is in lower case and has none.

    Names ("Eiffel Tower") and labels with an article stand as they are; plurals ("jeans") take "the".
    """
    if label != label.lower() or label.split()[0] in ("a", "an", "the", "my", "his", "her", "their"):
        return label
    if label.endswith("s") and not label.endswith("ss"):
        return f"the {label}"
    return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


def plan_cases(
    references: Sequence[LabelledImage], templates: dict[str, dict[str, list[str]]], settings: SetSettings
) -> list[PlannedCase]:
    """The cases of a set, track by track. A track does not depend on which others there are.

    Portraits are the references marked so; where none is, those of humans.

    Raises:
        UserError: there are fewer references, groups or portraits than asked for, or fewer templates; says how many.
    """
    if min(settings.subjects, settings.prompts, settings.seeds) < 1:
        raise UserError("a set needs at least one subject, one prompt and one seed")
    others = [image for image in references if not image.portrait]
    portraits = [image for image in references if image.portrait] or [i for i in others if i.category == "human"]
    chosen, rngs = {}, {track: random.Random(f"{settings.seed}/{track}") for track in settings.tracks}
    for track, rng in rngs.items():
        if track == "multi":
            chosen[track] = choose_groups(others, list(templates["groups"]), settings.subjects, rng)
        else:
            pool = others if track == "single" else portraits
            chosen[track] = [(image,) for image in balanced(pool, settings.subjects, rng)]
    _check_counts({track: len(found) for track, found in chosen.items()}, settings.subjects)
    return [
        case
        for track, found in chosen.items()
        for number, group in enumerate(found)
        for case in _cases(track, number, group, templates, settings, rngs[track])
    ]


def _check_counts(found: dict[str, int], wanted: int) -> None:
    if min(found.values()) >= wanted:
        return
    what = {"single": "references", "multi": "groups of references", "portrait": "portraits"}
    have = ", ".join(f"{min(count, wanted)} {what[track]}" for track, count in found.items())
    least = min(found.values())
    empty = [track for track, count in found.items() if not count]
    cure = f"--subjects {least}" if least else f"leave the track {' and '.join(empty)} out of --tracks"
    raise UserError(f"{wanted} subjects a track were asked for, there are {have}: add references, or {cure}")


def balanced(images: Sequence[LabelledImage], wanted: int, rng: random.Random) -> list[LabelledImage]:
    """Up to `wanted` images, none twice, categories in turn, and in a category labels in turn."""
    queues = []
    for category in CATEGORIES:
        labels: dict[str, list[LabelledImage]] = {}
        for image in images:
            if image.category == category:
                labels.setdefault(image.label, []).append(image)
        shuffled = [rng.sample(found, len(found)) for _, found in sorted(labels.items())]
        rng.shuffle(shuffled)
        queues.append(_in_turn(shuffled))
    return _in_turn(queues)[:wanted]


def _in_turn(queues: Sequence[list]) -> list:
    """The first of each queue, then the second of each..."""
    return [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]


def choose_groups(
    images: Sequence[LabelledImage], keys: Sequence[str], wanted: int, rng: random.Random
) -> list[tuple[LabelledImage, ...]]:
    """Up to `wanted` groups of different subjects, none twice, kinds of groups in turn.

    Args:
        images: to choose from.
        keys: kinds of groups: categories joined by `+`, such as `human+animal`.
        wanted: groups.
        rng: of the choice.
    """
    pools = {category: [image for image in images if image.category == category] for category in CATEGORIES}
    queues = []
    for key in rng.sample(list(keys), len(keys)):
        members = [pools[category] for category in key.split("+")]
        total, found = math.prod(map(len, members)), {}
        # A number names a group: one digit for each member, in the base of how many there are.
        for number in rng.sample(range(total), min(total, max(_MOST_DRAWS, 50 * wanted))):
            group = []
            for pool in members:
                number, digit = divmod(number, len(pool))
                group.append(pool[digit])
            if len({(image.category, image.label) for image in group}) == len(group):
                found.setdefault(frozenset(image.path for image in group), tuple(group))
            if len(found) == wanted:
                break
        queues.append(list(found.values()))
    return _in_turn(queues)[:wanted]


def _cases(
    track: str,
    number: int,
    group: tuple[LabelledImage, ...],
    templates: dict,
    settings: SetSettings,
    rng: random.Random,
) -> Iterator[PlannedCase]:
    kind, key = ("groups", "+".join(image.category for image in group)) if track == "multi" else ("single", None)
    key = key or (_PORTRAIT if track == "portrait" else group[0].category)
    available = templates[kind].get(key, [])
    prompts, seeds = (settings.prompts, settings.seeds) if track == "single" else (1, 1)
    if len(available) < prompts:
        lack = f"{prompts} different prompts are asked for, there are {len(available)} templates of {key}"
        raise UserError(f"{lack}: add templates, or give a smaller --prompts")
    for prompt_number, template in enumerate(rng.sample(available, prompts)):
        prompt = template.format(*(named(image.label) for image in group))
        for seed in range(seeds):
            id = f"{_id_prefix(track, group)}_{number:03d}_p{prompt_number}_s{seed}"
            yield PlannedCase(id, track, group, prompt[0].upper() + prompt[1:], prompt_number, seed)


def _id_prefix(track: str, group: tuple[LabelledImage, ...]) -> str:
    """How OpenS2V-Eval's ids begin for what a case shows."""
    humans = sum(image.category == "human" for image in group)
    if track == "portrait":
        return "singleface"
    if track == "single":
        return "singlehuman" if humans else "singleobj"
    return {0: "multiobject", 1: "humanobj"}.get(humans, "multihuman")


def write_set(
    cases: Sequence[PlannedCase], references: Path, output: Path, settings: SetSettings, overwrite: bool = False
):
    """Write a set, whole or not at all: `<track>.json` for each track, `manifest.json`, and copies of the images.

    Args:
        cases: of `plan_cases`.
        references: folder of the references.
        output: a folder that is not there, or holds a set.
        settings: of the set, for the manifest.
        overwrite: replace another set.

    Raises:
        UserError: an image cannot be read, or the folder holds something else or another set, or cannot be written.
    """
    used = sorted({image.path for case in cases for image in case.references})
    images = {}
    for number, path in enumerate(tqdm(used, desc="images", unit="image", leave=False, disable=None), start=1):
        open_reference(references / path, number)
        images[path] = (references / path).read_bytes()
    manifest = {
        "format": 1,
        "settings": asdict(settings) | {"tracks": list(settings.tracks)},
        "images": {f"images/{path}": hashlib.sha256(data).hexdigest() for path, data in images.items()},
        "cases": {case.id: _manifest_entry(case) for case in cases},
    }
    _check_output(output, manifest, overwrite)
    try:
        temporary = hidden_folder(output)
        for path, data in images.items():
            target = temporary / "images" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        for track in settings.tracks:
            write_json(
                {case.id: _case_entry(case) for case in cases if case.track == track}, temporary / f"{track}.json"
            )
        write_json(manifest, temporary / MANIFEST)
        publish_folder(temporary, output)
    except OSError as error:
        raise UserError(f"{output} could not be written: {error.strerror or error}") from None


def _case_entry(case: PlannedCase) -> dict:
    return {
        "img_paths": [f"images/{image.path}" for image in case.references],
        "prompt": case.prompt,
        "class_label": [image.label for image in case.references],
        "seed": case.seed,
    }


def _manifest_entry(case: PlannedCase) -> dict:
    return {
        "track": case.track,
        "subject": case.subject,
        "references": [asdict(image) | {"path": f"images/{image.path}"} for image in case.references],
        "prompt": case.prompt,
        "prompt_number": case.prompt_number,
        "seed": case.seed,
    }


def _check_output(output: Path, manifest: dict, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MANIFEST).is_file():
        raise UserError(f"{output} holds something that is no evaluation set: name a new folder")
    if read_json_object(output / MANIFEST) != manifest and not overwrite:
        raise UserError(f"{output} holds another evaluation set: name a new folder, or give --overwrite to replace it")


def read_manifest(folder: Path) -> dict[str, dict]:
    """What each case of a set is: `track`, `subject`, `references`, `prompt`, `prompt_number`, `seed`, by its id.

    Raises:
        UserError: there is no manifest, or one of another format.
    """
    raw = read_json_object(folder / MANIFEST)
    if raw.get("format") != 1 or not isinstance(raw.get("cases"), dict):
        raise UserError(
            f"{folder / MANIFEST} is no manifest of format 1: write the set again with tools/make_benchmark.py"
        )
    return raw["cases"]
