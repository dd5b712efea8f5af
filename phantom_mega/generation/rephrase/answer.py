"""What a language model answers, and whether it can be used: pure functions of texts.

An answer describes each reference image and gives the new prompt. It is used only if every subject is told apart by
what can be seen of it and nothing that the user asked for is lost; whatever else a model writes, hostile or not, comes
to nothing.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from dataclasses import dataclass

from phantom_mega.vlm.asking import UnusableAnswerError, find_json
from phantom_mega.words import WORD, kept, stems, word_set

MAX_PROMPT = 2400  # characters
MAX_APPEARANCE = 400
# Of the stems of what was asked for, and of each description, that the new prompt must hold.
KEPT_OF_PROMPT, KEPT_OF_APPEARANCE = 0.8, 0.6
# Two subjects are told apart if less than this of their descriptions' stems is common to both.
MOST_IN_COMMON = 0.6


_NEGATIONS = re.compile(r"\b(?:not|no|never|without|none|nobody|nothing)\b|n['’]t\b", re.IGNORECASE)
_QUOTED = re.compile(r"[\"“”«»]([^\"“”«»]{1,200})[\"“”«»]")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NUMBER_WORDS = word_set(
    """
    two three four five six seven eight nine ten eleven twelve dozen both
    """
)
_ADDRESS = re.compile(r"https?://|www\.|\b[\w.+-]+@[\w-]+\.\w", re.IGNORECASE)
_MARKUP = re.compile(r"[<>{}\[\]`\\|]|\*\*|^#|\bsystem\s*:|\bassistant\s*:|\buser\s*:", re.IGNORECASE | re.MULTILINE)
_ABOUT_ITSELF = re.compile(
    r"\b(?:as an ai|language model|i cannot|i can't|i'm sorry|ignore (?:all|any|the|your|previous)|previous "
    r"instructions|system prompt|here is|here's|rewritten prompt|the user)\b",
    re.IGNORECASE,
)
# Words for what is seen: without one of them a description tells nothing apart.
_VISIBLE = word_set(
    """
    red orange yellow green blue purple violet pink brown black white grey gray beige golden gold silver tan cream
    navy teal turquoise maroon scarlet crimson olive ivory blond blonde ginger brunette dark light pale bright
    colourful colorful striped stripe spotted dotted checked plaid floral plain patterned round square oval
    rectangular long short tall small large big tiny huge thin thick slim fat chubby slender wide narrow curly
    straight wavy bald bearded beard moustache mustache freckles wrinkled glasses sunglasses hat cap helmet scarf
    shirt blouse dress skirt suit jacket coat trousers pants jeans shorts shoes boots sneakers tie bow collar
    uniform hoodie sweater vest robe wooden wood metal metallic leather glass plastic fabric cotton wool knitted
    denim fur furry fluffy feathered smooth shiny matte glossy rough worn new old young middle-aged elderly child
    boy girl man woman toddler teenage adult smiling hair haired eyed eyes ears tail whiskers snout wings horn
    horns scales shell petals leaves lettering logo label handle wheels
    """
)


@dataclass(frozen=True)
class Answer:
    """A model's answer.

    Attributes:
        appearances: one description for each reference image, in their order.
        subjects: number of the subject that each image shows; images of one subject share it.
        prompt: the new prompt.
    """

    appearances: tuple[str, ...]
    subjects: tuple[int, ...]
    prompt: str


def parse(text: str) -> Answer:
    """Read `{"references": [{"subject": 1, "appearance": "..."}], "prompt": "..."}` out of what a model wrote.

    Text or a code fence around the object is passed over.

    Raises:
        UnusableAnswerError: there is no such object.
    """
    found = find_json(text)
    references = found.get("references")
    if not isinstance(references, list) or not isinstance(found.get("prompt"), str):
        raise UnusableAnswerError('the object must have a list "references" and a text "prompt"')
    appearances, subjects = [], []
    for number, entry in enumerate(references, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("appearance"), str):
            raise UnusableAnswerError(f'reference {number} must be an object with a text "appearance"')
        subject = entry.get("subject", number)
        if not isinstance(subject, int) or isinstance(subject, bool):
            raise UnusableAnswerError(f'"subject" of reference {number} must be a whole number')
        appearances.append(" ".join(entry["appearance"].split()))
        subjects.append(subject)
    return Answer(tuple(appearances), tuple(subjects), " ".join(found["prompt"].split()))


def problems(answer: Answer, prompt: str, count: int) -> list[str]:
    """What keeps an answer from being used, in words for the model; empty if nothing does.

    Args:
        answer: to be checked.
        prompt: what the user asked for.
        count: reference images.
    """
    if len(answer.appearances) != count:
        return [f"there must be {count} references, one for each image in order, not {len(answer.appearances)}"]
    found = _hygiene(answer, prompt)
    for number, appearance in enumerate(answer.appearances, start=1):
        found += _appearance_problems(number, appearance, answer.prompt)
    for (i, one), (j, two) in itertools.combinations(enumerate(answer.appearances, start=1), 2):
        if answer.subjects[i - 1] != answer.subjects[j - 1] and not tell_apart(one, two):
            found.append(f"references {i} and {j} are described too much alike; say what differs to the eye")
    return found + _lost(prompt, answer.prompt)


def tell_apart(one: str, two: str) -> bool:
    """Whether two descriptions differ enough: each has a word of its own, and not too much is common to both."""
    a, b = set(stems(one)), set(stems(two))
    return bool(a - b) and bool(b - a) and len(a & b) < MOST_IN_COMMON * len(a | b)


def _appearance_problems(number: int, appearance: str, prompt: str) -> list[str]:
    words = stems(appearance)
    if len(words) < 2 or len(appearance) > MAX_APPEARANCE:
        return [f"reference {number} must be described in 2 to 60 words"]
    found = []
    latin = all(unicodedata.name(char, "").startswith(("LATIN", "DIGIT")) for char in appearance if char.isalnum())
    parts = {part for word in WORD.findall(appearance.lower()) for part in (word, *word.split("-"))}
    if latin and not parts & _VISIBLE:
        found.append(f"reference {number} needs what can be seen of it: colour, clothing, material, age, shape")
    if kept(words, prompt) < KEPT_OF_APPEARANCE:
        found.append(f"the prompt does not hold the appearance of reference {number}")
    return found


def _lost(prompt: str, new: str) -> list[str]:
    """What the user asked for and the new prompt does not hold."""
    found = []
    if kept(stems(prompt), new) < KEPT_OF_PROMPT:
        there = set(stems(new))
        missing = [stem for stem in stems(prompt) if stem not in there]
        found.append(f"the prompt lost what was asked for: {', '.join(dict.fromkeys(missing[:8]))}")
    for quoted in _QUOTED.findall(prompt):
        if quoted.strip().lower() not in new.lower():
            found.append(f"the quoted text {quoted!r} must stay as it is")
    numbers = set(_NUMBER.findall(prompt)) - set(_NUMBER.findall(new))
    numbers |= (_NUMBER_WORDS & set(WORD.findall(prompt.lower()))) - set(WORD.findall(new.lower()))
    if numbers:
        found.append(f"the numbers {', '.join(sorted(numbers))} must stay")
    if len(_NEGATIONS.findall(new)) < len(_NEGATIONS.findall(prompt)):
        found.append("a negation of the original prompt is gone")
    return found


def _hygiene(answer: Answer, prompt: str) -> list[str]:
    """Refuse what is no prompt: markup, addresses, talk about the task, control characters, endless text."""
    found = []
    if not answer.prompt or len(answer.prompt) > MAX_PROMPT:
        found.append(f"the prompt must have 1 to {MAX_PROMPT} characters")
    for what, text in (
        ("the prompt", answer.prompt),
        *((f"reference {i}", t) for i, t in enumerate(answer.appearances, 1)),
    ):
        if any(unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs") for char in text):
            found.append(f"{what} holds control characters")
        for pattern, name in ((_ADDRESS, "an address"), (_MARKUP, "markup"), (_ABOUT_ITSELF, "talk about the task")):
            if pattern.search(text) and not pattern.search(prompt):
                found.append(f"{what} holds {name}")
    return found
