"""Asking until an answer can be used: JSON out of whatever a model wrote, and what was wrong told back to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from phantom_mega.vlm.base import Turn, VisionModel

MAX_QUOTED = 4000  # characters of an answer that is shown to the model again


class UnusableAnswerError(ValueError):
    """The answer has not the form that was asked for; the message is for the model."""


def ask_until_usable[T](model: VisionModel, turns: Sequence[Turn], read: Callable[[str], T], attempts: int) -> T:
    """What `read` makes of the first answer that it can use; after others the model is told what was wrong.

    Args:
        model: to ask.
        turns: what it is asked.
        read: from an answer to a result; raises `UnusableAnswerError`.
        attempts: answers to ask for at most, 1 or more.

    Raises:
        UnusableAnswerError: no answer could be used; says what was wrong with the last one.
        TransientError, SetupError: see `VisionModel.ask`.
    """
    asked = list(turns)
    for attempt in range(1, attempts + 1):
        text = model.ask(asked)
        try:
            return read(text)
        except UnusableAnswerError as error:
            if attempt == attempts:
                raise
            asked = told_what_was_wrong(turns, text, str(error))
    raise ValueError(f"{attempts} attempts")


def told_what_was_wrong(turns: Sequence[Turn], answer: str, wrong: str) -> list[Turn]:
    """The turns, the model's answer to them, and what is wrong with it."""
    again = f"That cannot be used: {wrong}. Answer again, with the whole JSON object."
    return [*turns, Turn("assistant", answer[:MAX_QUOTED]), Turn("user", again)]


def find_json(text: str, openings: str = "{") -> Any:
    """The JSON value that begins with the first of `openings` in a text; words or a code fence around it are no matter.

    Raises:
        UnusableAnswerError: there is none, or it is not valid.
    """
    start = min((at for at in map(text.find, openings) if at >= 0), default=-1)
    if start < 0:
        raise UnusableAnswerError("the answer holds no JSON object")
    try:
        return json.JSONDecoder().raw_decode(text[start:])[0]
    except (ValueError, RecursionError):
        raise UnusableAnswerError("the answer is not valid JSON") from None


def text_field(data: Mapping[str, Any], name: str, most: int) -> str:
    """A text in an answer, its white space made single spaces, without control characters.

    Args:
        data: of the answer.
        name: of the field.
        most: characters.

    Raises:
        UnusableAnswerError: it is missing, no text, or too long.
    """
    value = data.get(name)
    if not isinstance(value, str):
        raise UnusableAnswerError(f"{name!r} must be a text")
    value = " ".join("".join(char for char in value if char.isprintable() or char.isspace()).split())
    if len(value) > most:
        raise UnusableAnswerError(f"{name!r} has {len(value)} characters; {most} are the most")
    return value
