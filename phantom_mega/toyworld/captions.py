"""Captions of scenes in a fixed grammar, so that what a caption says can be read back exactly."""

from __future__ import annotations

import re

from phantom_mega.errors import UserError
from phantom_mega.toyworld.scenes import MOTIONS, Scene
from phantom_mega.toyworld.subjects import HUES, PARTS, SHAPES, TEXTURES, Subject, colour_name

STYLES = ("plain", "distinct", "vague")
_CREATURE = "a creature"
_PLACES = {
    "meadow": "in the meadow",
    "desert": "in the desert",
    "night": "in the night sky",
    "sea": "on the sea",
    "brick": "before the brick wall",
    "snow": "in the snow",
}
_CAMERAS = {"static": "static camera", "pan": "panning camera", "zoom": "zooming camera"}


def phrase(subject: Subject, style: str = "plain", colours: bool = True) -> str:
    """What a caption calls a subject.

    Args:
        subject: who.
        style: `plain` names colour and shape ("a red star"), `distinct` also texture and part ("a red star with green
            dots and horns", "a plain red star"), `vague` nothing ("a creature").
        colours: False leaves them out ("a star with dots and horns").

    Raises:
        UserError: an unknown style.
    """
    if style not in STYLES:
        raise UserError(f"caption style {style!r} is unknown; use one of {', '.join(STYLES)}")
    if style == "vague":
        return _CREATURE
    body, accent = (f"{colour_name(colour)} " if colours else "" for colour in (subject.body, subject.accent))
    words = body + subject.shape
    if style == "distinct":
        if subject.texture == "plain":
            words = f"plain {words}"
        marks = [mark for mark in (subject.texture, subject.part) if mark not in ("plain", "none")]
        if marks:
            words += f" with {accent}{' and '.join(marks)}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def describe(scene: Scene, style: str = "plain") -> str:
    """The caption of a scene, such as "a red star moves left in the meadow, dim light, panning camera".

    Args:
        scene: what is shown.
        style: of the actors' phrases; motion, background, light and camera are always told.

    Raises:
        UserError: an unknown style.
    """
    actors = " and ".join(f"{phrase(actor.subject, style)} {actor.motion}" for actor in scene.actors)
    return f"{actors} {_PLACES[scene.background]}, {scene.light} light, {_CAMERAS[scene.camera]}"


def _any(words: object) -> str:
    return "|".join(map(re.escape, words))


_MARKS = rf"{_any(TEXTURES[1:])}|{_any(PARTS[1:])}"
_ACTOR = re.compile(
    rf"(?P<phrase>{_CREATURE}|an? (?P<plain>plain )?(?P<colour>{_any(HUES)}) (?P<shape>{_any(SHAPES)})"
    rf"(?: with (?P<accent>{_any(HUES)}) (?P<first>{_MARKS})(?: and (?P<second>{_any(PARTS[1:])}))?)?)"
    rf" (?P<motion>{_any(MOTIONS)})"
)
_SCENE = re.compile(
    rf"(?P<actors>.+) (?P<place>{_any(_PLACES.values())}), (?P<light>\w+) light, (?P<camera>{_any(_CAMERAS.values())})"
)


def parse_caption(text: str) -> dict:
    """Read a caption back: the inverse of `describe`.

    Args:
        text: of any style.

    Returns:
        `background`, `light`, `camera` and `style`, and `actors`: a dict each with `phrase`, `motion`, and what the
        style tells of `colour`, `shape`, `texture`, `part` and `accent` (absent without a texture and a part).

    Raises:
        UserError: it is no such caption.
    """
    scene = _SCENE.fullmatch(text)
    found = [_ACTOR.fullmatch(words) for words in _split(scene["actors"])] if scene else [None]
    if not all(found):
        raise UserError(f"{text[:200]!r} is no caption of the toy world; describe() writes them")
    actors = [_read_actor(match) for match in found]
    style = "vague" if "shape" not in actors[0] else "distinct" if "texture" in actors[0] else "plain"
    return {
        "actors": actors,
        "background": next(name for name, place in _PLACES.items() if place == scene["place"]),
        "light": scene["light"],
        "camera": next(name for name, words in _CAMERAS.items() if words == scene["camera"]),
        "style": style,
    }


def _split(actors: str) -> list[str]:
    """One string for each actor: "and" also joins an actor's marks, but only a new actor has an article."""
    return re.split(r" and (?=an? )", actors)


def _read_actor(match: re.Match) -> dict:
    actor = {"phrase": match["phrase"], "motion": match["motion"]}
    if match["shape"]:
        actor |= {"colour": match["colour"], "shape": match["shape"]}
    if match["plain"] or match["first"]:
        marks = (match["first"], match["second"])
        actor["texture"] = next((mark for mark in marks if mark in TEXTURES), "plain")
        actor["part"] = next((mark for mark in marks if mark in PARTS), "none")
        if match["accent"]:
            actor["accent"] = match["accent"]
    return actor
