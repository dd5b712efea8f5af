"""What every layout is compared with: the plain model's loss, gradients and three AdamW steps on the same packs.

Everything is a function of fixed seeds, so each rank rebuilds packs and weights for itself; the expected results come
from a file that the test process writes once.
"""

from __future__ import annotations

import dataclasses

import torch

from phantom_mega.config import ModelConfig, OptimizerConfig, PrecisionConfig
from phantom_mega.flow import flow_loss
from phantom_mega.geometry import SampleShape
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.packs import PackInputs, PackLayout
from phantom_mega.windows import WindowSpec

MODEL = ModelConfig(
    num_layers=4,
    hidden_size=64,
    num_attention_heads=4,
    ffn_hidden_size=128,
    latent_channels=4,
    text_dim=12,
    clip_dim=10,
    timestep_dim=32,
    rope_axes_dim=[4, 6, 6],
    window_frames=6,
)
OPTIMIZER = OptimizerConfig(lr=3e-3, weight_decay=0.1, clip_grad=0.05)
FP32 = PrecisionConfig()
SEQ_LENGTH, TEXT_SEQ_LENGTH, CLIP_TOKENS = 144, 32, 3
STEPS = 3


def _shape(frames: int, height: int, width: int, references: int, text_tokens: int) -> SampleShape:
    return SampleShape(frames, height, width, references, text_tokens, CLIP_TOKENS)


# Four microbatches: every reference count, several samples of mixed sizes, padding in both streams, none in the second
# visual stream, no references at all in the third (its CLIP features are empty).
PACKS = (
    (_shape(9, 2, 3, 2, 5), _shape(1, 3, 2, 1, 4)),
    (_shape(14, 2, 2, 4, 6), _shape(6, 4, 3, 0, 3)),
    (_shape(5, 3, 3, 0, 7), _shape(1, 2, 2, 0, 2), _shape(3, 2, 4, 0, 4)),
    (_shape(8, 2, 4, 3, 9), _shape(2, 3, 3, 1, 3)),
)


def plain_model(seed: int = 0) -> PhantomTransformer3DModel:
    """The plain model with all weights random and none zero, adaLN's and the final layer's included."""
    fields = dataclasses.asdict(MODEL)
    fields.pop("patch_size")
    model = PhantomTransformer3DModel(**fields)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            scale = 1 / param.shape[-1] ** 0.5 if param.ndim == 2 and "offset" not in name else 0.2
            param.copy_(scale * torch.randn(param.shape, generator=generator) + ("norm" in name))
    return model


def microbatches(step: int = 0) -> list[tuple[PackInputs, torch.Tensor, torch.Tensor]]:
    """The global batch of one step; features, noise and timesteps are new in each step."""
    spec = WindowSpec(MODEL.window_frames)
    result = []
    for i, shapes in enumerate(PACKS):
        generator = torch.Generator().manual_seed(1000 * step + i)
        layout = PackLayout.build(
            list(shapes), spec, MODEL.rope_axes_dim, MODEL.rope_theta, SEQ_LENGTH, TEXT_SEQ_LENGTH
        )
        patch_dim = 4 * MODEL.latent_channels
        inputs = PackInputs(
            visual=torch.randn(SEQ_LENGTH, patch_dim, generator=generator),
            timestep=torch.rand(len(shapes), generator=generator),
            text=torch.randn(len(layout.text_index), MODEL.text_dim, generator=generator),
            clip=torch.randn(len(layout.clip_index), MODEL.clip_dim, generator=generator),
            layout=layout,
        )
        target = torch.randn(SEQ_LENGTH, patch_dim, generator=generator)
        result.append((inputs, target, layout.video_mask.float()))
    return result


def loss_and_gradients(model: PhantomTransformer3DModel, step: int) -> float:
    """Loss of one step's global batch; leaves its gradient in `param.grad`."""
    model.zero_grad()
    batch = microbatches(step)
    tokens = sum(weight.sum() for _, _, weight in batch)
    total = 0.0
    for inputs, target, weight in batch:
        out = model(inputs.visual, inputs.timestep, inputs.text, inputs.clip, inputs.layout).sample
        loss = flow_loss(out, target, weight).sum() / tokens
        loss.backward()
        total += loss.item()
    return total


def compute() -> dict:
    """Loss, every gradient, and weights after `STEPS` clipped AdamW steps."""
    model = plain_model()
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and not n.endswith("modulation.offset")]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or n.endswith("modulation.offset")]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": OPTIMIZER.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=OPTIMIZER.lr,
        betas=(OPTIMIZER.adam_beta1, OPTIMIZER.adam_beta2),
        eps=OPTIMIZER.adam_eps,
    )
    expected = {"losses": [], "norms": []}
    for step in range(STEPS):
        expected["losses"].append(loss_and_gradients(model, step))
        if step == 0:
            expected["gradients"] = {name: param.grad.clone() for name, param in model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_grad)
        expected["norms"].append(norm.item())
        optimizer.step()
    expected["weights"] = {name: param.detach().clone() for name, param in model.named_parameters()}
    return expected


def relative_errors(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """|actual - expected| / |expected| (2-norms) of every tensor; the names must agree."""
    assert actual.keys() == expected.keys(), sorted(actual.keys() ^ expected.keys())
    return {
        name: ((actual[name] - tensor).norm() / tensor.norm().clamp_min(1e-30)).item()
        for name, tensor in expected.items()
    }
