"""A contact sheet of triplets: references beside frames of the clip, the caption under them, for a person's eyes.

Each reference has a colour, which frames its image and its phrase in the caption.
"""

from __future__ import annotations

from pathlib import Path

import av
import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps

from phantom_mega.data.decode import open_clip
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.schema import IMAGE_EXTENSIONS, Reference
from phantom_mega.data.shards import RawTriplet, ShardReader
from phantom_mega.errors import BadSampleError, UserError
from phantom_mega.images import open_image

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # DejaVu comes with matplotlib: the same on any machine
PAGE, CARD, INK, FAINT, BAD = "#e9ebee", "#ffffff", "#1c2024", "#6b7480", "#b3261e"
COLOURS = ("#c2410c", "#0b66c3", "#15803d", "#7e22ce")
KIND_FILL = {"cross": "#1c2024", "in": "#d5dae1"}
KIND_INK = {"cross": "#ffffff", "in": "#1c2024"}
PAD, GAP, HEIGHT, REFERENCE_WIDTH, FRAMES_WIDTH = 14, 8, 112, 112, 4 * 200
REFERENCES_WIDTH = 3 * (REFERENCE_WIDTH + GAP)
CARD_WIDTH = 2 * PAD + REFERENCES_WIDTH + GAP + FRAMES_WIDTH


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"), size)


def clip_frames(raw: RawTriplet, count: int) -> list[Image.Image]:
    """At most `count` evenly spaced frames of a sample's clip, first and last among them.

    Raises:
        BadSampleError: the clip cannot be decoded.
    """
    try:
        if raw.clip_ext in IMAGE_EXTENSIONS:
            return [Image.fromarray(open_image(raw.clip))]
        with open_clip(raw.clip) as container:
            frames = list(container.decode(video=0))
    except (av.FFmpegError, IndexError, OSError, ValueError) as error:
        raise BadSampleError(raw.triplet.key, raw.shard, f"the clip cannot be decoded: {error}") from None
    if not frames:
        raise BadSampleError(raw.triplet.key, raw.shard, "the clip has no frames")
    count = min(count, len(frames))
    picked = [round(i * (len(frames) - 1) / max(count - 1, 1)) for i in range(count)]
    return [frames[i].to_image() for i in picked]


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
    space = _font(size).getlength(" ")
    for word, colour in words:
        length = _font(size, colour is not None).getlength(word)
        if not lines or used + space + length > width:
            lines.append([])
            used = -space
        lines[-1].append((word, colour))
        used += space + length
    return lines


def _draw_lines(draw: ImageDraw.ImageDraw, x: int, y: int, lines: list, size: int, ink: str = INK) -> int:
    """Draw wrapped lines; returns the y below them."""
    for line in lines:
        at = float(x)
        for word, colour in line:
            font = _font(size, colour is not None)
            draw.text((at, y), word, fill=colour or ink, font=font)
            at += font.getlength(word) + _font(size).getlength(" ")
        y += round(size * 1.35)
    return y


def _reference_tile(data: bytes, reference: Reference, colour: str) -> Image.Image:
    """One reference: the image in its colour's frame, kind and category under it, the phrase below."""
    image = ImageOps.contain(Image.fromarray(open_image(data)), (REFERENCE_WIDTH - 6, HEIGHT - 6))
    lines = wrap([(word, None) for word in reference.phrase.split()], REFERENCE_WIDTH, 11)
    tile = Image.new("RGB", (REFERENCE_WIDTH, HEIGHT + 24 + 15 * len(lines)), CARD)
    draw = ImageDraw.Draw(tile)
    left, top = (REFERENCE_WIDTH - image.width) // 2, (HEIGHT - image.height) // 2
    draw.rectangle((left - 3, top - 3, left + image.width + 2, top + image.height + 2), fill=colour)
    tile.paste(image, (left, top))
    badge = _font(10, bold=True)
    width = round(badge.getlength(reference.kind)) + 10
    draw.rounded_rectangle((0, HEIGHT + 4, width, HEIGHT + 19), 4, fill=KIND_FILL[reference.kind])
    draw.text((5, HEIGHT + 5), reference.kind, fill=KIND_INK[reference.kind], font=badge)
    draw.text((width + 6, HEIGHT + 5), reference.category, fill=FAINT, font=_font(10))
    _draw_lines(draw, 0, HEIGHT + 23, lines, 11, colour)
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


