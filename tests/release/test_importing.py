"""A release comes back as a training checkpoint: to the bit, whole or not at all, and only what it claims to be."""

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from phantom_mega.checkpoint import integrity, rewrite, safe
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.checkpoint.sharding import ModelParallelLayout
from phantom_mega.config import ModelConfig, model_arguments
from phantom_mega.config_io import load_run_config
from phantom_mega.errors import UserError
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.hf.naming import hf_names, split_qkv
from phantom_mega.release import importing
from phantom_mega.release.base_models.plan import target_shapes
from tests.checkpoint.helpers import write_one_wrong_bit

MODEL = ModelConfig(
    num_layers=4, hidden_size=64, num_attention_heads=4, ffn_hidden_size=128, latent_channels=4, text_dim=24,
    clip_dim=8, rope_axes_dim=[4, 6, 6], window_frames=5,
)  # fmt: skip


def plain(seed=0, dtype=torch.float32):
    """A plain model, all of its values random."""
    model, generator = PhantomTransformer3DModel(**model_arguments(MODEL)), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator))
    return model.to(dtype)


def released(folder: Path, pipeline: dict | None = None, dtype=torch.float32, shard="60KB") -> Path:
    """A release as `save_pretrained` writes it, in shards, with an index of the pipeline."""
    plain(dtype=dtype).save_pretrained(folder / "transformer", max_shard_size=shard)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PhantomPipeline"} | (pipeline or {})))
    return folder


def bring_in(path, target, *, layout=(1, 1), recipe=None, overrides=(), **more):
    """As tools/import_hf.py does."""
    source, pipeline = importing.open_export(path)
    run = importing.export_config(importing.export_model(source), pipeline, recipe, list(overrides))
    run = importing.with_layout(run, *layout)
    importing.write(importing.export_plan(source, run), source.weights, target, run, **more)
    return CheckpointReader(target)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return released(tmp_path_factory.mktemp("release"))


def state_of(reader) -> dict:
    state = {}
    for key in reader.tensors:
        names, tensor = hf_names(key), reader.read(key)
        parts = [tensor] if len(names) == 1 else split_qkv(tensor, MODEL.num_attention_heads)
        state.update(zip(names, parts, strict=True))
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_equal_to_the_bit(tmp_path, dtype):
    """A checkpoint, its plain model as diffusers saves it, and a checkpoint of that at another layout."""
    one = bring_in(released(tmp_path / "a", dtype=dtype), tmp_path / "one", verify=True)
    model = PhantomTransformer3DModel(**model_arguments(MODEL)).to(dtype)
    model.load_state_dict(state_of(one))
    model.save_pretrained(tmp_path / "b")
    two = bring_in(tmp_path / "b", tmp_path / "two", layout=(2, 2))
    wanted = plain(dtype=dtype).state_dict()
    for reader in (one, two):
        found = state_of(reader)
        assert found.keys() == wanted.keys() and {tensor.dtype for tensor in found.values()} == {dtype}
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_checkpoint_is_whole_safe_and_says_what_it_is(release, tmp_path):
    assert len(list((release / "transformer").glob("*.safetensors"))) > 3
    reader = bring_in(release, tmp_path / "new", layout=(2, 2))
    assert integrity.verify(reader.folder) == [] and [path.name for path in tmp_path.iterdir()] == ["new"]
    safe.check(reader.folder)
    assert json.loads((reader.folder / "trainer_state.json").read_text())["content"] == "model"
    config = load_run_config(reader.folder / "config.yaml")
    assert config.model == MODEL and config.parallel.pipeline_model_parallel_size == 2
    assert {key: entry.shape for key, entry in reader.tensors.items()} == target_shapes(MODEL)
    layout = ModelParallelLayout(4, tensor=2, pipeline=2)
    for key, entry in reader.tensors.items():
        parts = {(part.offsets, part.sizes, f"__{part.rank}_0.distcp") for part in layout.parts(key, entry.shape)}
        assert {(chunk.offsets, chunk.sizes, chunk.file) for chunk in entry.chunks} == parts, key
    # A tensor that looks into a mapped file is not written with all of that file.
    stored = sum(path.stat().st_size for path in reader.folder.glob("*.distcp"))
    assert stored < 1.6 * sum(entry.nbytes for entry in reader.tensors.values()) + 2000 * len(reader.tensors)


def test_dtype_casts_every_tensor(release, tmp_path):
    reader = bring_in(release, tmp_path / "new", dtype=torch.bfloat16, verify=True)
    wanted = plain().state_dict()
    assert all(torch.equal(tensor, wanted[name].bfloat16()) for name, tensor in state_of(reader).items())


