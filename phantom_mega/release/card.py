"""The model card of an export (README.md): what it is, how it was trained, what was measured, code that runs."""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path

import diffusers
import pyarrow.parquet
from huggingface_hub import ModelCardData

import phantom_mega
from phantom_mega.checkpoint.folder import iteration_of
from phantom_mega.config import RunConfig
from phantom_mega.data.index import INDEX_NAME
from phantom_mega.errors import UserError
from phantom_mega.geometry import bucket_size
from phantom_mega.metrics import read_metrics
from phantom_mega.release.components import referred
from phantom_mega.release.export import Source
from phantom_mega.release.verify import Verified

LOSS_ITERATIONS = 100
TAGS = ["subject-to-video", "text-to-video", "phantom", "rectified-flow"]
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_EXAMPLE = """\
import torch
from diffusers import DiffusionPipeline
from PIL import Image

device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
pipe = DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True, torch_dtype=dtype).to(device)
# A plain square stands in for your pictures: 1 to {references} paths or PIL images, one subject each.
references = [Image.new("RGB", (256, 256), "orange")]
frames = pipe(
    "An orange square moves slowly over a white table.",
    reference_images=references,
    height={height},
    width={width},
    num_frames={frames},
    num_inference_steps=50,
    generator=torch.Generator().manual_seed(0),
).frames[0]
frames[0].save("video.gif", save_all=True, append_images=frames[1:], duration=round(1000 / {rate:g}))
"""
_TEXT = """\
# {title}

A subject-to-video model: reference images of 1 to {references} subjects and a prompt become a video that keeps the
subjects. It follows Phantom ([arXiv 2502.11079](https://arxiv.org/abs/2502.11079)): an MMDiT with temporal window
attention and dynamic reference injection, trained as a rectified flow. It is not a release of that paper's authors.

## Use
{local}
```python
{example}```

The code of the model is in this repository, hence `trust_remote_code=True`; read it in `pipeline.py` and
`transformer/transformer_phantom.py`. It needs torch, diffusers ({diffusers} was used to write it), transformers and
open_clip. For an MP4, install imageio and imageio-ffmpeg and call
`diffusers.utils.export_to_video(frames, "video.mp4", fps={fps})`.
{referred}
## Weights

{weights}

## Training

{training}

## Measured

{measured}

## Limits

{limits}

## How it was exported

    {command}

with phantom_mega {version} on {date}.
"""


def check_license(name: str | None) -> None:
    """Refuse what cannot be a license's identifier on the hub.

    Raises:
        UserError: says what an identifier looks like.
    """
    if name is not None and not _LICENSE.fullmatch(name):
        raise UserError(f"--license {name!r} is no identifier; write one as apache-2.0, cc-by-nc-4.0 or other")


def example(source: Source, name: str) -> str:
    """Python code that loads the export and generates a video of the largest size that it was trained on."""
    height, width, frames = _largest(source.config)
    model = source.config.model
    return _EXAMPLE.format(
        name=name, references=model.max_references, height=height, width=width, frames=frames,
        rate=source.config.data.frame_rate,
    )  # fmt: skip


def _largest(config: RunConfig) -> tuple[int, int, int]:
    """(height, width, frames) of the largest clips of the recipe; 480p where it names none."""
    resolutions = config.data.resolutions.values()
    if not resolutions:
        return 480, 832, 81
    best = max(resolutions, key=lambda resolution: (resolution.pixels, max(resolution.frames)))
    across, down = map(float, config.data.aspect_ratios[0].split(":"))
    return (*bucket_size(best.pixels, across / down), max(best.frames))


