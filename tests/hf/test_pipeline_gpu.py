"""Generation on a GPU: offloading changes where weights wait and nothing else, bf16 and tiling stay near."""

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from phantom_mega.hf.pipeline_phantom import PhantomPipeline
from tests.hf.test_pipeline_phantom import generate

pytestmark = pytest.mark.gpu


def on_gpu(components, dtype=torch.float32, **changed):
    """A pipeline of copies, so that what is moved or cast here stays here."""
    parts = components | changed
    transformer = type(parts["transformer"]).from_config(parts["transformer"].config)
    transformer.load_state_dict(components["transformer"].state_dict())
    pipe = PhantomPipeline(**parts | {"transformer": transformer.to(dtype).eval()})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def back_on_cpu(components):
    """The shared encoders return to the CPU after a test."""
    yield components
    for part in components.values():
        if isinstance(part, torch.nn.Module):
            part.to("cpu")


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_weights_give_the_same_video(back_on_cpu, subjects, offload):
    whole = on_gpu(back_on_cpu).to("cuda")
    expected = generate(whole, subjects[:2], output_type="pt")
    whole.to("cpu")
    parted = on_gpu(back_on_cpu)
    getattr(parted, offload)()
    found = generate(parted, subjects[:2], output_type="pt")
    parted.remove_all_hooks()
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=1e-4, atol=1e-4)


def test_the_gpu_gives_what_the_cpu_gives(back_on_cpu, subjects):
    expected = generate(on_gpu(back_on_cpu), subjects[:2])
    found = generate(on_gpu(back_on_cpu).to("cuda"), subjects[:2])
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_bf16_by_flash_attention_stays_near_float32(back_on_cpu, subjects):
    expected = generate(on_gpu(back_on_cpu), subjects[:2])
    half = on_gpu(back_on_cpu, torch.bfloat16).to("cuda")
    half.transformer.to(torch.bfloat16)
    found = generate(half, subjects[:2]).cpu()
    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_a_tiled_vae_decodes_720p_within_the_blend_of_its_tiles(back_on_cpu):
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(16, 16, 16, 16), latent_channels=4, layers_per_block=1, norm_num_groups=4,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    pipe = on_gpu(back_on_cpu, vae=vae).to("cuda")
    latents = torch.randn(1, 4, 2, 90, 160, device="cuda")
    video = pipe.decode(latents, "pt")
    assert video.shape == (1, 5, 3, 720, 1280) and video.isfinite().all()