def test_settings_of_the_pipeline_are_taken_without_a_recipe(tmp_path):
    pipeline = {
        "conditioning": {"vae": "some/vae", "clip_tokens": 9, "of_a_later_version": 1}, "max_text_tokens": 77,
        "frame_rate": 16.0, "flow": {"shift_max": 7.0},
    }  # fmt: skip
    bring_in(released(tmp_path / "a", pipeline), tmp_path / "new")
    config = load_run_config(tmp_path / "new/config.yaml")
    assert (config.conditioning.vae, config.conditioning.clip_tokens, config.flow.shift_max) == ("some/vae", 9, 7.0)
    assert (config.data.max_text_tokens, config.data.frame_rate) == (77, 16.0)


@pytest.mark.parametrize(
    "pipeline",
    [{"frame_rate": "fast"}, {"conditioning": {"clip_tokens": "x"}}, {"conditioning": {"vae": "${oc.env:HOME}"}}],
)
def test_settings_of_the_pipeline_that_cannot_be_are_one_message(tmp_path, pipeline):
    with pytest.raises(UserError, match=r"model_index\.json: ") as error:
        bring_in(released(tmp_path / "a", pipeline), tmp_path / "new")
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


def test_a_recipe_must_describe_the_model_of_the_release(release, tmp_path):
    with pytest.raises(UserError, match="recipe tiny_stage1 describes another model") as error:
        bring_in(release, tmp_path / "new", recipe="tiny_stage1")
    assert "model.hidden_size: 192, not 64" in str(error.value)
    mend = str(error.value).partition("or add ")[2].split()
    assert "model.rope_axes_dim=[4,6,6]" in mend
    reader = bring_in(release, tmp_path / "new", recipe="tiny_stage1", overrides=mend)
    config = load_run_config(reader.folder / "config.yaml")
    assert config.model == MODEL and config.data.seq_length == 640
    with pytest.raises(UserError, match="changes a recipe; name one with --config"):
        bring_in(release, tmp_path / "newer", overrides=["model.text_dim=25"])


@pytest.mark.parametrize("layout, message", [((3, 1), "is not a multiple of tensor"), ((1, 3), "num_layers=4 is not")])
def test_a_layout_that_the_model_cannot_have_is_refused(release, tmp_path, layout, message):
    with pytest.raises(UserError, match=message):
        bring_in(release, tmp_path / "new", layout=layout)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_layers": 10**12}, "says num_layers 1000000000000, but the weights have 4 blocks"),
        ({"num_layers": "4x"}, "could not be converted to Integer"),
        ({"hidden_size": 128}, r"shape \[64, 16\]; the model has \[128, 16\]|must be three even numbers"),
        ({"ffn_hidden_size": 256}, r"has the shape|would give .* the model has \[256, 64\]"),
        ({"num_attention_heads": 0}, "model.num_attention_heads=0 must be at least 1"),
        ({"text_dim": -1}, "model.text_dim=-1 must be at least 1"),
        ({"clip_dim": 10**40}, "model.clip_dim=10{40} is larger than any model's"),
        ({"attention": "new"}, "has 'attention', which no model of this version has"),
        ({"_class_name": "Other"}, "is of 'Other', not PhantomTransformer3DModel; a base model needs --from"),
        ({"window_shift": "${oc.env:HOME}"}, "write the value out"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_one_message(tmp_path, change, message):
    released(tmp_path / "a")
    path = tmp_path / "a/transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as error:
        bring_in(tmp_path / "a", tmp_path / "new")
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


@pytest.mark.parametrize("extra", [True, False])
def test_a_tensor_too_many_or_too_few_stops_the_import(tmp_path, extra):
    released(tmp_path / "a", shard="1GB")
    path = tmp_path / "a/transformer/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    if extra:
        state["blocks.0.visual.lora"] = torch.ones(2)
    else:
        del state["blocks.2.text.to_k.bias"]
    save_file(state, path)
    message = "not known to belong to a release .*lora" if extra else "has no tensor 'blocks.2.text.to_k.bias'"
    with pytest.raises(UserError, match=message):
        bring_in(tmp_path / "a", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_no_release_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is no release: it has no config\.json"):
        importing.open_export(tmp_path)


def test_verification_sees_a_single_wrong_bit_and_nothing_is_published(release, tmp_path, monkeypatch):
    write_one_wrong_bit(monkeypatch, part=20)
    with pytest.raises(UserError, match=r"verification failed: .*: 1 of [\d,]+ values differ"):
        bring_in(release, tmp_path / "new", verify=True)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_message_and_leaves_nothing(release, tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rewrite._RankFile, "write", full)
    with pytest.raises(UserError, match=r"could not be written: .*No space left on device; nothing was changed"):
        bring_in(release, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_replaced_on_request_alone(release, tmp_path):
    bring_in(release, tmp_path / "new")
    with pytest.raises(UserError, match="is there already; name another folder, or replace it with --overwrite"):
        bring_in(release, tmp_path / "new")
    assert len(list(bring_in(release, tmp_path / "new", layout=(2, 1), overwrite=True).folder.glob("*.distcp"))) == 2
    with pytest.raises(UserError, match="is not a checkpoint, so --overwrite does not replace it"):
        bring_in(release, release, overwrite=True)