def write_card(
    folder: Path,
    source: Source,
    index: dict,
    *,
    name: str,
    command: str,
    license_name: str | None,
    verified: Verified | None,
) -> None:
    """Write README.md.

    Args:
        folder: of the export.
        source: what was exported.
        index: its `model_index.json`.
        name: the hub's name of the repository, or the folder's.
        command: how it was exported, without this machine's paths.
        license_name: identifier on the hub, or None: the card then says that there is none.
        verified: what the check found; None if it was left out.
    """
    components = {key: value for key, value in index.items() if isinstance(value, list) and key != "_class_name"}
    text = _TEXT.format(
        title=name.split("/")[-1],
        references=source.config.model.max_references,
        local="" if "/" in name else "\nStart it in the folder that holds this one, or write this one's path.\n",
        example=example(source, name),
        diffusers=diffusers.__version__,
        fps=round(source.config.data.frame_rate),
        referred=_referred(referred(components), index["conditioning"]),
        weights=_weights(source),
        training=_bullets(_training(source.config, source.state)),
        measured=_bullets(_measured(source, verified)),
        limits=_bullets(_limits(source.config, license_name)),
        command=command,
        version=phantom_mega.__version__,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    data = ModelCardData(license=license_name, library_name="diffusers", pipeline_tag="image-to-video", tags=TAGS)
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _referred(names: list[str], conditioning: dict) -> str:
    """Which encoders are not here and where they come from."""
    if not names:
        return ""
    fields = {
        "vae": "vae",
        "text_encoder": "text_encoder",
        "tokenizer": "text_encoder",
        "image_encoder": "vision_encoder",
    }
    rows = "\n".join(f"- `{name}`: `{conditioning[fields[name]]}`" for name in names)
    return f"\nThe first call loads what is not in this repository:\n\n{rows}\n"


def _weights(source: Source) -> str:
    parameters = sum(param.numel() for param in source.model.parameters())
    dtype = str(source.dtype).removeprefix("torch.")
    kind = (
        f"the exponential moving average of the weights (decay {source.config.train.ema_decay:g})"
        if source.weights == "ema"
        else "the trained weights themselves, not their average"
    )
    return f"{parameters:,} parameters in {dtype}: {kind}, after iteration {source.state['iteration']:,}."


def _training(config: RunConfig, state: dict) -> list[str]:
    data, flow, train, model = config.data, config.flow, config.train, config.model
    resolutions = [
        f"{name} ({resolution.pixels:,} pixels; {', '.join(map(str, resolution.frames))} frames; "
        f"weight {resolution.weight:g})"
        for name, resolution in data.resolutions.items()
    ]
    window = f"temporal windows of {model.window_frames} latent frames" if model.window_frames else "full attention"
    lines = [
        f"Model: {model.num_layers} dual-stream blocks, width {model.hidden_size}, {model.num_attention_heads} heads, "
        f"{window}, references by `{model.reference_injection}`",
        f"Iterations: {state['iteration']:,} of {train.train_iters:,}, {train.global_batch_size} packs of at most "
        f"{data.seq_length:,} visual tokens each",
        f"Data: {_data_sizes(data.index_path)}; references of kind {', '.join(data.pair_kinds)}",
        f"Resolutions: {'; '.join(resolutions) or 'none in the recipe'}; {data.frame_rate:g} frames per second",
        f"Flow: timesteps logit-normal({flow.logit_mean:g}, {flow.logit_std:g}), shifted from {flow.shift_min:g} at "
        f"{flow.shift_min_pixels:,} to {flow.shift_max:g} at {flow.shift_max_pixels:,} video pixels",
        f"Dropout: text {flow.text_dropout:g}, all image conditions {flow.image_dropout:g}, VAE references alone "
        f"{flow.vae_reference_dropout:g}",
        f"Optimizer: AdamW, learning rate {config.optimizer.lr:g}, {'bf16' if config.precision.bf16 else 'float32'}",
    ]
    if train.finetune or train.load:
        lines.append("Started from the weights of an earlier run (`train.load`); its iterations are not counted here")
    return lines


def _data_sizes(paths: list[str]) -> str:
    """Samples of every data set, where its index still is; folders are named without their place."""
    found = []
    for number, text in enumerate(paths, 1):
        path = Path(text)
        index = path if path.suffix == ".parquet" else path / INDEX_NAME
        try:
            found.append(f"set {number}: {pyarrow.parquet.read_metadata(index).num_rows:,} samples")
        except (OSError, pyarrow.lib.ArrowException):
            found.append(f"set {number}: size not known at export")
    return "; ".join(found) or "not named in the run's configuration"


def training_loss(source: Source) -> tuple[float, int] | None:
    """(mean loss, iterations) over the last of the run before the checkpoint; None without a record."""
    folder = source.reader.folder.resolve()
    if iteration_of(folder) < 0:
        return None
    try:
        metrics = read_metrics(folder.parent.parent)
        losses = [float(m["loss"]) for m in metrics if m["iteration"] <= source.state["iteration"]]
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None
    losses = [loss for loss in losses[-LOSS_ITERATIONS:] if math.isfinite(loss)]
    return (sum(losses) / len(losses), len(losses)) if losses else None


def _measured(source: Source, verified: Verified | None) -> list[str]:
    lines, loss = [], training_loss(source)
    if loss is not None:
        lines.append(
            f"Mean training loss over the last {loss[1]} iterations: {loss[0]:.4f} (squared error of the velocity on "
            "training data, of the raw weights; not a measure of quality)"
        )
    if verified is not None:
        lines.append(
            f"A forward pass of this folder, opened without the trainer, and of the model that was trained differ by "
            f"at most {verified.difference:.2g}, at velocities of up to {verified.scale:.3g} (float32, CPU)"
        )
    lines.append("Quality: not evaluated; no numbers are given")
    return lines


def _limits(config: RunConfig, license_name: str | None) -> list[str]:
    model = config.model
    height, width, frames = _largest(config)
    lines = [
        f"Sides are multiples of 16 pixels, frames 4k+1, references 0 to {model.max_references}; prompts are cut at "
        f"{config.data.max_text_tokens} tokens",
        f"Trained up to {width}x{height} pixels and {frames} frames; larger or longer videos are outside of that",
        "It may show what its training data show, biases included; outputs were not filtered",
    ]
    if license_name is None:
        lines.append("No license was named at export: ask who gave it to you before you use or pass it on")
    return lines
