"""SeedVR's NaDiT here and in a peer written anew: equal where the mechanisms are, measured where not."""

import pytest
import torch

from phantom_mega.config_io import load_run_config
from phantom_mega.errors import UserError
from phantom_mega.release import importing
from phantom_mega.release.base_models import BASE_MODELS, seedvr
from phantom_mega.release.base_models.common import Options, Source
from phantom_mega.release.base_models.table import TABLE
from tests.release.base_models.helpers import bring_in, plain_model, relative, released, velocity
from tests.release.base_models.peers import NaDiT, NaDiTConfig, randomize

FIT = ["model.window_frames=0", "model.text_dim=24", "model.latent_channels=4", "model.clip_dim=8"]
FIT += ["parallel.tensor_model_parallel_size=1"]
OF_3B = ["model.ffn_hidden_size=96"]
T = 0.3


def peer(kind, **changes):
    """A random NaDiT of the 7B or the 3B kind; the latter shares weights in its last block."""
    return randomize(NaDiT(NaDiTConfig(kind=kind, separate=2 if kind == "3b" else 3, **changes)))


def compare(model, folder, t=T):
    """(difference of the velocities relative to the peer's, figures, plan)."""
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(4, 3, 8, 12, generator=generator), torch.randn(5, 24, generator=generator)
    torch.save(model.state_dict(), folder / "model.pth")
    kind = model.config.kind
    overrides = FIT + (OF_3B if kind == "3b" else [])
    plan, figures = bring_in(f"seedvr_{kind}", folder / "model.pth", folder / "checkpoint", *overrides)
    # Without conditions, the channels of the low-resolution video and of the mask are zero.
    with torch.no_grad():
        wanted = model(torch.cat([latents, torch.zeros(5, *latents.shape[1:])]), text, 1000 * t)
    return relative(velocity(plain_model(folder / "checkpoint"), latents, text, t), wanted), figures, plan


def still_text(model):
    """Make the modulation of attention the same at all timesteps, so that the last text's can be cancelled."""
    with torch.no_grad():
        model.emb_in.proj_out.weight.unflatten(0, (-1, 2, 3))[:, 0, :2] = 0
    return model


@pytest.mark.parametrize("t", [0.02, 0.3, 0.97])
def test_the_7b_kind_gives_the_same_velocity(tmp_path, t):
    difference, figures, _ = compare(peer("7b", norm="layer", rope="here"), tmp_path, t)
    print("difference", difference)
    assert difference < 2e-6 and figures == []


def test_the_3b_kind_gives_the_same_velocity_but_for_its_mlp(tmp_path):
    difference, figures, plan = compare(still_text(peer("3b", norm="layer", rope="here", mlp=False)), tmp_path)
    print("difference", difference, figures)
    assert difference < 2e-6
    assert plan.rules["blocks.2.text.linear_qkv.weight"].sources == ("blocks.2.attn.proj_qkv.all.weight",)
    # The new MLPs are there, and silent.
    state = plain_model(tmp_path / "checkpoint").state_dict()
    assert state["blocks.0.visual.mlp.fc2.weight"].abs().max() > 0
    assert (
        not state["visual_modulation.weight"][3 * 48 :].any() and not state["blocks.0.text.modulation.offset"][3:].any()
    )


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("7b", {"rope": "here"}),
        ("7b", {"norm": "layer"}),
        ("7b", {}),
        ("3b", {"rope": "here", "mlp": False}),
        ("3b", {"norm": "layer", "mlp": False}),
        ("3b", {"norm": "layer", "rope": "here"}),
        ("3b", {}),
    ],
)
def test_what_differs_is_measured(tmp_path, kind, changes):
    model = peer(kind, **changes)
    if kind == "3b" and changes:
        still_text(model)
    difference, figures, plan = compare(model, tmp_path)
    print(f"{kind} with {changes or 'all as released'}: velocity differs by {difference:.3f} of its rms; {figures}")
    assert 1e-3 < difference < 2
    table = (tmp_path / "checkpoint" / TABLE).read_text()
    assert all(f"- {note}" in table for note in plan.notes) and "root-mean-square there, layer norm here" in table


