"""A small pipeline of real encoders: the linear VAE, the MiniLM text encoder, the tiny vision tower."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from phantom_mega.conditioning.text import load_text_encoder
from phantom_mega.conditioning.vae import load_vae
from phantom_mega.conditioning.vision import load_vision_tower
from phantom_mega.config import ConditioningConfig
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.hf.pipeline_phantom import PhantomPipeline


@pytest.fixture(scope="session")
def components():
    """Everything that a pipeline registers; the transformer has random weights."""
    source = ConditioningConfig()
    text = load_text_encoder(source, "cpu")
    torch.manual_seed(0)
    return {
        "transformer": PhantomTransformer3DModel(num_layers=2, latent_channels=48, window_frames=5).eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
        "vae": load_vae(source, "cpu", torch.float32).model,
        "text_encoder": text.model,
        "tokenizer": text.tokenizer,
        "image_encoder": load_vision_tower(source, "cpu").model,
    }


@pytest.fixture
def pipe(components):
    """A quiet pipeline."""
    pipe = PhantomPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def subjects():
    """Four reference images of different sizes."""
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (30 + 20 * i, 70 - 10 * i, 3), dtype=np.uint8) for i in range(4)]
