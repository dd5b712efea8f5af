"""Stage `crops`: pictures of the subjects, cut out of the frames that their boxes are in, with masks if asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from phantom_mega.curation.columns import fields_of
from phantom_mega.curation.cut import image_of, mask_of, pixels_of
from phantom_mega.curation.engine.stage import Rejection, Row, Stage, verdict
from phantom_mega.curation.measures import sharpness
from phantom_mega.curation.models import resources
from phantom_mega.curation.segment import open_segment
from phantom_mega.curation.video import VideoError, frames_at, to_rgb
from phantom_mega.errors import UserError

# From a frame, uint8 [H, W, 3], and boxes in pixels to a mask of each, bool [boxes, H, W].
Segment = Callable[[np.ndarray, Sequence[Sequence[int]]], np.ndarray]


@dataclass
class CropSettings:
    """How references are cut."""

    min_crop_sharpness: float = 5.0
    """Variance of the Laplacian of a crop at a height of 360 pixels at least."""
    mask_model: str = "none"
    """Name or folder of a SAM of transformers (`facebook/sam2.1-hiera-large`) that draws masks, or `none`."""
    min_mask_area: float = 0.05
    """Share of its box that a mask covers at least; below, the crop has no mask."""
    max_mask_area: float = 0.98
    """Share of its box that a mask covers at most; above, the crop has no mask."""

    def check(self) -> None:
        """Raise UserError on a value out of range."""
        if not 0 <= self.min_mask_area < self.max_mask_area <= 1:
            raise UserError(
                f"crops.min_mask_area={self.min_mask_area} and crops.max_mask_area={self.max_mask_area} must ascend "
                "within 0 and 1"
            )


def positions_of(row: Row) -> dict[float, int]:
    """Number of each position at which a clip has a box, good or not: names of crops outlast a change of thresholds."""
    found = {one["position"] for one in [*row["boxes"], *(row["dropped"] or [])]}
    return {position: number for number, position in enumerate(sorted(found))}


def cut_all(frame: np.ndarray, rows: Sequence[Row], settings: CropSettings, segment: Segment | None) -> list[Row]:
    """Rows of one frame with their pictures, or rejected.

    Args:
        frame: uint8 [H, W, 3].
        rows: each with its `box` in fractions.
        settings: of the stage.
        segment: draws masks, or None.
    """
    boxes = [pixels_of(row["box"], frame.shape[1], frame.shape[0]) for row in rows]
    made = []
    for row, (x0, y0, x1, y1) in zip(rows, boxes, strict=True):
        part = frame[y0:y1, x0:x1]
        row = row | {"width": x1 - x0, "height": y1 - y0}
        score = sharpness([part])
        if score < settings.min_crop_sharpness:
            made.append(verdict(row, "blurred", score))
        else:
            made.append(row | {"image": image_of(Image.fromarray(part))})
    sharp = [number for number, row in enumerate(made) if "image" in row]
    if segment is not None and sharp:
        masks = segment(frame, [boxes[number] for number in sharp])
        for number, mask in zip(sharp, masks, strict=True):
            x0, y0, x1, y1 = boxes[number]
            made[number] |= masked(mask[y0:y1, x0:x1], settings)
    return made


def masked(inside: np.ndarray, settings: CropSettings) -> Row:
    """The `mask` of a crop, or why it has none.

    Args:
        inside: bool [H, W], the mask within the box.
        settings: of the stage.
    """
    covered = float(inside.mean())
    if not settings.min_mask_area <= covered <= settings.max_mask_area:
        return {"mask": None, "detail": f"no mask: it covers {covered:.3f} of the box"}
    return {"mask": mask_of(inside)}


def open_crops(settings: CropSettings) -> Callable[[Row], list[Row]]:
    """The function of a clip's row with its boxes.

    Raises:
        UserError: a setting is out of range, or the model of masks cannot be loaded.
    """
    settings.check()
    segment = None if settings.mask_model == "none" else open_segment(settings.mask_model)

    def crop(row: Row) -> list[Row]:
        places, numbers = sorted(row["boxes"], key=lambda one: (one["time"], one["subject"])), positions_of(row)
        times = sorted({place["time"] for place in places})
        try:
            frames = frames_at(row["path"], times)
        except VideoError as error:
            raise Rejection("unreadable", None, str(error)) from None
        made = []
        for time, frame in zip(times, frames, strict=True):
            rows = [_row(row, place, numbers) for place in places if place["time"] == time]
            made += cut_all(to_rgb(frame), rows, settings, segment)
        return made

    return crop


def _row(row: Row, place: Row, numbers: dict[float, int]) -> Row:
    subject = row["subjects"][place["subject"]]
    known = {name: row[name] for name in ("clip_id", "video_id", "path")}
    known |= {name: place[name] for name in ("subject", "time", "box")}
    known |= {name: subject[name] for name in ("phrase", "category")}
    return known | {"crop_id": f"{row['clip_id']}:{place['subject']}:{numbers[place['position']]}"}


def stage(settings: CropSettings) -> Stage:
    """`crops` of `boxes`."""
    inputs = {
        "clips": ("clip_id", "video_id", "path"), "subjects": ("clip_id", "subjects"),
        "boxes": ("clip_id", "boxes", "dropped"),
    }  # fmt: skip
    local = "transformers" if settings.mask_model != "none" else "none"
    return Stage("crops", fields_of("crops"), inputs, settings, open_crops, **resources(local))
