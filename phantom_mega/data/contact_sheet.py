"""A contact sheet of triplets: references beside frames of the clip, the caption under them, for a person's eyes."""

from __future__ import annotations

import av
from PIL import Image

from phantom_mega.data.decode import open_clip
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.schema import IMAGE_EXTENSIONS
from phantom_mega.data.shards import RawTriplet, ShardReader
from phantom_mega.errors import BadSampleError, UserError
from phantom_mega.images import open_image
from phantom_mega.pictures import COLOURS, card, message_card, phrase_colours, reference_tile, sheet

LEGEND = "left: references (cross: cut from another shot, in: from the clip's own shot)   right: the clip, its caption"


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


def draw_card(raw: RawTriplet, frame_count: int = 4) -> Image.Image:
    """One sample as a card of fixed width.

    Raises:
        BadSampleError: its clip or a reference cannot be decoded.
    """
    triplet = raw.triplet
    frames = clip_frames(raw, frame_count)
    try:
        tiles = [
            reference_tile(Image.fromarray(open_image(data)), colour, ref.phrase, ref.kind, ref.category)
            for data, ref, colour in zip(raw.references, triplet.references, COLOURS)
        ]
    except ValueError as error:
        raise BadSampleError(triplet.key, raw.shard, f"a reference cannot be decoded: {error}") from None
    words = phrase_colours(triplet.caption, [reference.phrase for reference in triplet.references])
    length = f"{triplet.frames} frames at {triplet.fps:.4g}/s" if triplet.frames > 1 else "image"
    about = f"{triplet.video_id}   {triplet.width}x{triplet.height}   {length}   {triplet.codec}"
    return card(triplet.key, about, tiles, frames, words)


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
            cards.append(message_card(error.key, f"cannot be shown: {error.reason}"))
    shown = f"{len(cards)} of {len(index)} samples" if len(cards) < len(index) else f"{len(cards)} samples"
    return sheet(cards, shown, LEGEND, columns)
