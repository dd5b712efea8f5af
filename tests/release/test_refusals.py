"""What must not be released: checkpoints of something else, values that a number format cannot hold, half encoders."""

import os
import pickle
import shutil
import stat

import pytest
import torch
import transformers
from safetensors.torch import load_file

from phantom_mega.checkpoint import integrity
from phantom_mega.config import ConditioningConfig, ModelConfig, RunConfig
from phantom_mega.config_io import to_yaml
from phantom_mega.errors import UserError
from phantom_mega.release.components import check_widths, write_components
from phantom_mega.release.export import Options, export, new_folder, open_checkpoint
from tests.checkpoint.helpers import all_weights, write_checkpoint
from tests.conditioning.helpers import save_tiny_qwen

MODEL = ModelConfig(num_layers=2, hidden_size=64, num_attention_heads=2, ffn_hidden_size=128, latent_channels=48)


def write(checkpoint, target, **options):
    with new_folder(target, False) as folder:
        export(checkpoint, folder, Options(**options))
    return target


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "iter_0000003", MODEL, shapes=all_weights(MODEL))


@pytest.mark.parametrize(
    "key, shape, message",
    [
        ("final_proj.bias", (7,), r"ema\.final_proj\.bias is torch\.float32 \[7\], .* has floating \[192\] there"),
        ("blocks.1.text.linear_qkv.weight", (64, 64), r"ema\.blocks\.1\.text\.linear_qkv.* floating \[192, 64\] there"),
        ("blocks.1.visual.linear_proj.bias", None, r"lacks 1 tensor\(s\) .* e\.g\. blocks\.1\.visual\.to_out\.bias"),
        ("lora.weight", (2, 2), r"also holds 1 tensor\(s\) .* e\.g\. lora\.weight"),
        ("blocks.2.visual.modulation.offset", (6, 64), r"holds 3 blocks, but .* says model\.num_layers=2; it"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_something_else_is_refused_by_name(tmp_path, key, shape, message):
    shapes = {**all_weights(MODEL), key: shape}
    shapes = {name: size for name, size in shapes.items() if size}
    source = write_checkpoint(tmp_path / "source/iter_0000003", MODEL, shapes=shapes)
    with pytest.raises(UserError, match=message):
        write(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_huge_model_of_a_lying_config_is_refused_without_being_built(checkpoint, tmp_path):
    lying = shutil.copytree(checkpoint, tmp_path / "iter_0000001")
    text = (lying / "config.yaml").read_text()
    (lying / "config.yaml").write_text(text.replace("num_layers: 2", "num_layers: 1000000000"))
    with pytest.raises(UserError, match=r"model\.num_layers=1000000000; it is of another run"):
        write(lying, tmp_path / "out")


def scaled(folder, factor, monkeypatch):
    """A checkpoint whose values are `factor` times as large."""
    randn = torch.randn
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *args, **kwargs: factor * randn(*args, **kwargs))
        return write_checkpoint(folder, MODEL, shapes=all_weights(MODEL))


def test_values_that_the_number_format_cannot_hold_are_refused_with_one_that_can(tmp_path, monkeypatch):
    source = scaled(tmp_path / "source/iter_0000003", 1e5, monkeypatch)
    with pytest.raises(UserError, match=r"values are not finite; torch\.float16 cannot hold them, use bfloat16"):
        write(source, tmp_path / "out", dtype=torch.float16)
    folder = write(source, tmp_path / "out", dtype=torch.bfloat16) / "transformer"
    found = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_weights_of_a_run_that_diverged_are_refused(tmp_path, monkeypatch):
    source = scaled(tmp_path / "source/iter_0000003", float("nan"), monkeypatch)
    with pytest.raises(UserError, match=r"[\d,]+ of [\d,]+ values are not finite; the training diverged"):
        write(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_checkpoint_that_would_run_code_is_refused_unread(checkpoint, tmp_path):
    hostile = shutil.copytree(checkpoint, tmp_path / "iter_0000001")

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    (hostile / ".metadata").write_bytes(pickle.dumps(Payload()))
    integrity.write_manifest(hostile)
    with pytest.raises(UserError, match=r"\.metadata is not safe to load: it asks for posix\.system"):
        open_checkpoint(hostile)
    assert not (tmp_path / "executed").exists()


def test_everybody_who_may_read_the_folder_can_read_its_files(checkpoint, tmp_path):
    mask = os.umask(0)
    os.umask(mask)
    target = write(checkpoint, tmp_path / "out")
    for path in (target, *target.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path


# --- Encoders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def qwen(tmp_path):
    save_tiny_qwen(tmp_path / "qwen")
    return tmp_path / "qwen"


def components(folder, text_encoder):
    (folder / "out").mkdir()
    write_components(ConditioningConfig(text_encoder=str(text_encoder)), folder / "out", "auto")
    return folder / "out/text_encoder"


def test_of_a_text_encoders_folder_just_the_files_that_are_read_are_copied(qwen, tmp_path):
    transformers.Qwen2Model.from_pretrained(qwen).save_pretrained(qwen, max_shard_size="20KB")
    (qwen / "model.safetensors").rename(qwen / "consolidated.safetensors")
    (qwen / "modeling.py").write_text("raise SystemExit")
    copied = components(tmp_path, qwen)
    shards = {path.name for path in qwen.glob("model-*.safetensors")}
    assert len(shards) > 1
    assert {path.name for path in copied.iterdir()} == {"config.json", "model.safetensors.index.json", *shards}
    again, original = (transformers.Qwen2Model.from_pretrained(folder).state_dict() for folder in (copied, qwen))
    assert all(torch.equal(tensor, original[name]) for name, tensor in again.items())


def test_an_index_cannot_name_files_outside_of_its_folder_or_that_are_not_there(qwen, tmp_path):
    for number, name in enumerate(["../../etc/passwd", "model-00002.safetensors"]):
        (qwen / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": "{name}"}}}}')
        (tmp_path / str(number)).mkdir()
        with pytest.raises(UserError, match=f"qwen has no {name}; load the text encoder and save it again"):
            components(tmp_path / str(number), qwen)


def test_a_text_encoder_without_safetensors_is_refused(qwen, tmp_path):
    (qwen / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors; load the text encoder and save it again"):
        components(tmp_path, qwen)


def test_encoders_of_another_width_than_the_models_are_refused(qwen, tmp_path):
    folder = components(tmp_path, qwen).parent
    check_widths(folder, ModelConfig(text_dim=32, latent_channels=48))
    with pytest.raises(UserError, match=r"model\.text_dim is 384, but the encoder gives 32"):
        check_widths(folder, ModelConfig(latent_channels=48))
    with pytest.raises(UserError, match=r"model\.latent_channels is 16, but the encoder gives 48"):
        check_widths(folder, ModelConfig(text_dim=32))


def test_an_export_with_such_an_encoder_is_refused(qwen, tmp_path):
    source = write_checkpoint(tmp_path / "iter_0000003", MODEL, shapes=all_weights(MODEL))
    config = RunConfig(model=MODEL, conditioning=ConditioningConfig(text_encoder=str(qwen)))
    (source / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(UserError, match=r"model\.text_dim is 384, but the encoder gives 32"):
        write(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
