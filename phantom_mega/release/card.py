"""The model card of a release: what it is, how it was trained, what was measured, code that runs."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

import phantom_mega
from phantom_mega.checkpoint.folder import iteration_of
from phantom_mega.config import RunConfig
from phantom_mega.errors import UserError
from phantom_mega.geometry import bucket_size
from phantom_mega.metrics import read_metrics

LAST = 100


@dataclass(frozen=True)
class Origin:
    """Where a release's weights are from.

    Attributes:
        checkpoint: the `iter_...` folder.
        config: of its run.
        weights: `ema` or `raw`.
        dtype: of the weights as released.
        license: an identifier of the hub.
        command: how the export was made.
    """

    checkpoint: Path
    config: RunConfig
    weights: str
    dtype: torch.dtype
    license: str = "other"
    command: str = ""


def write_card(origin: Origin, target: Path) -> None:
    """Write `README.md`."""
    header = {
        "license": origin.license,
        "library_name": "diffusers",
        "pipeline_tag": "image-to-video",
        "tags": ["subject-to-video", "phantom", "rectified-flow"],
    }
    front = yaml.safe_dump(header, sort_keys=False)
    text = f"---\n{front}---\n\n# Subject-to-video model\n\n{_about(origin)}\n{_example(origin)}\n{_recipe(origin)}\n"
    (target / "README.md").write_text(text + f"{_measured(origin)}\n{_limits()}\n{_made(origin)}")


def _about(origin: Origin) -> str:
    model = origin.config.model
    windows = f"windows of {model.window_frames} latent frames" if model.window_frames else "full attention"
    return f"""From 1 to {model.max_references} reference images and a prompt to a video that keeps the subjects.
An MMDiT with {windows} and `{model.reference_injection}` injection of the references, trained with
rectified flow after Phantom ([arXiv 2502.11079](https://arxiv.org/abs/2502.11079)) by phantom_mega:
{model.num_layers} blocks, width {model.hidden_size}, {model.num_attention_heads} heads.
"""


def _example(origin: Origin) -> str:
    height, width, frames = largest_video(origin.config)
    return f"""## Use

Needs `pip install torch diffusers transformers open_clip_torch accelerate`.
`trust_remote_code` runs the Python files of this folder: read them first.

```python
import sys

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import export_to_gif

folder, references, prompt = sys.argv[1], sys.argv[2:-1], sys.argv[-1]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
video = pipe(
    prompt,
    references,
    height={height},
    width={width},
    num_frames={frames},
    num_inference_steps=50,
    image_guidance_scale=3.0,
    text_guidance_scale=7.5,
    generator=torch.Generator("cpu").manual_seed(0),
).frames[0]
export_to_gif(video, "video.gif", fps={origin.config.data.frame_rate:g})
```

Saved as `example.py`: `python example.py THIS_FOLDER cat.png hat.png "A cat puts on a red hat."`
"""


def largest_video(config: RunConfig) -> tuple[int, int, int]:
    """(height, width, frames) of the largest video that the run trained on, in its first aspect ratio."""
    largest = max(config.data.resolutions.values(), key=lambda one: one.pixels * max(one.frames), default=None)
    if largest is None:
        return 480, 832, 81
    width, _, height = config.data.aspect_ratios[0].partition(":")
    return *bucket_size(largest.pixels, float(width) / float(height)), max(largest.frames)


def _recipe(origin: Origin) -> str:
    config, state = origin.config, iteration_of(origin.checkpoint)
    sizes = "; ".join(
        f"{name}: about {one.pixels:,} pixels, {' or '.join(map(str, one.frames))} frames, weight {one.weight:g}"
        for name, one in config.data.resolutions.items()
    )
    flow, optimizer = config.flow, config.optimizer
    average = f"exponential moving average, decay {config.train.ema_decay}" if origin.weights == "ema" else "raw"
    rows = {
        "weights": f"{average}, {str(origin.dtype).removeprefix('torch.')}",
        "iteration": f"{state:,} of {config.train.train_iters:,}, {config.train.global_batch_size} packs of up to "
        f"{config.data.seq_length:,} visual tokens each",
        "resolutions": sizes,
        "optimizer": f"AdamW, peak learning rate {optimizer.lr:g} ({optimizer.lr_decay_style}), betas "
        f"{optimizer.adam_beta1:g} and {optimizer.adam_beta2:g}, weight decay {optimizer.weight_decay:g}",
        "dropout": f"text {flow.text_dropout:g}, all images {flow.image_dropout:g}, VAE references alone "
        f"{flow.vae_reference_dropout:g}, CLIP features alone {flow.clip_reference_dropout:g}",
        "precision": "bf16 with fp32 main weights" if config.precision.bf16 else "fp32",
        "VAE": _public(config.conditioning.vae),
        "text encoder": _public(config.conditioning.text_encoder),
        "vision encoder": _public(config.conditioning.vision_encoder),
        "started from": _public(config.train.load) if config.train.load else "random weights",
    }
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"## Training\n\n| | |\n|---|---|\n{lines}\n"


def _public(name: str) -> str:
    """A name as it is; of a folder of the training machine its last two parts."""
    return "/".join(Path(name).parts[-2:]) if Path(name).is_absolute() or Path(name).exists() else name


def _measured(origin: Origin) -> str:
    """The training loss; nothing else was measured."""
    iteration = iteration_of(origin.checkpoint)
    try:
        metrics = read_metrics(origin.checkpoint.parents[1])
    except (UserError, IndexError):
        metrics = []
    losses = [
        one["loss"] for one in metrics if one["iteration"] <= iteration and math.isfinite(one.get("loss", math.nan))
    ]
    if not losses:
        return "## Measured\n\nNothing is known of this checkpoint's run.\n"
    last = losses[-LAST:]
    mean = sum(last) / len(last)
    about = f"rectified flow, mean over the last {len(last)} iterations before this checkpoint"
    return (
        f"## Measured\n\nTraining loss ({about}): {mean:.4f}.\n"
        f"It is no measure of the videos; no evaluation was run for this card.\n"
    )


def _limits() -> str:
    return """## Limits

Sizes are multiples of 16, frames 4k+1. Videos of sizes and lengths far from those above were not trained. The model
repeats what its data hold, biases included; do not use it to show real people without their consent. The encoders keep
their own licences.
"""


def _made(origin: Origin) -> str:
    command = f"\n\n    {origin.command}\n" if origin.command else ".\n"
    today = datetime.datetime.now(datetime.UTC).date()
    return f"## Export\n\nBy phantom_mega {phantom_mega.__version__} on {today}{command}"
