"""The frozen encoders' sizes and FLOPs against their architectures, built without weights."""

import open_clip
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2Model

from phantom_mega.conditioning.vae import GPU_TILE_ABOVE, TILES
from phantom_mega.config import ConditioningConfig, PrecisionConfig
from phantom_mega.config_io import load_run_config
from phantom_mega.geometry import SampleShape
from phantom_mega.planner import encoders
from phantom_mega.planner.encoders import EMBEDDINGS, PARAMETERS, Encoders

BF16 = PrecisionConfig(bf16=True)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def vae():
    """CogVideoX's, with its published configuration."""
    with torch.device("meta"):
        return AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(128, 256, 256, 512), latent_channels=16, layers_per_block=3,
        ).eval()  # fmt: skip


def test_parameters_are_those_of_the_architectures(vae):
    assert PARAMETERS["cogvideox-5b"] == count(vae)
    sizes = dict(hidden_size=2048, num_hidden_layers=36, intermediate_size=11008, num_attention_heads=16)
    with torch.device("meta"):
        qwen = Qwen2Model(Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=151936))
        config = open_clip.get_model_config("ViT-SO400M-14-SigLIP-384")
        siglip = open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"])
    assert PARAMETERS["qwen2.5-3b-instruct"] == count(qwen)
    assert EMBEDDINGS["qwen2.5-3b-instruct"] == qwen.embed_tokens.weight.numel()
    assert PARAMETERS["vit-so400m-14-siglip-384"] == count(siglip)


@pytest.mark.parametrize("frames, references", [(9, 0), (17, 1)])
def test_vae_flops_follow_torchs_counter_within_2_percent(vae, frames, references):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae.encode(torch.zeros(1, 3, frames, 64, 64, device="meta"))
        for _ in range(references):
            vae.encode(torch.zeros(1, 3, 1, 64, 64, device="meta"))
    found = Encoders(0.0, (), True, 0.0, 0.0).sample_flops(SampleShape((frames + 3) // 4, 4, 4, references))
    assert found == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_large_frames_cost_their_overlapping_tiles():
    assert encoders.TILE_ABOVE == GPU_TILE_ABOVE
    overlap = (1 - TILES["tile_overlap_factor_height"]) * (1 - TILES["tile_overlap_factor_width"])
    assert pytest.approx(1 / overlap) == encoders.TILE_OVERLAP
    known = Encoders(0.0, (), True, 0.0, 0.0)
    small, large = (known.sample_flops(SampleShape(3, 45, width)) / width for width in (35, 80))
    assert large / small == pytest.approx(1 / overlap)


def test_weights_lie_in_the_types_of_the_recipe_and_unknown_names_are_told():
    preset = load_run_config("model/phantom_7b").conditioning
    found = Encoders.of(preset, BF16)
    assert found.unknown == ()
    assert found.weights == 2 * (PARAMETERS["cogvideox-5b"] + PARAMETERS["qwen2.5-3b-instruct"] + 428_225_600)
    assert found.text_flops == 2 * (3_085_938_688 - 311_164_928)
    other = Encoders.of(ConditioningConfig(text_encoder="org/unheard-of"), BF16)
    assert other.unknown == ("org/unheard-of",) and other.weights == 0
    cached = ConditioningConfig(**{**vars(preset), "cached_features": "/cache"})
    assert Encoders.of(cached, BF16).sample_flops(SampleShape(3, 4, 4, 1, 9, 729)) == 0
