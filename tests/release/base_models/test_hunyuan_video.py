"""HunyuanVideo's dual-stream blocks here and in diffusers: equal where the mechanisms are, measured where not."""

import json
import re

import pytest
import torch
import torch.nn.functional as F

from phantom_mega.errors import UserError
from phantom_mega.release.base_models.common import Options
from phantom_mega.release.base_models.table import TABLE
from tests.release.base_models.helpers import bring_in, plain_model, relative, velocity
from tests.release.base_models.peers import equal_modulation, hunyuan

FIT = ["model.window_frames=0", "model.text_dim=24", "model.latent_channels=4", "model.clip_dim=8"]
T = 0.3


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 8, 12, generator=generator), torch.randn(5, 24, generator=generator)


@torch.no_grad()
def theirs(model, inputs, guidance=6.0, pooled=None):
    latents, text = inputs
    pooled = torch.zeros(1, 8) if pooled is None else pooled
    scale = torch.tensor([1000 * guidance]) if model.config.guidance_embeds else None
    mask = torch.ones(1, len(text))
    return model(latents[None], torch.tensor([1000 * T]), text[None], mask, pooled, guidance=scale).sample[0]


def ours(model, folder, inputs, *overrides, **more):
    model.save_pretrained(folder / "source")
    figures = bring_in("hunyuan_video", folder / "source", folder / "checkpoint", *FIT, *overrides, **more)[1]
    return velocity(plain_model(folder / "checkpoint"), *inputs, T), figures


@pytest.mark.parametrize("guided", [True, False])
def test_blocks_with_one_modulation_give_the_same_velocity(tmp_path, inputs, guided):
    model = equal_modulation(hunyuan(num_single_layers=0, num_refiner_layers=0, guidance_embeds=guided))
    found, figures = ours(model, tmp_path, inputs, verify=True)
    wanted = theirs(model, inputs)
    print("difference", relative(found, wanted))
    assert relative(found, wanted) < 2e-6
    assert len(figures) == 2 and all("root mean square: 0.00% of it is missed" in figure for figure in figures)


def test_guidance_is_fixed_at_the_scale_that_is_asked_for(tmp_path, inputs):
    model = equal_modulation(hunyuan(num_single_layers=0, num_refiner_layers=0))
    found, _ = ours(model, tmp_path, inputs, options=Options(guidance_scale=2.5))
    assert relative(found, theirs(model, inputs, guidance=2.5)) < 2e-6 < relative(found, theirs(model, inputs))


@pytest.mark.parametrize(
    "what, changes, tolerance",
    [
        ("modulation of each block its own", {"num_single_layers": 0, "num_refiner_layers": 0}, 0.5),
        ("2 single-stream blocks", {"num_refiner_layers": 0}, 5.0),
        ("2 refiner blocks", {"num_single_layers": 0}, 5.0),
    ],
)
def test_what_differs_is_named_and_measured(tmp_path, inputs, what, changes, tolerance):
    model = hunyuan(**changes)
    if "modulation" not in what:
        equal_modulation(model)
    found, figures = ours(model, tmp_path, inputs)
    difference = relative(found, theirs(model, inputs))
    print(f"{what}: velocity differs by {difference:.3f} of its root mean square; {figures}")
    assert 1e-3 < difference < tolerance
    table = (tmp_path / "checkpoint" / TABLE).read_text()
    if "single" in what:
        assert "2 single-stream blocks follow there" in table
    if "refiner" in what:
        assert "there refined by blocks of self-attention" in table


def test_pooled_text_is_what_the_import_leaves_out(tmp_path, inputs):
    model = equal_modulation(hunyuan(num_single_layers=0, num_refiner_layers=0))
    found, _ = ours(model, tmp_path, inputs)
    assert relative(found, theirs(model, inputs, pooled=torch.ones(1, 8))) > 1e-3


def test_shared_modulation_and_offsets_are_the_least_squares_of_the_blocks_own(tmp_path):
    """For f_i(t) the best g(t) + o_i leaves f_i(t) - mean over i - mean over t + mean over both."""
    from phantom_mega.config import FlowConfig
    from phantom_mega.release.base_models.common import typical_timesteps

    model = hunyuan()
    model.save_pretrained(tmp_path / "source")
    _, figures = bring_in("hunyuan_video", tmp_path / "source", tmp_path / "checkpoint", *FIT)
    imported, t = plain_model(tmp_path / "checkpoint"), typical_timesteps(FlowConfig())
    with torch.no_grad():
        pooled, guidance = torch.zeros(len(t), 8), torch.full((len(t),), 6000.0)
        emb = F.silu(model.time_text_embed(1000 * t, pooled, guidance)[0])
        for stream, norm, rows in (("visual", "norm1", 6), ("text", "norm1_context", 2)):
            own = torch.stack([getattr(block, norm).linear(emb) for block in model.transformer_blocks])
            own = own.unflatten(-1, (6, -1))[:, :, :rows]
            left = own - own.mean(0) - own.mean(1, keepdim=True) + own.mean((0, 1))
            base = imported.condition(t)[0 if stream == "visual" else 1][:, :rows]
            offsets = [getattr(block, stream).modulation.offset[:rows] for block in imported.blocks]
            missed = own - base - torch.stack(offsets)[:, None]
            torch.testing.assert_close(missed, left, atol=2e-5, rtol=0)
            if stream == "visual":
                share = float(100 * (left.square().sum() / own.square().sum()).sqrt())
                assert f"visual modulation, root mean square: {share:.2f}% of it is missed" in figures[0]


