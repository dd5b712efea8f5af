"""Sheets for annotating by hand: a clip's frames under a grid of tenths, with the boxes that an annotation gives.

Coordinates can be read off the grid, and wrong boxes are seen at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from phantom_mega.curation.annotations import Annotation
from phantom_mega.curation.video import frames_at, to_rgb
from phantom_mega.pictures import CARD, COLOURS, FAINT, INK, PAD, draw_lines, font, wrap

FRAME_WIDTH = 800
POSITIONS = (0.05, 0.5, 0.95)  # of a clip (paper, supplement 4)
_LINE, _HALF = (255, 255, 255, 110), (255, 220, 0, 190)


def sheet_times(start: float, end: float) -> list[float]:
    """Seconds of the frames that are shown, to a hundredth."""
    return [round(start + (end - start) * position, 2) for position in POSITIONS]


def draw_grid(image: Image.Image) -> Image.Image:
    """Lines at every tenth of both sides, numbered; those of the middle stand out."""
    layer = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(layer)
    width, height = image.size
    for tenth in range(1, 10):
        x, y, ink = width * tenth / 10, height * tenth / 10, _HALF if tenth == 5 else _LINE
        draw.line((x, 0, x, height), fill=ink)
        draw.line((0, y, width, y), fill=ink)
        for at in ((x + 2, 1), (2, y + 1)):
            draw.rectangle((at[0] - 1, at[1], at[0] + 15, at[1] + 12), fill=(0, 0, 0, 150))
            draw.text(at, f".{tenth}", fill="white", font=font(10))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def draw_boxes(image: Image.Image, annotation: Annotation, time: float, tolerance: float = 0.05) -> Image.Image:
    """Boxes of the subjects that are annotated within `tolerance` seconds of `time`, each in its phrase's colour."""
    draw = ImageDraw.Draw(image)
    for i, subject in enumerate(annotation.subjects):
        colour = COLOURS[i % len(COLOURS)]
        for one in subject.boxes:
            if abs(one.time - time) <= tolerance:
                box = [side * image.size[j % 2] for j, side in enumerate(one.box)]
                draw.rectangle(box, outline=colour, width=3)
                name = f"{i + 1} {subject.phrase}"
                at = (box[0] + 3, box[1] + 3)
                draw.rectangle(draw.textbbox(at, name, font=font(12)), fill=colour)
                draw.text(at, name, fill="white", font=font(12))
    return image


def clip_sheet(path: str | Path, start: float, end: float, title: str, annotation: Annotation | None) -> Image.Image:
    """Three frames of a clip under each other, and what is annotated of it.

    Raises:
        VideoError: the video cannot be read there.
    """
    times = sheet_times(start, end)
    frames = []
    for time, frame in zip(times, frames_at(path, times), strict=True):
        image = Image.fromarray(to_rgb(frame))
        image = image.resize((FRAME_WIDTH, max(1, round(FRAME_WIDTH * image.height / image.width))))
        frames.append(
            (time, draw_grid(image) if annotation is None else draw_boxes(draw_grid(image), annotation, time))
        )
    lines: list[tuple[str, str]] = []
    if annotation is not None:
        lines = [(annotation.caption, INK)]
        for i, one in enumerate(annotation.subjects):
            about = f"{i + 1} {one.phrase} ({one.category}): {one.appearance}"
            lines.append((about, COLOURS[i % len(COLOURS)]))
    wrapped = [(wrap([(word, None) for word in text.split()], FRAME_WIDTH, 13), ink) for text, ink in lines]
    height = 34 + sum(frame.height + 24 for _, frame in frames) + sum(18 * len(text) + 6 for text, _ in wrapped) + PAD
    sheet = Image.new("RGB", (FRAME_WIDTH + 2 * PAD, height), CARD)
    draw = ImageDraw.Draw(sheet)
    draw.text((PAD, 10), title, fill=INK, font=font(13, bold=True))
    y = 34
    for time, frame in frames:
        draw.text((PAD, y), f"{time:.2f} s", fill=FAINT, font=font(12))
        sheet.paste(frame, (PAD, y + 18))
        y += frame.height + 24
    for text, ink in wrapped:
        y = draw_lines(draw, PAD, y, text, 13, ink) + 6
    return sheet


def skeleton(video: str, start: float, end: float) -> dict:
    """The line of a clip to be filled in: one subject with a box at each of the times that detection looks at."""
    times = sheet_times(start, end)
    boxes = [{"time": time, "box": [0.0, 0.0, 1.0, 1.0]} for time in times]
    subject = {"phrase": "", "category": "others", "appearance": "", "identity": "", "boxes": boxes}
    known = {"video": video, "time": times[1], "caption": "", "scene": "", "behaviour": ""}
    return known | {"subjects": [subject]}


def sheet_name(clip_id: str) -> str:
    """A file's name for a clip, of letters, digits, `_`, `-` and `.`."""
    return "".join(char if char.isalnum() or char in "_-." else "-" for char in clip_id)[-120:].lstrip(".")


def in_order(rows: Sequence[dict]) -> list[dict]:
    """Clips by video and time."""
    return sorted(rows, key=lambda row: (row["video_id"], row["start"]))
