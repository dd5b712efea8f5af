"""Words of captions, prompts and descriptions: content words, roughly stemmed, so that texts can be compared."""

from __future__ import annotations

import re

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+(?:['’][^\W_]+)?")


def word_set(text: str) -> frozenset[str]:
    """Words that white space parts."""
    return frozenset(text.split())


_STOP = word_set(
    """
    a an and are as at be been being by for from has have he her him his in into is it its of on onto or over she
    so some than that the their them then there these they this those to under up upon was were which while who
    with within video image picture photo reference shown shows
    """
)


def stems(text: str) -> list[str]:
    """Content words, roughly stemmed, in order; characters of Chinese, Japanese and Korean each for itself."""
    return [_stem(word) for word in map(str.lower, WORD.findall(text)) if word not in _STOP]


def _stem(word: str) -> str:
    word = re.sub(r"['’]s?$", "", word)
    for suffix in ("ingly", "ing", "ies", "ied", "edly", "ed", "es", "ly", "s"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)]
            if suffix in ("ing", "ed") and len(word) > 3 and word[-1] == word[-2]:  # running, stopped
                word = word[:-1]
            break
    return word[:-1] if len(word) > 3 and word[-1] in "eyi" else word  # dance and dancing, carry and carries


def kept(wanted: list[str], text: str) -> float:
    """Share of `wanted` stems that are among a text's; 1 if none is wanted."""
    there = set(stems(text))
    return sum(stem in there for stem in wanted) / len(wanted) if wanted else 1.0
