"""An export holds every tensor of the chosen weights, is the same from any layout, and is whole or absent."""

import errno
import json
import os
import pickle
import shutil
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from phantom_mega.checkpoint import integrity
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.checkpoint.rewrite import rewrite
from phantom_mega.checkpoint.sharding import ModelParallelLayout
from phantom_mega.config import RunConfig
from phantom_mega.errors import UserError
from phantom_mega.generation.load import load_pipeline
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.release import export
from phantom_mega.release.export import Options, open_source, write_export
from tests.release.helpers import MODEL, expected, run_config, write_checkpoint

EMA, MAIN = "optimizer.state.ema.", "optimizer.state.param."
SINGLE = "diffusion_pytorch_model.safetensors"


def write(checkpoint, target, finish=lambda folder, index: None, **options):
    options = Options(**{"components": "reference", **options})
    return write_export(open_source(checkpoint, options), target, options, finish)


def names():
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in _plain().state_dict().items()}


def _plain():
    fields = dict(vars(MODEL))
    fields.pop("patch_size")
    return PhantomTransformer3DModel(**fields)


def test_every_tensor_of_the_average_is_there_to_the_bit(pristine, exported):
    reader, found = CheckpointReader(pristine), load_file(exported / "transformer" / SINGLE)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == names()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected(reader, name, EMA)), name


def test_configurations_are_those_of_the_run(exported):
    config = json.loads((exported / "transformer/config.json").read_text())
    fields = dict(vars(MODEL))
    del fields["patch_size"]
    assert {key: value for key, value in config.items() if not key.startswith("_")} == fields
    assert config["_class_name"] == "PhantomTransformer3DModel" and config["_diffusers_version"]
    index = json.loads((exported / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "PhantomPipeline"]
    assert index["transformer"] == ["transformer_phantom", "PhantomTransformer3DModel"]
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    flow = RunConfig().flow
    assert index["flow"] == {
        name: getattr(flow, name) for name in ("shift_min", "shift_max", "shift_min_pixels", "shift_max_pixels")
    }
    assert (index["max_text_tokens"], index["frame_rate"]) == (20, 24.0)
    scheduler = json.loads((exported / "scheduler/scheduler_config.json").read_text())
    chosen = ("num_train_timesteps", "use_dynamic_shifting", "time_shift_type")
    assert [scheduler[name] for name in chosen] == [1000, True, "linear"]


def test_the_projects_own_loader_opens_it_to_the_same_pipeline(pristine, exported):
    (ours, _), (theirs, _) = load_pipeline(pristine), load_pipeline(exported)
    state = theirs.transformer.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.transformer.state_dict().items())
    for name in ("flow", "max_text_tokens", "frame_rate"):
        assert ours.config[name] == theirs.config[name]
    assert all(theirs.scheduler.config[name] == ours.scheduler.config[name] for name in theirs.scheduler.config)