def test_text_of_the_last_block_of_the_3b_kind_strays_as_the_figure_says(tmp_path):
    from phantom_mega.config import FlowConfig
    from phantom_mega.release.base_models.common import typical_timesteps

    model = peer("3b")
    _, figures, _ = compare(model, tmp_path)
    imported, t = plain_model(tmp_path / "checkpoint"), typical_timesteps(FlowConfig())
    with torch.no_grad():
        rows = imported.condition(t)[1][:, :2] + imported.blocks[-1].text.modulation.offset
        own = torch.stack([model.embed(1000 * float(x)) for x in t])[:, :, 0, :2].transpose(1, 2)
    torch.testing.assert_close(rows, own - own.mean(0), atol=1e-4, rtol=0)
    shift, scale = rows.square().mean((0, 2)).sqrt().tolist()
    assert figures == [f"the last block's text is shifted by {shift:.3g} and scaled by 1 +- {scale:.3g} (rms over t)"]


@pytest.mark.parametrize("kind, tensors, axes", [("3b", 635, [44, 42, 42]), ("7b", 1128, [44, 42, 42])])
def test_the_presets_fit_the_released_sizes(kind, tensors, axes):
    source, base = Source(released(kind), {}), BASE_MODELS[f"seedvr_{kind}"]
    assert len(source.weights.shapes) == tensors
    run = importing.base_config(base, source, None, [])
    assert run.model == load_run_config(f"model/seedvr_{kind}").model and run.model.rope_axes_dim == axes
    plan = base.plan(source, run, Options())
    copied = sum(1 for rule in plan.rules.values() if rule.sources)
    print(kind, copied, len(plan.rules), len(plan.unused))
    # The text encoder is another one; all else of the 7B kind comes over.
    assert not plan.rules["text_embedder.weight"].sources
    assert bool(plan.rules["blocks.0.visual.mlp.linear_fc1.weight"].sources) == (kind == "7b")


@pytest.mark.parametrize("kind", ["3b", "7b"])
def test_rotary_channels_of_an_axis_stay_with_their_axis(kind):
    shape = seedvr.read_shape(released(kind))
    order, pairs = seedvr.channel_order(shape), seedvr.rotated_pairs(shape)
    assert sorted(order.tolist()) == list(range(128)) and pairs == {"3b": 21, "7b": 10}[kind]
    for axis, part in enumerate(order.split(seedvr.axes_dim(shape))):
        own, rest = part[: 2 * pairs], part[2 * pairs :]
        assert {int(channel) // (2 * pairs) for channel in own} == {axis}
        assert all(channel >= 6 * pairs for channel in rest)
    # Neighbouring channels stay a pair, in their order: swapped, they would turn the other way.
    assert torch.equal(order[1::2], order[::2] + 1) and not (order[::2] % 2).any()


def test_the_other_kind_is_named(tmp_path):
    torch.save(peer("7b").state_dict(), tmp_path / "model.pth")
    with pytest.raises(UserError, match="has no vid_out_norm: it is of the other kind; use --from seedvr_7b"):
        bring_in("seedvr_3b", tmp_path / "model.pth", tmp_path / "new", *FIT, *OF_3B)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.pop("blocks.1.attn.norm_k.txt.weight"), "has no tensor 'blocks.1.attn.norm_k.txt.weight'"),
        (lambda state: state.update({"blocks.1.lora.up": torch.ones(2)}), r"1 tensor\(s\) are not known to belong to"),
        (lambda state: state.update({"blocks.7.x": torch.ones(2)}), "has 4 blocks, but they are not numbered 0 to 3"),
        (lambda state: state.update({f"blocks.{10**30}.x": torch.ones(2)}), "has 4 blocks, but they are not numbered"),
        (lambda state: state.update({"emb_in.proj_hid.weight": torch.ones(48, 47)}), r"has .*\[48, 47\]|\[48, 48\]"),
        (lambda state: state.update({"vid_in.proj.weight": torch.ones(48)}), r"has the shape \[48\], not 2 sizes"),
        (lambda state: state.update({"blocks.0.attn.norm_q.vid.weight": torch.ones(0)}), "not 1 sizes above 0"),
        (lambda state: state.update({"txt_in.bias": torch.ones(48).byte()}), "txt_in.bias is uint8; use weights in"),
        (lambda state: state.clear(), "not a state dict"),
    ],
)
def test_a_damaged_or_foreign_state_dict_is_one_message(tmp_path, change, message):
    state = dict(peer("7b").state_dict())
    change(state)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(UserError, match=message) as error:
        bring_in("seedvr_7b", tmp_path / "model.pth", tmp_path / "new", *FIT)
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()
