"""Videos of held-out cases by a trained arm: the project's own pipeline, which a user of an export calls too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from phantom_mega.config import model_arguments
from phantom_mega.config_io import load_run_config
from phantom_mega.generation.load import load_pipeline
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.hf.pipeline_phantom import PhantomPipeline
from phantom_mega.reproduction.arms import ARMS, Condition
from phantom_mega.reproduction.cases import FRAMES, Case, size_of
from phantom_mega.toyworld.judge_accuracy import paste


def generate(condition: Condition, run: Path, cases: list[Case], steps: int, seed: int, device: str) -> np.ndarray:
    """uint8 [N, F, H, W, 3], a video of each case.

    Args:
        condition: how to sample.
        run: folder of the arm's training; not read for pasted references.
        cases: what to show.
        steps: Euler steps.
        seed: of the noise, with the case's number; the same for every condition.
        device: of the pipeline.
    """
    height, width = size_of(condition)
    if condition.references == "pasted":
        return np.stack([paste(case.images, FRAMES, height, width) for case in cases])
    pipe = _load(condition, run, seed, device)
    videos = []
    for number, case in enumerate(cases):
        frames = pipe(
            case.sample.caption,
            case.images,
            height=height,
            width=width,
            num_frames=FRAMES,
            num_inference_steps=steps,
            image_guidance_scale=condition.image_scale,
            text_guidance_scale=condition.text_scale,
            generator=torch.Generator().manual_seed(1000 * seed + number),
            output_type="np",
        ).frames
        videos.append((np.asarray(frames[0]) * 255).round().astype(np.uint8))
    return np.stack(videos)


def _load(condition: Condition, run: Path, seed: int, device: str) -> PhantomPipeline:
    arm = ARMS[condition.arm]
    pipe, origin = load_pipeline(run)
    if not condition.trained:
        model = load_run_config(Path(origin["checkpoint"]) / "config.yaml").model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipe.register_modules(transformer=PhantomTransformer3DModel(**model_arguments(model)).eval())
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    _keep(pipe, arm.vae, arm.clip)
    return pipe


def _keep(pipe: PhantomPipeline, vae: bool, clip: bool) -> None:
    """What a model never saw in training stays zero: references by the VAE, or by CLIP."""
    encode = pipe.encode_references

    def encode_references(images, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        latents, features = encode(images, height, width)
        return latents * float(vae), features * float(clip)

    pipe.encode_references = encode_references