def test_every_layout_gives_the_same_bytes(pristine, exported, tmp_path):
    layout = ModelParallelLayout(MODEL.num_layers, tensor=2, pipeline=3)
    text = (pristine / "config.yaml").read_text()
    cut = rewrite(pristine, tmp_path / "iter_0000003", layout, text)
    assert len(list(cut.glob("*.distcp"))) == 6
    other = write(cut, tmp_path / "out", components=None)
    files = sorted(path.relative_to(exported) for path in exported.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for file in files:
        assert (other / file).read_bytes() == (exported / file).read_bytes(), file


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_values_are_rounded_once_to_the_number_format(pristine, tmp_path, dtype):
    reader, found = (
        CheckpointReader(pristine),
        load_file(write(pristine, tmp_path / "out", dtype=dtype) / "transformer" / SINGLE),
    )
    for name, tensor in found.items():
        assert torch.equal(tensor, expected(reader, name, EMA).to(getattr(torch, dtype))), name


def test_raw_weights_come_from_their_fp32_copies_and_a_bf16_run_gives_bf16(tmp_path):
    config = run_config()
    config.precision.bf16 = True
    checkpoint = write_checkpoint(tmp_path / "iter_0000001", config, bf16=True)
    reader = CheckpointReader(checkpoint)
    for options, kind, dtype in (
        (dict(weights="raw", dtype="float32"), MAIN, torch.float32),
        (dict(weights="raw"), "", torch.bfloat16),  # rounding the copies gives the weights
        (dict(), EMA, torch.bfloat16),
    ):
        found = load_file(write(checkpoint, tmp_path / "out", overwrite=True, **options) / "transformer" / SINGLE)
        for name, tensor in found.items():
            assert tensor.dtype == dtype and torch.equal(tensor, expected(reader, name, kind).to(dtype)), name


def test_without_an_average_the_weights_are_taken_and_asking_for_it_is_refused(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "iter_0000001", ema=False)
    found = load_file(write(checkpoint, tmp_path / "out") / "transformer" / SINGLE)
    reader = CheckpointReader(checkpoint)
    assert all(torch.equal(tensor, expected(reader, name, MAIN)) for name, tensor in found.items())
    with pytest.raises(UserError, match="holds no EMA; use raw weights"):
        write(checkpoint, tmp_path / "new", weights="ema")


@pytest.mark.parametrize("size, limit", [("60KB", 60_000), ("1KB", 1_000), ("100KB", 100_000)])
def test_shards_keep_to_their_size_and_the_index_names_every_tensor(exported, pristine, tmp_path, size, limit):
    folder = write(pristine, tmp_path / "out", max_shard_size=size) / "transformer"
    index = json.loads((folder / f"{SINGLE}.index.json").read_text())
    whole = load_file(exported / "transformer" / SINGLE)
    assert set(index["weight_map"]) == set(whole)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    shards = sorted(folder.glob("*.safetensors"))
    count = len(shards)
    wanted = [f"diffusion_pytorch_model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert [path.name for path in shards] == wanted and count > 1
    for path in shards:
        held = load_file(path)
        assert {name for name, file in index["weight_map"].items() if file == path.name} == set(held)
        assert sum(tensor.nbytes for tensor in held.values()) <= limit or len(held) == 1
        assert all(torch.equal(tensor, whole[name]) for name, tensor in held.items())
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    loaded, info = PhantomTransformer3DModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in loaded.state_dict().items())


def test_files_can_be_read_by_those_who_may_read_the_folder(exported):
    mask = os.umask(0)
    os.umask(mask)
    for path in exported.rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


# --- What cannot be exported ------------------------------------------------------------------------------------------


def zeros(*shape, value=0.0):
    return torch.full(shape, value)


BROKEN = {
    "a tensor is missing": (
        {"blocks.1.visual.linear_qkv.weight": None, f"{EMA}blocks.1.visual.linear_qkv.weight": None},
        r"it has no blocks.1.visual.linear_qkv.weight",
    ),
    "its average is missing": (
        {f"{EMA}blocks.1.visual.linear_qkv.weight": None},
        r"it has no optimizer.state.ema.blocks.1.visual.linear_qkv.weight",
    ),
    "there is one more": ({"lora.weight": zeros(2)}, r"it has 1 more tensors, the first is lora.weight"),
    "another shape": ({f"{EMA}final_proj.bias": zeros(7)}, r"ema.final_proj.bias is torch.float32 \[7\], not floating"),
    "whole numbers": (
        {f"{EMA}final_proj.bias": zeros(192).int()},
        r"ema.final_proj.bias is torch.int32 \[192\], not floating \[192\]",
    ),
    "another depth": (
        {"blocks.3.visual.modulation.offset": zeros(6, 32)},
        r"holds 4 blocks, but its config.yaml says model.num_layers=3",
    ),
    "not finite": (
        {f"{EMA}final_proj.bias": zeros(192, value=float("nan"))},
        r"ema.final_proj.bias: 192 of 192 values are not finite; the training diverged",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_checkpoint_of_something_else_is_refused_by_name(tmp_path, case):
    change, message = BROKEN[case]
    checkpoint = write_checkpoint(tmp_path / "source/iter_0000001", change=change)
    with pytest.raises(UserError, match=message):
        write(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_values_too_large_for_float16_are_refused_with_what_holds_them(tmp_path):
    large = zeros(192, value=1e5)
    checkpoint = write_checkpoint(tmp_path / "iter_0000001", change={f"{EMA}final_proj.bias": large})
    with pytest.raises(UserError, match=r"not finite; 192 of them are too large for torch.float16, use bfloat16"):
        write(checkpoint, tmp_path / "out", dtype="float16")
    assert write(checkpoint, tmp_path / "out", dtype="bfloat16").is_dir()


def test_a_huge_model_of_a_lying_config_is_refused_without_being_built(pristine, tmp_path):
    lying = shutil.copytree(pristine, tmp_path / "iter_0000001")
    text = (lying / "config.yaml").read_text()
    (lying / "config.yaml").write_text(text.replace("num_layers: 3", "num_layers: 1000000000"))
    integrity.write_manifest(lying)
    with pytest.raises(UserError, match=r"model.num_layers=1000000000; it is of another run"):
        open_source(lying, Options())


def test_damaged_and_hostile_checkpoints_are_refused_by_file(pristine, tmp_path):
    damaged = shutil.copytree(pristine, tmp_path / "damaged/iter_0000001")
    data = bytearray((damaged / "__0_0.distcp").read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / "__0_0.distcp").write_bytes(data)
    with pytest.raises(UserError, match=r"damaged: __0_0.distcp has changed since it was written"):
        open_source(damaged, Options())
    (damaged / "__0_0.distcp").write_bytes(data[:100])
    integrity.write_manifest(damaged)
    with pytest.raises(UserError, match=r"__0_0.distcp has 100 bytes"):
        open_source(damaged, Options())

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    (damaged / ".metadata").write_bytes(pickle.dumps(Payload()))
    integrity.write_manifest(damaged)
    with pytest.raises(UserError, match=r"\.metadata is not safe to load: it asks for posix.system"):
        open_source(damaged, Options())
    assert not (tmp_path / "executed").exists()
    fine = shutil.copytree(pristine, tmp_path / "state/iter_0000001")
    (fine / "trainer_state.json").write_text('{"iteration": "soon"}')
    integrity.write_manifest(fine)
    with pytest.raises(UserError, match=r"trainer_state.json is damaged"):
        open_source(fine, Options())


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(dtype="int8"), "dtype='int8' is unknown; use one of float32, bfloat16, float16"),
        (dict(weights="best"), "weights='best' is unknown"),
        (dict(max_shard_size="5 gigs"), "max_shard_size='5 gigs': .*as 5GB or 500MB"),
        (dict(components="some"), "components='some' is unknown; use one of copy, reference"),
    ],
)
def test_a_wrong_option_is_refused_with_the_right_ones(pristine, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        write(pristine, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_folders_without_a_checkpoint_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"holds no checkpoint; name a run's folder or an iter_\.\.\. folder"):
            open_source(path, Options())


# --- Whole or absent --------------------------------------------------------------------------------------------------


def test_targets_in_the_way_are_refused_and_exports_replaced_on_request(pristine, tmp_path):
    target = write(pristine, tmp_path / "out")
    (target / "mine.txt").write_text("of the old one")
    with pytest.raises(UserError, match="is there already; name another folder, or replace it with --overwrite"):
        write(pristine, target)
    assert not (write(pristine, target, overwrite=True) / "mine.txt").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("irreplaceable")
    with pytest.raises(UserError, match="is not an export, so --overwrite does not replace it"):
        write(pristine, tmp_path / "thesis", overwrite=True)
    (tmp_path / "thesis/model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UserError, match="is not an export"):
        write(pristine, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis/chapter.txt").exists()
    run = shutil.copytree(pristine, tmp_path / "run/checkpoints/iter_0000003")
    with pytest.raises(UserError, match="holds the checkpoint; name another folder"):
        write(run, tmp_path / "run", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run", "thesis"]


def test_nothing_is_published_that_the_last_check_refuses(pristine, tmp_path):
    seen = []

    def refuse(folder, index):
        seen.append(sorted(path.name for path in folder.iterdir()))
        raise UserError("it is wrong")

    with pytest.raises(UserError, match="it is wrong"):
        write(pristine, tmp_path / "out", refuse)
    assert list(tmp_path.iterdir()) == []
    assert {"model_index.json", "pipeline.py", "scheduler", "transformer"} <= set(seen[0])


def test_the_old_export_stays_until_the_new_one_is_whole(pristine, tmp_path):
    target = write(pristine, tmp_path / "out")
    before = (target / "transformer" / SINGLE).read_bytes()

    def refuse(folder, index):
        raise UserError("it is wrong")

    with pytest.raises(UserError):
        write(pristine, target, refuse, weights="raw", overwrite=True)
    assert (target / "transformer" / SINGLE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_message_and_leaves_nothing(pristine, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "save_file", full)
    with pytest.raises(UserError, match=r"could not be written: No space left on device; nothing was changed"):
        write(pristine, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
