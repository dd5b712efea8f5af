"""Train one small model in BF16 and in each FP8 recipe, from the same weights on the same batches, and compare losses.

The model is the product's own (megatron-core chunks, packs, windows, references, rectified flow, clipping, AdamW),
with heads of 128 channels. Clips are moving waves, so that there is something to learn; noise and timesteps are new in
each step and the same in each run. An FP8 run passes if the mean loss of the last 50 steps, and the loss smoothed over
50 steps at every step, lie within 1% of BF16's.

With a GPU the FP8 runs are Transformer Engine's. `--emulate` rounds the same tensors to FP8 on any device instead
(benchmarks/fp8_emulation.py): evidence about numerics, none about kernels.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.fp8_emulation import emulate
from phantom_mega.config import ModelConfig, OptimizerConfig, ParallelConfig, PrecisionConfig, RunConfig, TrainConfig
from phantom_mega.core.build import build_model, wrap_ddp
from phantom_mega.core.fp8 import require_fp8
from phantom_mega.core.parallel_config import initialize_distributed
from phantom_mega.core.schedule import forward_backward
from phantom_mega.errors import UserError
from phantom_mega.flow import interpolate, sample_timesteps, velocity
from phantom_mega.geometry import SampleShape, patchify
from phantom_mega.packs import PackInputs, PackLayout
from phantom_mega.precision import FP8_FORMATS, FP8_RECIPES
from phantom_mega.training import optimizer as optim
from phantom_mega.windows import WindowSpec

SHAPES = (SampleShape(8, 4, 4, 1, 6, 4), SampleShape(3, 4, 5, 1, 6, 4))
SEQ_LENGTH, TEXT_SEQ_LENGTH, CLIPS = 224, 32, 16
LAST = 50
WITHIN = 0.01

EXAMPLES = """examples:
  python benchmarks/fp8_loss.py                        # a GPU with Transformer Engine
  python benchmarks/fp8_loss.py --emulate --num-layers 2 --json fp8.json     # any machine, rounding only
"""


@dataclass(frozen=True)
class Clip:
    """One synthetic clip: latents [channels, T, 2H, 2W], caption and CLIP features of its own."""

    shape: SampleShape
    latents: torch.Tensor
    text: torch.Tensor
    clip: torch.Tensor


def make_clips(model: ModelConfig, generator: torch.Generator) -> list[Clip]:
    """Waves that move over the frame, other ones in each clip and channel; unit variance."""
    clips = []
    for number in range(CLIPS):
        shape = SHAPES[number % len(SHAPES)]
        axes = (torch.arange(n, dtype=torch.float32) for n in (shape.frames, 2 * shape.height, 2 * shape.width))
        t, y, x = torch.meshgrid(*axes, indexing="ij")
        speed, fy, fx, phase = torch.rand(4, model.latent_channels, 1, 1, 1, generator=generator)
        latents = 2**0.5 * torch.cos(0.8 * speed * t + 0.9 * fy * y + 0.9 * fx * x + 6.28 * phase)
        text = torch.randn(shape.text_tokens, model.text_dim, generator=generator)
        features = torch.randn(shape.references * shape.clip_tokens, model.clip_dim, generator=generator)
        clips.append(Clip(shape, latents, text, features))
    return clips


def batch(step: int, clips: list[Clip], model: ModelConfig, device: torch.device) -> tuple:
    """The pack of one step: two clips, each with its first frame as reference, noise and timesteps of this step."""
    generator = torch.Generator().manual_seed(1000 + step)
    first = 2 * int(torch.randint(len(clips) // 2, (1,), generator=generator))
    chosen = clips[first : first + 2]
    timesteps = sample_timesteps(len(chosen), generator)
    visual, target = [], []
    for clip, t in zip(chosen, timesteps, strict=True):
        noise = torch.randn(clip.latents.shape, generator=generator)
        reference = patchify(clip.latents[:, :1])
        visual += [patchify(interpolate(clip.latents, noise, t)), reference]
        target += [patchify(velocity(clip.latents, noise)), torch.zeros_like(reference)]
    layout = PackLayout.build(
        [clip.shape for clip in chosen], WindowSpec(model.window_frames), model.rope_axes_dim, model.rope_theta,
        SEQ_LENGTH, TEXT_SEQ_LENGTH, device,
    )  # fmt: skip
    inputs = PackInputs(
        visual=torch.cat(visual).to(device),
        timestep=timesteps.to(device),
        text=torch.cat([clip.text for clip in chosen]).to(device),
        clip=torch.cat([clip.clip for clip in chosen]).to(device),
        layout=layout,
    )
    return inputs, torch.cat(target).to(device), layout.video_mask.float()


def train(run: RunConfig, clips: list[Clip], emulated: str | None, fp8: str) -> tuple[list[float], int]:
    """Losses of all steps, and the number of parameters. `emulated`: a recipe to round by, in the format `fp8`."""
    chunks = build_model(run.model, run.parallel, run.precision, run.train.seed)
    if emulated and not emulate(chunks[0].blocks, emulated, fp8):
        raise UserError("--emulate found no linear of megatron-core; it needs transformer_impl=local")
    config = chunks[0].config
    wrapped = wrap_ddp(chunks, config, run.parallel)
    optimizer = optim.build_optimizer(wrapped, run)
    scheduler = optim.build_scheduler(optimizer, run)
    device, losses = next(chunks[0].parameters()).device, []
    for step in range(run.train.train_iters):
        wrapped[0].zero_grad_buffer()
        optimizer.zero_grad()
        losses.append(forward_backward(wrapped, [batch(step, clips, run.model, device)], config).loss)
        scheduler.step(1)
        optim.apply_update(optimizer, optim.gradient_norm(optimizer), run.optimizer.clip_grad)
    return losses, sum(param.numel() for param in chunks[0].parameters())


def compare(losses: list[float], baseline: list[float]) -> dict:
    """Mean of the last steps, its deviation from the baseline's, and the largest deviation of the smoothed curve."""
    own, other = torch.tensor(losses, dtype=torch.float64), torch.tensor(baseline, dtype=torch.float64)
    width = min(LAST, len(own))
    smooth, smooth_other = (values.unfold(0, width, 1).mean(1) for values in (own, other))
    deviations = smooth / smooth_other - 1
    return {
        "last": smooth[-1].item(),
        "deviation": deviations[-1].item(),
        "largest_deviation": deviations.abs().max().item(),
        "passed": bool(own.isfinite().all() and deviations.abs().max() <= WITHIN),
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emulate", action="store_true", help="round to FP8 instead of computing in it")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each run (default: 300)")
    parser.add_argument("--num-layers", type=int, default=4, help="blocks (default: 4)")
    parser.add_argument("--hidden-size", type=int, default=256, help="width, a multiple of 128 (default: 256)")
    parser.add_argument("--recipes", nargs="+", choices=FP8_RECIPES, default=FP8_RECIPES, help="default: all")
    parser.add_argument("--fp8", choices=FP8_FORMATS, default="hybrid", help="format of all recipes (default: hybrid)")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate after 20 steps (default: 3e-4)")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--json", type=Path, help="write all numbers and curves here")
    return parser.parse_args()