def draw_card(raw: RawTriplet, frame_count: int = 4) -> Image.Image:
    """One sample as a card of fixed width.

    Raises:
        BadSampleError: its clip or a reference cannot be decoded.
    """
    triplet = raw.triplet
    frames = clip_frames(raw, frame_count)
    try:
        tiles = [_reference_tile(*given) for given in zip(raw.references, triplet.references, COLOURS)]
    except ValueError as error:
        raise BadSampleError(triplet.key, raw.shard, f"a reference cannot be decoded: {error}") from None
    words = phrase_colours(triplet.caption, [reference.phrase for reference in triplet.references])
    references_width = max(3, len(tiles)) * (REFERENCE_WIDTH + GAP)
    frames_left = PAD + references_width + GAP
    caption, strip = wrap(words, FRAMES_WIDTH, 14), _strip(frames)
    body = max([tile.height for tile in tiles] + [strip.height + 12 + 19 * len(caption)])
    card = Image.new("RGB", (frames_left + FRAMES_WIDTH + PAD, PAD + 24 + body + PAD), CARD)
    draw = ImageDraw.Draw(card)
    draw.text((PAD, PAD - 2), triplet.key, fill=INK, font=_font(13, bold=True))
    length = f"{triplet.frames} frames at {triplet.fps:.4g}/s" if triplet.frames > 1 else "image"
    about = f"{triplet.video_id}   {triplet.width}x{triplet.height}   {length}   {triplet.codec}"
    draw.text((frames_left, PAD - 1), about, fill=FAINT, font=_font(11))
    top = PAD + 24
    for i, tile in enumerate(tiles):
        card.paste(tile, (PAD + i * (REFERENCE_WIDTH + GAP), top))
    if not tiles:
        draw.text((PAD, top), "no references", fill=FAINT, font=_font(11))
    line = frames_left - GAP - 3
    draw.line((line, top, line, top + body), fill=PAGE, width=2)
    card.paste(strip, (frames_left, top))
    _draw_lines(draw, frames_left, top + strip.height + 10, caption, 14)
    return card


def _bad_card(error: BadSampleError) -> Image.Image:
    lines = wrap([(word, None) for word in f"cannot be shown: {error.reason}".split()], CARD_WIDTH - 2 * PAD, 12)
    card = Image.new("RGB", (CARD_WIDTH, PAD * 2 + 24 + 17 * len(lines)), CARD)
    draw = ImageDraw.Draw(card)
    draw.text((PAD, PAD - 2), error.key, fill=INK, font=_font(13, bold=True))
    _draw_lines(draw, PAD, PAD + 22, lines, 12, BAD)
    return card


def contact_sheet(index: TripletIndex, *, limit: int = 24, columns: int = 2, frames: int = 4) -> Image.Image:
    """Draw the first samples of an index.

    Args:
        index: of the data set.
        limit: samples to draw.
        columns: cards side by side.
        frames: frames of each clip.

    Raises:
        UserError: an empty index, or numbers below 1. A sample that cannot be read is drawn with the reason.
    """
    if min(limit, columns, frames) < 1 or not len(index):
        raise UserError(f"nothing to draw: {len(index)} samples, limit={limit}, columns={columns}, frames={frames}")
    reader, cards = ShardReader(index), []
    for row in range(min(limit, len(index))):
        try:
            cards.append(draw_card(reader.read(row), frames))
        except BadSampleError as error:
            cards.append(_bad_card(error))
    columns = min(columns, len(cards))
    stacks: list[list[Image.Image]] = [[] for _ in range(columns)]
    for card in cards:  # to the shortest stack: cards differ in height
        min(stacks, key=lambda stack: sum(c.height + PAD for c in stack)).append(card)
    width = max(card.width for card in cards)
    head = 48
    height = head + max(sum(card.height + PAD for card in stack) for stack in stacks)
    sheet = Image.new("RGB", (PAD + columns * (width + PAD), height), PAGE)
    draw = ImageDraw.Draw(sheet)
    shown = f"{len(cards)} of {len(index)} samples" if len(cards) < len(index) else f"{len(cards)} samples"
    draw.text((PAD, 14), shown, fill=INK, font=_font(18, bold=True))
    legend = (
        "left: references (cross: cut from another shot, in: from the clip's own shot)   right: the clip, its caption"
    )
    draw.text((PAD + 40 + _font(18, True).getlength(shown), 19), legend, fill=FAINT, font=_font(12))
    for column, stack in enumerate(stacks):
        y = head
        for card in stack:
            sheet.paste(card, (PAD + column * (width + PAD), y))
            y += card.height + PAD
    return sheet
