"""Tables of crops whose embeddings are known vectors, for the stages that compare them."""

import numpy as np
import pyarrow as pa

from phantom_mega.curation.columns import fields_of


def units(values):
    """float32, each row of length 1."""
    values = np.asarray(values, np.float64)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def clusters(identities, each, width=16, noise=0.2, seed=0):
    """(vectors, identity of each): random directions with noise, `each` of every identity."""
    rng = np.random.default_rng(seed)
    centres = units(rng.standard_normal((identities, width)))
    identity = np.repeat(np.arange(identities), each)
    return units(centres[identity] + noise * rng.standard_normal((len(identity), width)) / width**0.5), identity


def table_of(name, rows, leave_out=()):
    fields = fields_of(name, *leave_out)
    return pa.Table.from_pylist([{field.name: row.get(field.name) for field in fields} for row in rows],
                                pa.schema(fields))  # fmt: skip


def tables_of(vectors, faces=None, crops=None, shots=None):
    """Inputs of `neighbours`: crop `x003` of clip `c003`, each in a video and a shot of its own, unless told.

    Args:
        vectors: [n, d].
        faces: crop number -> vector.
        crops: crop number -> columns that are not the usual ones.
        shots: clip -> shot.
    """
    crops, shots = crops or {}, shots or {}
    rows = [
        {"crop_id": f"x{i:03d}", "clip_id": f"c{i:03d}", "video_id": f"v{i:03d}", "subject": 0, "phrase": "a thing",
         "category": "others", "width": 100, "height": 100} | crops.get(i, {})
        for i in range(len(vectors))
    ]  # fmt: skip
    clips = sorted({row["clip_id"] for row in rows})
    return {
        "crops": table_of("crops", rows),
        "clips": table_of("clips", [{"clip_id": clip, "shot_id": shots.get(clip, f"s{clip}")} for clip in clips]),
        "embeddings": table_of(
            "embeddings", [{"crop_id": row["crop_id"], "embedding": one} for row, one in zip(rows, vectors)]
        ),
        "faces": table_of("faces", [{"crop_id": f"x{i:03d}", "face": one} for i, one in (faces or {}).items()]),
    }


def by_name(table):
    """Key of each row -> the row."""
    return {next(iter(row.values())): row for row in table.to_pylist()}