def run_config(args: argparse.Namespace, precision: PrecisionConfig) -> RunConfig:
    """What every run shares, in one precision."""
    model = ModelConfig(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        num_attention_heads=args.hidden_size // 128,
        ffn_hidden_size=4 * args.hidden_size,
        rope_axes_dim=[32, 48, 48],
        window_frames=5,
    )
    return RunConfig(
        model=model,
        parallel=ParallelConfig(transformer_impl="local" if args.emulate else "auto"),
        precision=precision,
        optimizer=OptimizerConfig(lr=args.lr, lr_warmup_iters=min(20, args.steps // 2)),
        train=TrainConfig(train_iters=args.steps, seed=args.seed, ema_decay=0.0),
    )


def measure(args: argparse.Namespace) -> dict:
    """All runs; the result that is printed and written."""
    bf16 = PrecisionConfig(bf16=True)
    runs = {"fp32": (PrecisionConfig(), None), "bf16": (bf16, None)}
    for recipe in args.recipes:
        fp8 = bf16 if args.emulate else PrecisionConfig(bf16=True, fp8=args.fp8, fp8_recipe=recipe)
        runs[recipe] = (fp8, recipe if args.emulate else None)
    for precision, _ in runs.values():
        require_fp8(precision)
    clips = make_clips(run_config(args, bf16).model, torch.Generator().manual_seed(args.seed))
    curves, seconds, parameters = {}, {}, 0
    for name, (precision, emulated) in runs.items():
        started = time.monotonic()
        curves[name], parameters = train(run_config(args, precision), clips, emulated, args.fp8)
        seconds[name] = time.monotonic() - started
        print(f"{name}: {args.steps} steps in {seconds[name]:.0f} s", file=sys.stderr, flush=True)
    gpu = torch.cuda.is_available()
    return {
        "command": " ".join(sys.argv),
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if gpu else f"CPU ({platform.machine()})",
        "versions": {name: version(name) for name in ("torch", "megatron-core")},
        "emulated": args.emulate,
        "format": args.fp8,
        "parameters": parameters,
        "steps": args.steps,
        "runs": {name: {**compare(curves[name], curves["bf16"]), "seconds": seconds[name]} for name in curves},
        "curves": curves,
    }


def table(result: dict) -> str:
    """The result in Markdown."""
    kind = "EMULATED by rounding, no FP8 kernel ran" if result["emulated"] else "Transformer Engine"
    lines = [
        f"{result['parameters'] / 1e6:.1f}M parameters, {result['steps']} steps; FP8 {result['format']}: {kind}; "
        f"{result['device']}, torch {result['versions']['torch']}, {result['date']}",
        "",
        f"| run | mean loss of the last {min(LAST, result['steps'])} steps | against bf16 | largest of the curve | |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["runs"].items():
        verdict = "" if name in ("fp32", "bf16") else "within 1%" if row["passed"] else "NOT within 1%"
        lines.append(
            f"| {name} | {row['last']:.4f} | {row['deviation']:+.2%} | {row['largest_deviation']:.2%} | {verdict} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run, print, write; exit code 1 if a recipe is not within the bound, 2 for a mistake."""
    args = parse()
    logging.getLogger("megatron").setLevel(logging.ERROR)
    try:
        initialize_distributed(ParallelConfig())
        result = measure(args)
    except UserError as error:
        print(f"error: {error}" + ("" if args.emulate else ", or --emulate"), file=sys.stderr)
        return 2
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    torch.distributed.destroy_process_group()
    return 0 if all(result["runs"][name]["passed"] for name in args.recipes) else 1


if __name__ == "__main__":
    sys.exit(main())
