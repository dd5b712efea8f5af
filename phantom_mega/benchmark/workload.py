"""What is computed: sizes of the model, one sample of random features, random weights. The same for every case."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from phantom_mega.config import ModelConfig
from phantom_mega.core.schedule import Microbatch
from phantom_mega.errors import UserError
from phantom_mega.geometry import SampleShape, token_grid
from phantom_mega.packs import PackInputs, PackLayout
from phantom_mega.windows import WindowSpec


@dataclass(frozen=True)
class Size:
    """Sizes of a run of the benchmark.

    Attributes:
        model: the model; its `window_frames` is what the cases with windows use.
        height, width: pixels of the video.
        frames: default lengths of the video, in frames.
        text_tokens: caption tokens; references bring no CLIP tokens, which the peers do not have.
        iters, warmup: default timed and untimed iterations of a case.
        matmul: side of the square matrices whose product is the measured matmul.
    """

    model: ModelConfig
    height: int
    width: int
    frames: tuple[int, ...]
    text_tokens: int
    iters: int
    warmup: int
    matmul: int

    def shape(self, frames: int, references: int) -> SampleShape:
        """Token counts of one sample.

        Raises:
            UserError: `frames` is not 4k+1, or the references leave no room in a window.
        """
        self.windows.video_frames(references)
        return SampleShape(*token_grid(frames, self.height, self.width), references, self.text_tokens)

    @property
    def windows(self) -> WindowSpec:
        """How the cases with windows cut a sample."""
        return WindowSpec(self.model.window_frames)


# Four blocks of phantom_7b (`recipes/model/phantom_7b.yaml`).
FULL = Size(
    ModelConfig(
        num_layers=4,
        hidden_size=3072,
        num_attention_heads=24,
        ffn_hidden_size=12288,
        latent_channels=16,
        text_dim=2048,
        clip_dim=1152,
        rope_axes_dim=[16, 56, 56],
        window_frames=9,
    ),
    height=480,
    width=832,
    frames=(81, 49),
    text_tokens=256,
    iters=9,
    warmup=3,
    matmul=8192,
)
# Two windows a clip, heads that flash attention and FP8 linears take, seconds on one CPU core.
SMALL = Size(
    ModelConfig(
        num_layers=4,
        hidden_size=64,
        num_attention_heads=2,
        ffn_hidden_size=256,
        latent_channels=4,
        text_dim=32,
        clip_dim=16,
        rope_axes_dim=[8, 12, 12],
        window_frames=9,
    ),
    height=64,
    width=64,
    frames=(49, 33),
    text_tokens=16,
    iters=2,
    warmup=1,
    matmul=256,
)
FULL_ATTENTION = WindowSpec(window_frames=0)


def layout_of(model: ModelConfig, shape: SampleShape, spec: WindowSpec, device: torch.device) -> PackLayout:
    """A pack of one sample."""
    return PackLayout.build([shape], spec, model.rope_axes_dim, model.rope_theta, device=device)


def microbatch(model: ModelConfig, shape: SampleShape, layout: PackLayout, seed: int = 0) -> Microbatch:
    """Random features, target and loss weights of the sample; the same numbers for any layout of it."""
    device, patch_dim = layout.visual_sample.device, 4 * model.latent_channels
    generator = torch.Generator(device).manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=generator, device=device)  # noqa: E731
    inputs = PackInputs(
        visual=draw(shape.visual_tokens, patch_dim),
        timestep=torch.full((1,), 0.6, device=device),
        text=draw(shape.text_tokens, model.text_dim),
        clip=draw(0, model.clip_dim),
        layout=layout,
    )
    return inputs, draw(shape.visual_tokens, patch_dim), layout.video_mask.float()


@torch.no_grad()
def random_weights(shapes: dict[str, torch.Size], device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights by the plain model's names, none zero: adaLN and the final layer of a fresh model would hide the blocks.

    They are rounded to `dtype`, so that every precision starts from the same numbers.
    """
    weights = {}
    for name, shape in shapes.items():
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest())
        drawn = torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)
        matrix = len(shape) == 2 and not name.endswith("offset")
        scale = shape[-1] ** -0.5 if matrix else 0.2
        weights[name] = (scale * drawn + (".norm_" in name)).to(dtype)
    return weights


def check_frames(size: Size, frames: list[int], references: list[int]) -> None:
    """Refuse lengths and reference counts that cannot be laid out, before anything is measured.

    Raises:
        UserError: names the number and the nearest right ones.
    """
    for count in references:
        if count < 0:
            raise UserError(f"--references {count} is negative")
        for length in frames:
            size.shape(length, count)
