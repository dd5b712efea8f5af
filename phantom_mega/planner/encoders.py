"""The frozen encoders of the input head: memory of their weights, and FLOPs of encoding a sample.

Counts are those of the published architectures; a test builds each on torch's meta device and compares.
"""

from __future__ import annotations

from dataclasses import dataclass

from phantom_mega.config import ConditioningConfig, PrecisionConfig
from phantom_mega.geometry import PIXELS_PER_TOKEN, VAE_TIME_STRIDE, SampleShape

# Parameters of the encoders that recipes name; the part after the last slash, in lower case.
PARAMETERS = {
    "cogvideox-2b": 215_583_907,
    "cogvideox-5b": 215_583_907,
    "qwen2.5-3b-instruct": 3_085_938_688,
    "qwen2.5-7b-instruct": 7_070_619_136,
    "vit-so400m-14-siglip-384": 428_225_600,
    # Shipped with the project or random: next to nothing.
    "linear": 0,
    "tiny": 0,
}
# Rows of the embedding tables: parameters that no product reads.
EMBEDDINGS = {"qwen2.5-3b-instruct": 311_164_928, "qwen2.5-7b-instruct": 544_997_376}
# FLOPs of CogVideoX's encoder for each pixel of a frame: once a clip, and for every frame.
VAE_FLOPS_CLIP, VAE_FLOPS_FRAME = 5.13e6, 8.69e6
# Frames above `conditioning.vae.GPU_TILE_ABOVE` pixels are encoded in tiles that overlap by 1/6 and 1/5.
TILE_ABOVE, TILE_OVERLAP = 640 * 640, 1 / ((1 - 1 / 6) * (1 - 1 / 5))


@dataclass(frozen=True)
class Encoders:
    """What the input head of a run costs.

    Attributes:
        weights: bytes of the weights on every GPU.
        unknown: names that the planner does not know and leaves out.
        vae_known: whether the VAE's FLOPs are known.
        text_flops, vision_flops: FLOPs a token.
    """

    weights: float
    unknown: tuple[str, ...]
    vae_known: bool
    text_flops: float
    vision_flops: float

    @classmethod
    def of(cls, conditioning: ConditioningConfig, precision: PrecisionConfig) -> Encoders:
        """Of a recipe; with cached features no encoder is loaded."""
        if conditioning.cached_features:
            return cls(0.0, (), False, 0.0, 0.0)
        width = 2 if precision.bf16 else 4
        text_width = 2 if conditioning.text_encoder_dtype == "bfloat16" else 4
        entries = (
            (conditioning.vae, width), (conditioning.text_encoder, text_width), (conditioning.vision_encoder, width)
        )  # fmt: skip
        names = [name.rsplit("/", 1)[-1].lower() for name, _ in entries]
        counts = [PARAMETERS.get(name) for name in names]
        unknown = tuple(entry for (entry, _), count in zip(entries, counts, strict=True) if count is None)
        weights = sum((count or 0) * bytes_ for count, (_, bytes_) in zip(counts, entries, strict=True))
        text = (counts[1] or 0) - EMBEDDINGS.get(names[1], 0)
        return cls(float(weights), unknown, bool(counts[0]), 2.0 * text, 2.0 * (counts[2] or 0))

    def sample_flops(self, shape: SampleShape) -> float:
        """FLOPs of encoding one sample, which one rank does."""
        total = self.text_flops * shape.text_tokens + self.vision_flops * shape.references * shape.clip_tokens
        if self.vae_known:
            pixels = shape.frame_tokens * PIXELS_PER_TOKEN**2
            frames = VAE_TIME_STRIDE * (shape.frames - 1) + 1
            clip = VAE_FLOPS_CLIP + VAE_FLOPS_FRAME * frames
            references = shape.references * (VAE_FLOPS_CLIP + VAE_FLOPS_FRAME)
            total += pixels * (clip + references) * (TILE_OVERLAP if pixels > TILE_ABOVE else 1)
        return total