def test_every_tensor_is_in_the_table_and_an_unknown_one_stops_the_import(tmp_path):
    model = hunyuan()
    model.save_pretrained(tmp_path / "source")
    plan, _ = bring_in("hunyuan_video", tmp_path / "source", tmp_path / "checkpoint", *FIT)
    table = (tmp_path / "checkpoint" / TABLE).read_text()
    source, checkpoint = re.split(r"## Every tensor of the checkpoint", table)
    for name in model.state_dict():
        assert f"| `{name}` |" in source
    for name in plan.shapes:
        assert f"| `{name}` |" in checkpoint
    assert sum(line.count("not used:") for line in source.splitlines()) == len(plan.unused) + len(plan.partly)

    model.transformer_blocks[1].extra = torch.nn.Linear(2, 2)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"2 tensor\(s\) are not known to belong to HunyuanVideo .*blocks.1.extra.bias"):
        bring_in("hunyuan_video", tmp_path / "other", tmp_path / "new", *FIT)
    assert not (tmp_path / "new").exists()


def test_embedders_of_other_features_are_new(tmp_path):
    hunyuan().save_pretrained(tmp_path / "source")
    overrides = ["model.window_frames=0", "model.clip_dim=8", "model.text_dim=30", "model.latent_channels=6"]
    plan, _ = bring_in("hunyuan_video", tmp_path / "source", tmp_path / "checkpoint", *overrides)
    assert plan.rules["text_embedder.weight"].how.endswith("model.text_dim is 30, the source's text has 24")
    assert not plan.rules["visual_embedder.weight"].sources and plan.rules["final_proj.weight"].how.startswith(
        "new (zeros)"
    )
    assert {"proj_out.weight", "x_embedder.proj.bias", "context_embedder.proj_in.weight"} <= plan.unused.keys()


def test_what_is_asked_to_be_fresh_is_as_in_a_fresh_run(tmp_path):
    from phantom_mega.core.init import initial_tensor

    hunyuan().save_pretrained(tmp_path / "source")
    options = Options(fresh=("visual_embedder", "blocks.0.text.mlp"))
    plan, _ = bring_in("hunyuan_video", tmp_path / "source", tmp_path / "checkpoint", *FIT, options=options)
    assert "x_embedder.proj.weight" in plan.unused and "(--fresh)" in plan.unused["x_embedder.proj.weight"]
    state = plain_model(tmp_path / "checkpoint").state_dict()
    assert torch.equal(state["visual_embedder.weight"], initial_tensor("visual_embedder.weight", [32, 16], 1234))
    with pytest.raises(UserError, match=r"--fresh blocks\.9: no tensor's name begins so"):
        bring_in("hunyuan_video", tmp_path / "source", tmp_path / "new", *FIT, options=Options(fresh=("blocks.9",)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_condition_type": "latent_concat"}, "image_condition_type is 'latent_concat'"),
        ({"num_layers": 4}, "has 3 dual-stream blocks, its config.json says 4"),
        ({"num_layers": 10**18}, "has 3 dual-stream blocks"),
        ({"num_attention_heads": "many"}, "num_attention_heads is 'many'; it must be a number above 0"),
        ({"num_attention_heads": 3}, "would give blocks.0.visual.linear_qkv|cannot become|the model has"),
        ({"rope_axes_dim": [4, 6, 8]}, "must be three even numbers that sum to the head dim 16"),
        ({"rope_axes_dim": "x"}, "not numbers"),
        ({"patch_size": 4}, "patch_size is 4"),
        ({"_class_name": "CogVideoXTransformer3DModel"}, "is of 'CogVideoXTransformer3DModel'; needed is Hunyuan"),
    ],
)
def test_a_config_that_cannot_be_is_one_message(tmp_path, change, message):
    hunyuan().save_pretrained(tmp_path / "source")
    path = tmp_path / "source/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as error:
        bring_in("hunyuan_video", tmp_path / "source", tmp_path / "new", *FIT)
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


def test_the_preset_fits_the_released_sizes():
    from phantom_mega.config_io import load_run_config

    model = load_run_config("model/hunyuan_video").model
    released = {"num_layers": 20, "hidden_size": 3072, "num_attention_heads": 24, "ffn_hidden_size": 12288}
    released |= {"rope_axes_dim": [16, 56, 56], "rope_theta": 256.0, "norm_epsilon": 1e-6, "latent_channels": 16}
    assert {name: getattr(model, name) for name in released} == released
