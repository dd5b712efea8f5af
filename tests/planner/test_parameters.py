"""Parameters against the real modules: every rank of small layouts, and the presets on the meta device."""

import pytest
import torch

from phantom_mega.config import ModelConfig, ParallelConfig, PrecisionConfig, model_arguments
from phantom_mega.config_io import load_run_config
from phantom_mega.core.build import build_model
from phantom_mega.core.mmdit import layer_range
from phantom_mega.core.parallel_config import transformer_config
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.planner.parameters import model_parameters, stage_layers, stage_parameters

MODEL = ModelConfig(
    num_layers=8, hidden_size=64, num_attention_heads=4, ffn_hidden_size=192, latent_channels=4, text_dim=12,
    clip_dim=10, timestep_dim=32, rope_axes_dim=[4, 6, 6],
)  # fmt: skip
LAYOUTS = [(1, 1, None), (2, 1, None), (4, 2, None), (2, 4, 2), (1, 2, 4)]


@pytest.mark.parametrize("tp, pp, vpp", LAYOUTS)
def test_every_stage_holds_as_many_parameters_as_its_real_modules(fake_world, tp, pp, vpp):
    parallel = ParallelConfig(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, virtual_pipeline_model_parallel_size=vpp
    )
    for stage in range(pp):
        with fake_world(parallel, stage):
            chunks = build_model(MODEL, parallel, PrecisionConfig(), seed=0)
        held = sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
        assert stage_parameters(MODEL, parallel, stage) == held
        config = transformer_config(MODEL, parallel, PrecisionConfig())
        chunks = [layer_range(config, stage, chunk if vpp else None) for chunk in range(vpp or 1)]
        assert stage_layers(MODEL, parallel, stage) == [layer for chunk in chunks for layer in chunk]


@pytest.mark.parametrize("preset", ["tiny", "phantom_3b", "phantom_7b"])
def test_a_preset_has_as_many_parameters_as_the_plain_model(preset):
    model = load_run_config(f"model/{preset}").model
    with torch.device("meta"):
        plain = PhantomTransformer3DModel(**model_arguments(model))
    assert model_parameters(model) == sum(parameter.numel() for parameter in plain.parameters())
