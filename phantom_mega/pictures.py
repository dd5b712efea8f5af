"""Drawing for a person's eyes: cards of reference images beside video frames, the prompt under them; sheets of cards.

Each reference has a colour, which frames its image and its phrase in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # DejaVu comes with matplotlib: the same on any machine
PAGE, CARD, INK, FAINT, BAD = "#e9ebee", "#ffffff", "#1c2024", "#6b7480", "#b3261e"
COLOURS = ("#c2410c", "#0b66c3", "#15803d", "#7e22ce")
BADGES = {"cross": ("#1c2024", "#ffffff"), "in": ("#d5dae1", "#1c2024")}
PAD, GAP, HEIGHT, REFERENCE_WIDTH, FRAMES_WIDTH = 14, 8, 112, 112, 4 * 200
REFERENCES_WIDTH = 3 * (REFERENCE_WIDTH + GAP)
CARD_WIDTH = 2 * PAD + REFERENCES_WIDTH + GAP + FRAMES_WIDTH


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"), size)


def phrase_colours(caption: str, phrases: list[str]) -> list[tuple[str, str | None]]:
    """The caption's words, each with the colour of the reference whose phrase it belongs to, or None."""
    owner: list[str | None] = [None] * len(caption)
    for phrase, colour in zip(phrases, COLOURS):
        start = caption.lower().find(phrase.lower()) if phrase else -1
        if start >= 0:
            owner[start : start + len(phrase)] = [colour] * len(phrase)
    words, position = [], 0
    for word in caption.split():
        position = caption.index(word, position)
        words.append((word, owner[position]))
        position += len(word)
    return words


def wrap(words: list[tuple[str, str | None]], width: int, size: int) -> list[list[tuple[str, str | None]]]:
    """Break words into lines of at most `width` pixels; a word wider than a line stands alone."""
    lines, used = [], 0.0
    space = font(size).getlength(" ")
    for word, colour in words:
        length = font(size, colour is not None).getlength(word)
        if not lines or used + space + length > width:
            lines.append([])
            used = -space
        lines[-1].append((word, colour))
        used += space + length
    return lines


def shortened(text: str, width: int, size: int) -> str:
    """A bold line that is at most `width` pixels wide: its end gives way to an ellipsis."""
    face = font(size, bold=True)
    kept = len(text)
    while kept and face.getlength(text[:kept] + "…" * (kept < len(text))) > width:
        kept -= 1
    return text if kept == len(text) else text[:kept] + "…"


def draw_lines(draw: ImageDraw.ImageDraw, x: int, y: int, lines: list, size: int, ink: str = INK) -> int:
    """Draw wrapped lines; returns the y below them."""
    for line in lines:
        at = float(x)
        for word, colour in line:
            face = font(size, colour is not None)
            draw.text((at, y), word, fill=colour or ink, font=face)
            at += face.getlength(word) + font(size).getlength(" ")
        y += round(size * 1.35)
    return y


def reference_tile(image: Image.Image, colour: str, phrase: str, badge: str = "", note: str = "") -> Image.Image:
    """One reference: the image in its colour's frame, a badge and a note under it, the phrase below."""
    image = ImageOps.contain(image, (REFERENCE_WIDTH - 6, HEIGHT - 6))
    lines = wrap([(word, None) for word in phrase.split()], REFERENCE_WIDTH, 11)
    described = 24 if badge or note else 5
    tile = Image.new("RGB", (REFERENCE_WIDTH, HEIGHT + described + 15 * len(lines)), CARD)
    draw = ImageDraw.Draw(tile)
    left, top = (REFERENCE_WIDTH - image.width) // 2, (HEIGHT - image.height) // 2
    draw.rectangle((left - 3, top - 3, left + image.width + 2, top + image.height + 2), fill=colour)
    tile.paste(image, (left, top))
    at = 0
    if badge:
        fill, ink = BADGES[badge]
        at = round(font(10, bold=True).getlength(badge)) + 10
        draw.rounded_rectangle((0, HEIGHT + 4, at, HEIGHT + 19), 4, fill=fill)
        draw.text((5, HEIGHT + 5), badge, fill=ink, font=font(10, bold=True))
        at += 6
    draw.text((at, HEIGHT + 5), note, fill=FAINT, font=font(10))
    draw_lines(draw, 0, HEIGHT + described - 1, lines, 11, colour)
    return tile


