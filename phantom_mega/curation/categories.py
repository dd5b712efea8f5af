"""What kind of subject a noun phrase names, by its words."""

from __future__ import annotations

import itertools

# Heads of phrases; what is not among them is `others`. Annotations without categories are told apart by these.
CATEGORY_WORDS = {
    "human": "person people man men woman women boy boys girl girls child children baby individual human head face "
    "player singer chef worker driver rider cyclist soldier doctor student teacher dancer host reporter lady gentleman "
    "actor actress model guy crowd couple speaker officer fisherman guest athlete musician",
    "animal": "animal dog dogs puppy cat cats kitten bird birds horse horses cow cows fish sheep goat pig lion tiger "
    "bear elephant monkey rabbit squirrel deer duck chicken insect butterfly snake turtle frog whale shark wolf fox",
    "clothes": "shirt dress jacket coat hat cap suit top sweater hoodie pants jeans skirt shorts shoes boots scarf tie "
    "gloves uniform vest blouse robe clothes clothing glasses sunglasses helmet necklace earrings watch",
    "product": "car taxi cab van truck bus bicycle bike motorcycle scooter boat ship train airplane phone laptop "
    "computer camera bottle cup bag backpack chair table sofa guitar piano microphone book knife ball toy box "
    "television lamp umbrella bowl plate",
    "landmark": "building house tower bridge church temple castle monument statue street road city park garden beach "
    "mountain river lake forest field stadium kitchen room skyline",
}
_AFTER_THE_HEAD = {"in", "on", "with", "at", "by", "near", "behind", "under", "wearing", "holding", "riding", "who"}
_CATEGORY_OF = {word: category for category, words in CATEGORY_WORDS.items() for word in words.split()}


def category_of(phrase: str) -> str:
    """One of `data.schema.CATEGORIES` for a noun phrase: by its last known word before what it is in, on or with."""
    words, head = _words(phrase)
    found = (_CATEGORY_OF[word] for part in (head, words) for word in reversed(part) if word in _CATEGORY_OF)
    return next(found, "others")


def head_of(phrase: str) -> str:
    """The last word of a noun phrase before what it is in, on or with: `rabbit` of `a grey rabbit with an apple`."""
    words, head = _words(phrase)
    return (head or words or [""])[-1]


def _words(phrase: str) -> tuple[list[str], list[str]]:
    """All words, and those before what it is in, on or with."""
    words = "".join(letter if letter.isalpha() else " " for letter in phrase.lower()).split()
    return words, list(itertools.takewhile(lambda word: word not in _AFTER_THE_HEAD, words))
