"""Packing samples of many sizes into fixed budgets of visual and text-stream tokens: best fit among a lookahead."""

from __future__ import annotations

import bisect

import numpy as np


def pack_samples(
    visual: np.ndarray, text: np.ndarray, seq_length: int, text_seq_length: int, lookahead: int
) -> list[list[int]]:
    """Group samples into packs that stay within both budgets.

    The first waiting sample opens a pack; then, as long as something fits, the largest waiting sample that still fits
    joins it. Waiting are the next `lookahead` samples of the given order, so no sample waits long and the order stays
    random; what is left at the end fills the last packs.

    Args:
        visual: visual tokens of every sample, each at most `seq_length`.
        text: text-stream tokens, each at most `text_seq_length`.
        seq_length, text_seq_length: the budgets of a pack.
        lookahead: samples to choose from.

    Returns:
        Positions of the samples, pack after pack; each exactly once.
    """
    sizes = list(zip(np.asarray(visual).tolist(), np.asarray(text).tolist(), range(len(visual))))
    least_text = min((size[1] for size in sizes), default=0)
    waiting: list[tuple[int, int, int]] = []  # (visual tokens, text tokens, position), sorted
    packed = bytearray(len(sizes))
    oldest = upcoming = 0
    packs = []
    while True:
        while len(waiting) < lookahead and upcoming < len(sizes):
            bisect.insort(waiting, sizes[upcoming])
            upcoming += 1
        if not waiting:
            return packs
        while packed[oldest]:
            oldest += 1
        pack, room, text_room = [], seq_length, text_seq_length
        place = bisect.bisect_left(waiting, sizes[oldest])
        while place >= 0:
            tokens, text_tokens, position = waiting.pop(place)
            pack.append(position)
            packed[position] = True
            room, text_room = room - tokens, text_room - text_tokens
            place = _largest_fit(waiting, room, text_room) if text_room >= least_text else -1
        packs.append(pack)


def _largest_fit(waiting: list[tuple[int, int, int]], room: int, text_room: int) -> int:
    """Place in `waiting` of the largest sample that fits both budgets, -1 where none does."""
    last = 1 << 62  # beyond any position
    place = bisect.bisect_right(waiting, (room, text_room, last)) - 1
    while place >= 0 and waiting[place][1] > text_room:
        # Too much text: on to samples of as many visual tokens with less of it, else to those of fewer visual tokens.
        place = bisect.bisect_right(waiting, (waiting[place][0], text_room, last), 0, place) - 1
    return place