def _strip(frames: list[Image.Image]) -> Image.Image:
    """Frames side by side, as large as the card allows."""
    width = FRAMES_WIDTH if len(frames) > 1 else FRAMES_WIDTH // 2
    each = (width - 4 * (len(frames) - 1)) // len(frames)
    fitted = [ImageOps.contain(frame, (each, HEIGHT), Image.Resampling.LANCZOS) for frame in frames]
    height = max(frame.height for frame in fitted)
    strip = Image.new("RGB", (sum(f.width for f in fitted) + 4 * (len(fitted) - 1), height), CARD)
    x = 0
    for frame in fitted:
        strip.paste(frame, (x, 0))
        x += frame.width + 4
    return strip


def card(
    title: str, about: str, tiles: Sequence[Image.Image], frames: list[Image.Image], words: list[tuple[str, str | None]]
) -> Image.Image:
    """References on the left, frames on the right, coloured words under the frames."""
    references_width = max(3, len(tiles)) * (REFERENCE_WIDTH + GAP)
    frames_left = PAD + references_width + GAP
    caption, strip = wrap(words, FRAMES_WIDTH, 14), _strip(frames)
    body = max([tile.height for tile in tiles] + [strip.height + 12 + 19 * len(caption)])
    out = Image.new("RGB", (frames_left + FRAMES_WIDTH + PAD, PAD + 24 + body + PAD), CARD)
    draw = ImageDraw.Draw(out)
    draw.text((PAD, PAD - 2), shortened(title, frames_left - PAD - GAP, 13), fill=INK, font=font(13, bold=True))
    draw.text((frames_left, PAD - 1), about, fill=FAINT, font=font(11))
    top = PAD + 24
    for i, tile in enumerate(tiles):
        out.paste(tile, (PAD + i * (REFERENCE_WIDTH + GAP), top))
    if not tiles:
        draw.text((PAD, top), "no references", fill=FAINT, font=font(11))
    line = frames_left - GAP - 3
    draw.line((line, top, line, top + body), fill=PAGE, width=2)
    out.paste(strip, (frames_left, top))
    draw_lines(draw, frames_left, top + strip.height + 10, caption, 14)
    return out


def message_card(title: str, message: str) -> Image.Image:
    """A card for what cannot be shown."""
    lines = wrap([(word, None) for word in message.split()], CARD_WIDTH - 2 * PAD, 12)
    out = Image.new("RGB", (CARD_WIDTH, PAD * 2 + 24 + 17 * len(lines)), CARD)
    draw = ImageDraw.Draw(out)
    draw.text((PAD, PAD - 2), title, fill=INK, font=font(13, bold=True))
    draw_lines(draw, PAD, PAD + 22, lines, 12, BAD)
    return out


def sheet(cards: Sequence[Image.Image], title: str, legend: str, columns: int = 2) -> Image.Image:
    """Cards in columns under a title; each goes to the shortest column, for they differ in height."""
    columns = min(columns, len(cards))
    stacks: list[list[Image.Image]] = [[] for _ in range(columns)]
    for one in cards:
        min(stacks, key=lambda stack: sum(c.height + PAD for c in stack)).append(one)
    width = max(one.width for one in cards)
    head = 48
    height = head + max(sum(one.height + PAD for one in stack) for stack in stacks)
    out = Image.new("RGB", (PAD + columns * (width + PAD), height), PAGE)
    draw = ImageDraw.Draw(out)
    draw.text((PAD, 14), title, fill=INK, font=font(18, bold=True))
    draw.text((PAD + 40 + font(18, True).getlength(title), 19), legend, fill=FAINT, font=font(12))
    for column, stack in enumerate(stacks):
        y = head
        for one in stack:
            out.paste(one, (PAD + column * (width + PAD), y))
            y += one.height + PAD
    return out
