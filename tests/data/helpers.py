"""Synthetic triplets and indexes for the tests of data: sizes are real ones, media are not needed."""

import numpy as np
import pyarrow as pa

from phantom_mega.config import DataConfig, ModelConfig, ResolutionConfig
from phantom_mega.data.index import SCHEMA, TripletIndex, index_row
from phantom_mega.data.schema import Reference, ReferenceSource, Triplet

MODEL = ModelConfig()


def make_triplet(key="clip_0", references=1, frames=33, fps=24.0, height=480, width=832, tokens=12, kind="cross"):
    """A valid triplet; `kind` of all references, or a list with the kind of each."""
    kinds = [kind] * references if isinstance(kind, str) else kind
    refs = tuple(
        Reference(f"subject {i}", "human", kind, ReferenceSource("video_b", 3 * i, (0.0, 1.0, 20.0, 31.0)), 30, 20)
        for i, kind in enumerate(kinds)
    )
    return Triplet(key, f"A caption of {key}", "video_a", frames, fps, height, width, "vp9", refs, tokens, {"q": 0.5})


def make_index(triplets):
    """An index of triplets that lie nowhere."""
    rows = [index_row(triplet, "shard-000000.tar", 0, 1, 1) for triplet in triplets]
    return TripletIndex(pa.Table.from_pylist(rows, schema=SCHEMA), "test")


def mixed_index(count, seed=0):
    """Clips as a curated web set has them: 270p to 2160p, 1 to 30 seconds, 24 to 60 frames per second, 10% images."""
    rng = np.random.default_rng(seed)
    sizes = [(270, 480), (480, 854), (480, 640), (720, 1280), (1280, 720), (1080, 1920), (2160, 3840)]
    chosen = rng.choice(len(sizes), count, p=[0.10, 0.20, 0.10, 0.25, 0.10, 0.20, 0.05])
    frames = np.clip(np.exp(rng.normal(np.log(130), 0.55, count)), 20, 900).astype(int)
    frames[rng.random(count) < 0.1] = 1
    fps = rng.choice([23.976, 24, 25, 29.97, 30, 59.94, 60], count)
    tokens = np.clip(rng.normal(110, 45, count), 5, 400).astype(int)
    references = rng.integers(1, 5, count)
    return make_index(
        [
            make_triplet(f"k{i:07d}", int(n), int(f), float(rate) if f > 1 else 0.0, *sizes[size], tokens=int(length))
            for i, (size, n, f, rate, length) in enumerate(zip(chosen, references, frames, fps, tokens))
        ]
    )


def mixed_data(**overrides):
    """Settings of a 256p/480p/720p mixture: those of recipes/stage2_720p.yaml."""
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
