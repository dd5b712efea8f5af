"""Synthetic triplets and indexes for the tests of data: sizes are real ones, media are not needed."""

import numpy as np
import pyarrow as pa

from phantom_mega.config import DataConfig, ModelConfig, ResolutionConfig
from phantom_mega.data.index import SCHEMA, TripletIndex, index_row
from phantom_mega.data.schema import Reference, ReferenceSource, Triplet


def make_triplet(key="clip_0", references=1, frames=33, fps=24.0, height=480, width=832, tokens=12, kind="cross"):
    """A valid triplet."""
    refs = tuple(
        Reference(f"subject {i}", "human", kind, ReferenceSource("video_b", 3 * i, (0.0, 1.0, 20.0, 31.0)), 30, 20)
        for i in range(references)
    )
    return Triplet(key, f"A caption of {key}", "video_a", frames, fps, height, width, "vp9", refs, tokens, {"q": 0.5})


def make_index(triplets):
    """An index of triplets that lie nowhere."""
    rows = [index_row(triplet, "shard-000000.tar", 0, 1, 1) for triplet in triplets]
    return TripletIndex(pa.Table.from_pylist(rows, schema=SCHEMA), "test")


def mixed_index(count, seed=0):
    """Clips of many sizes and lengths, as a curated 256p/480p/720p set has them."""
    rng = np.random.default_rng(seed)
    sizes = [(256, 456), (480, 832), (480, 640), (720, 1280), (1280, 720), (1080, 1920)]
    triplets = []
    for i in range(count):
        height, width = sizes[rng.integers(len(sizes))]
        frames = int(rng.integers(40, 300)) if rng.random() > 0.05 else 1
        triplets.append(
            make_triplet(f"k{i:07d}", int(rng.integers(1, 5)), frames, 24.0 if frames > 1 else 0.0, height, width,
                         int(rng.integers(10, 200)))
        )  # fmt: skip
    return make_index(triplets)


def mixed_data(**overrides):
    """Settings of a 256p/480p/720p mixture."""
    settings = {
        "seq_length": 90112,
        "text_seq_length": 32768,
        "resolutions": {
            "256p": ResolutionConfig(256 * 256, [1, 37, 73, 145], 2.0),
            "480p": ResolutionConfig(480 * 832, [1, 49, 81], 1.0),
            "720p": ResolutionConfig(720 * 1280, [1, 49, 81], 1.0),
        },
    }
    return DataConfig(**settings | overrides)


MODEL = ModelConfig()
