"""An imported checkpoint as the plain model, and its forward pass on one video without references."""

import torch

from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.config import model_arguments
from phantom_mega.config_io import load_run_config
from phantom_mega.geometry import SampleShape, patchify, unpatchify
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.hf.naming import hf_names, split_qkv
from phantom_mega.release import importing
from phantom_mega.release.base_models import BASE_MODELS
from phantom_mega.release.base_models.common import Options
from phantom_mega.release.base_models.weights import Weights
from tests.release.base_models.peers import NaDiT, NaDiTConfig


class Names(Weights):
    """Shapes without values."""

    def __init__(self, shapes):
        self.path, self.shapes = "released", shapes

    def load(self, name):
        raise AssertionError(name)


def released(kind):
    """Names and shapes of a released file, made without memory."""
    sizes = {"heads": 20, "layers": 32, "separate": 10} if kind == "3b" else {"heads": 24, "layers": 36, "separate": 36}
    config = NaDiTConfig(kind=kind, head_dim=128, in_channels=33, out_channels=16, text_dim=5120, **sizes)
    with torch.device("meta"):
        return Names({name: tuple(tensor.shape) for name, tensor in NaDiT(config).state_dict().items()})


def bring_in(name, path, target, *overrides, options=Options(), **more):  # noqa: B008 (frozen)
    """Import as the tool does; returns (plan, figures)."""
    base = BASE_MODELS[name]
    source = base.open(path)
    run = importing.with_layout(importing.base_config(base, source, None, list(overrides)), 1, 1)
    plan = base.plan(source, run, options)
    return plan, importing.write(plan, source.weights, target, run, **more)


def plain_model(checkpoint) -> PhantomTransformer3DModel:
    """The plain model with the weights of a checkpoint, all of them and no other."""
    config, reader = load_run_config(checkpoint / "config.yaml"), CheckpointReader(checkpoint)
    state = {}
    for key in reader.tensors:
        names, tensor = hf_names(key), reader.read(key)
        parts = [tensor] if len(names) == 1 else split_qkv(tensor, config.model.num_attention_heads)
        state.update(zip(names, parts, strict=True))
    model = PhantomTransformer3DModel(**model_arguments(config.model))
    model.load_state_dict(state, strict=True)
    return model.eval()


@torch.no_grad()
def velocity(model, latents, text, t):
    """Prediction [C, T, H, W] for latents [C, T, H, W] and text features [L, text_dim] at t in [0, 1]."""
    frames, height, width = latents.shape[1], latents.shape[2] // 2, latents.shape[3] // 2
    layout = model.layout([SampleShape(frames, height, width, text_tokens=len(text))])
    out = model(patchify(latents), torch.tensor([t]), text, text.new_zeros(0, model.config.clip_dim), layout).sample
    return unpatchify(out, frames, height, width)


def relative(found, wanted) -> float:
    """Root mean square of the difference, relative to `wanted`."""
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
