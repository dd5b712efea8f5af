"""Columns of the tables that more than one module makes or reads; the first one names a row.

Boxes are x0, y0, x1, y1 as fractions of the picture, times seconds from the video's start, widths and heights pixels.
"""

from __future__ import annotations

import pyarrow as pa

TEXT, INT, FLOAT = pa.string(), pa.int32(), pa.float64()
VECTOR = pa.list_(pa.float32())
BOX = pa.list_(pa.float64())
# `identity` is a label by hand of who or what it is, across clips; models give none.
SUBJECT = pa.struct([("phrase", TEXT), ("category", TEXT), ("appearance", TEXT), ("identity", TEXT)])
PLACE = pa.struct([("subject", INT), ("position", FLOAT), ("time", FLOAT), ("box", BOX), ("score", FLOAT)])
DROPPED = pa.struct([*PLACE, pa.field("reason", TEXT), pa.field("measured", FLOAT)])
_CLIP = {"clip_id": TEXT, "video_id": TEXT, "path": TEXT, "start": FLOAT, "end": FLOAT, "fps": FLOAT, "width": INT,
         "height": INT}  # fmt: skip

COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "annotations": {"clip_id": TEXT, "video_id": TEXT, "path": TEXT, "bytes": pa.int64(), "data": TEXT},
    "clips": {**_CLIP, "shot_id": TEXT},
    "selected": {"clip_id": TEXT},
    "captions": {"clip_id": TEXT, "caption": TEXT, "scene": TEXT, "behaviour": TEXT},
    "subjects": {"clip_id": TEXT, "subjects": pa.list_(SUBJECT)},
    # `position` is the fraction of the clip, as `time` is the moment in the video.
    "detections": {"clip_id": TEXT, "detections": pa.list_(PLACE)},
    "boxes": {"clip_id": TEXT, "boxes": pa.list_(PLACE), "dropped": pa.list_(DROPPED)},
    # `image` is a JPEG, `mask` a PNG of its size; `width` and `height` are those of the box in the frame.
    "crops": {"crop_id": TEXT, "clip_id": TEXT, "video_id": TEXT, "path": TEXT, "subject": INT, "phrase": TEXT,
              "category": TEXT, "time": FLOAT, "box": BOX, "width": INT, "height": INT, "image": pa.binary(),
              "mask": pa.binary()},
    # of length 1
    "embeddings": {"crop_id": TEXT, "embedding": VECTOR},
    # `box` is that of the face in the crop
    "faces": {"crop_id": TEXT, "face": VECTOR, "box": BOX, "confidence": FLOAT},
    # of a crop, others that are like it by the image or by the face; similarities are cosines, null where unknown
    "neighbours": {"crop_id": TEXT, "near": pa.list_(TEXT), "similarity": VECTOR, "face_similarity": VECTOR},
    "pairs": {"pair_id": TEXT, "clip_id": TEXT, "subject": INT, "crop_id": TEXT, "kind": TEXT, "similarity": FLOAT,
              "face_similarity": FLOAT},
}  # fmt: skip


def fields_of(table: str, *leave_out: str) -> tuple[pa.Field, ...]:
    """Fields of a table, but for some."""
    return tuple(pa.field(name, kind) for name, kind in COLUMNS[table].items() if name not in leave_out)
