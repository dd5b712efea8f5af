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
    waiting: list[tuple[int, int]] = []  # (visual tokens, position), sorted
    upcoming, packs = iter(range(len(visual))), []
    order: list[int] = []  # waiting positions, oldest first; entries already packed are passed over
    packed = np.zeros(len(visual), dtype=bool)
    oldest = 0
    while True:
        while len(waiting) < lookahead:
            position = next(upcoming, None)
            if position is None:
                break
            bisect.insort(waiting, (int(visual[position]), position))
            order.append(position)
        if not waiting:
            return packs
        while packed[order[oldest]]:
            oldest += 1
        first = order[oldest]
        pack, room, text_room = [], seq_length, text_seq_length
        candidate: int | None = bisect.bisect_left(waiting, (int(visual[first]), first))
        while candidate is not None:
            tokens, position = waiting.pop(candidate)
            pack.append(position)
            packed[position] = True
            room, text_room = room - tokens, text_room - int(text[position])
            candidate = _largest_fit(waiting, text, room, text_room)
        packs.append(pack)


def _largest_fit(waiting: list[tuple[int, int]], text: np.ndarray, room: int, text_room: int) -> int | None:
    """Place in `waiting` of the largest sample that fits both budgets."""
    place = bisect.bisect_right(waiting, (room, len(text))) - 1
    while place >= 0:
        if text[waiting[place][1]] <= text_room:
            return place
        place -= 1
    return None
