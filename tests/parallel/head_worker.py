"""A rank of tests/hf/test_head_parallel.py: the plain model on all ranks together, against itself alone."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from phantom_mega.geometry import SampleShape
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.hf.head_parallel import HeadParallel
from phantom_mega.hf.transformer_phantom import joint_attention
from phantom_mega.packs import PackLayout
from phantom_mega.windows import WindowSpec

SHAPES = [
    SampleShape(frames=7, height=3, width=3, references=2, text_tokens=5, clip_tokens=3),
    SampleShape(frames=2, height=1, width=5, references=0, text_tokens=3, clip_tokens=3),
]


def gradient_difference(shared: HeadParallel) -> float:
    """Largest difference of the gradients of q, k, v of this rank's tokens, attended with the others or alone."""
    layout = PackLayout.build(SHAPES, WindowSpec(5), [2, 2, 4], 1e4)
    counts = layout.seq_length, layout.text_seq_length
    generator = torch.Generator().manual_seed(1)
    draw = lambda count: torch.randn(count, 6, 8, generator=generator, dtype=torch.float64)  # noqa: E731
    streams, weights = [[draw(count) for _ in range(3)] for count in counts], [draw(count) for count in counts]
    whole = [[x.clone().requires_grad_() for x in stream] for stream in streams]
    own = [[shared.part(x).requires_grad_() for x in stream] for stream in streams]
    alone = joint_attention(*whole, layout.windows[1], "sdpa")
    sum((out * weight).sum() for out, weight in zip(alone, weights)).backward()
    together = shared.attention(*own, layout.windows[1], "sdpa", *counts)
    sum((out * shared.part(weight)).sum() for out, weight in zip(together, weights)).backward()
    pairs = zip(own[0] + own[1], whole[0] + whole[1], strict=True)
    return max((mine.grad - shared.part(full.grad)).abs().max().item() for mine, full in pairs)


def main(folder: Path, _: list[str]) -> None:
    """Compare, and write the largest difference."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = PhantomTransformer3DModel(
        num_layers=3, hidden_size=48, num_attention_heads=6, ffn_hidden_size=64, text_dim=8, clip_dim=6,
        latent_channels=4, rope_axes_dim=[2, 2, 4], window_frames=5,
    ).double()  # fmt: skip
    visual, text = (sum(getattr(shape, name) for shape in SHAPES) for name in ("visual_tokens", "text_tokens"))
    clip = sum(shape.references * shape.clip_tokens for shape in SHAPES)
    inputs = [torch.randn(count, width).double() for count, width in ((visual, 16), (text, 8), (clip, 6))]
    given = (inputs[0], torch.tensor([0.3, 0.8]), inputs[1], inputs[2], model.layout(SHAPES))
    sizes = []
    with torch.no_grad():
        alone = model(*given).sample
        handle = model.blocks[0].register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
        model.enable_head_parallel(dist.group.WORLD)
        together = model(*given).sample
        handle.remove()
    size = dist.get_world_size()
    assert sizes == [-(-visual // size)], "each rank has its part of the tokens alone"
    assert together.shape == alone.shape
    difference = ((together - alone).abs().max() / alone.abs().max()).item()
    assert difference < 1e-12, difference
    assert gradient_difference(model.head_parallel) < 1e-12
    (folder / f"rank{dist.get_rank()}.txt").write_text(f"{difference}\n{visual % size}")
    dist.destroy_process_group()
