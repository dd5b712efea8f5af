"""tools/import_hf.py on the command line: releases, base models, a run that starts from one, the memory it takes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from phantom_mega.checkpoint import integrity, plain
from phantom_mega.checkpoint.folder import find_checkpoint
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.config import model_arguments
from phantom_mega.config_io import load_run_config
from phantom_mega.hf import PhantomTransformer3DModel
from tests.generation.conftest import run  # noqa: F401 (a fixture)
from tests.media import write_data_set
from tests.release.base_models.peers import NaDiT, NaDiTConfig, hunyuan, randomize
from tests.scripts import run_script
from tests.training.conftest import BASE, train

REPOSITORY = Path(__file__).parents[2]
FIT = ["model.text_dim=24", "model.latent_channels=4"]


def tool(*words):
    return run_script("tools/import_hf.py", *words)


def trained_model(seed=0):
    """The plain model of the runs that `tests/training` starts, all of its values random."""
    model = PhantomTransformer3DModel(**model_arguments(load_run_config(BASE[1], BASE[2:]).model))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(0.02 * torch.randn(param.shape, generator=generator))
    return model


def test_a_run_starts_from_an_imported_release_at_another_layout(tmp_path):
    """With a learning rate of zero its weights stay: what it saves is what was imported, to the bit."""
    trained_model().save_pretrained(tmp_path / "release/transformer")
    model = [word for word in BASE[2:] if word.startswith("model.")]
    layout = ["--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2]
    done = tool(tmp_path / "release", tmp_path / "new", "--config", "tiny_stage1", *model, *layout, "--verify")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote {tmp_path / 'new'}: 4 file(s), verified\n"
    assert "write: 100%" in done.stderr and "verify: 100%" in done.stderr
    assert not integrity.verify(tmp_path / "new")
    start = [f"train.load={tmp_path / 'new'}", "train.finetune=true", "optimizer.lr=0.0"]
    said = train(write_data_set(tmp_path / "data"), tmp_path / "run", *start, "train.exit_interval=2", code=75)
    assert f"loading {tmp_path / 'new'} (weights and EMA only)" in said
    imported, saved = (CheckpointReader(find_checkpoint(tmp_path / name)) for name in ("new", "run"))
    for key in imported.tensors:
        assert torch.equal(imported.read(key), saved.read(key)), key
        assert torch.equal(imported.read(key), saved.read(f"optimizer.state.ema.{key}")), key


def test_exported_and_imported_weights_are_those_of_training_to_the_bit(run, tmp_path):  # noqa: F811
    """A trained checkpoint, its export by the tool, and the checkpoint that the tool makes of that at TP2 x PP2."""
    trained = CheckpointReader(find_checkpoint(run))
    for weights, prefix in (("raw", ""), ("ema", "optimizer.state.ema.")):
        export = [run, tmp_path / weights, "--weights", weights, "--skip-verify"]
        done = run_script("tools/export_hf.py", *export)
        assert done.returncode == 0, done.stderr
        layout = ["--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2]
        done = tool(tmp_path / weights, tmp_path / f"{weights}_back", *layout, "--verify")
        assert done.returncode == 0, done.stderr
        back = CheckpointReader(tmp_path / f"{weights}_back")
        assert set(back.tensors) == set(plain.core_weights(trained))
        for key in back.tensors:
            assert torch.equal(back.read(key), trained.read(prefix + key)), key
    found, wanted = load_run_config(tmp_path / "ema_back/config.yaml"), load_run_config(trained.folder / "config.yaml")
    assert (found.model, found.flow, found.conditioning) == (wanted.model, wanted.flow, wanted.conditioning)


def test_a_run_resumes_nothing_from_a_model_alone(tmp_path):
    trained_model().save_pretrained(tmp_path / "release")
    assert tool(tmp_path / "release", tmp_path / "new").returncode == 0
    said = train(write_data_set(tmp_path / "data"), None, f"train.load={tmp_path / 'new'}", code=2)
    assert "holds the model alone; start from it with train.finetune=true" in said


@pytest.mark.parametrize("name", ["seedvr_3b", "seedvr_7b", "hunyuan_video"])
def test_a_base_model_is_imported_in_one_command(tmp_path, name):
    if name == "hunyuan_video":
        source = tmp_path / "source"
        hunyuan().save_pretrained(source / "transformer")
    else:
        source, kind = tmp_path / "model.pth", name.removeprefix("seedvr_")
        torch.save(randomize(NaDiT(NaDiTConfig(kind=kind, separate=2 if kind == "3b" else 3))).state_dict(), source)
    # Where MLPs come over, the source fixes their width.
    sizes = [*FIT, "model.ffn_hidden_size=96"] if name == "seedvr_3b" else FIT
    done = tool(source, tmp_path / "new", "--from", name, *sizes, "--dtype", "bfloat16", "--verify")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == f"wrote {tmp_path / 'new'}: 1 file(s), verified"
    assert lines[-2] == f"table of all tensors: {tmp_path / 'new/import_table.md'}"
    assert any(line.startswith("  not used: ") for line in lines) and any("differs: " in line for line in lines)
    assert "clip_projector.fc1.weight: new (random, seed 1234): the source has no CLIP features" in done.stdout
    reader = CheckpointReader(tmp_path / "new")
    assert {entry.dtype for entry in reader.tensors.values()} == {torch.bfloat16}
    config = load_run_config(tmp_path / "new/config.yaml")
    assert (config.model.num_layers, config.conditioning.vision_pretrained) == (3, "webli")


def test_a_recipe_that_does_not_fit_the_base_model_says_what_to_set(tmp_path):
    hunyuan().save_pretrained(tmp_path / "source")
    done = tool("--from", "hunyuan_video", tmp_path / "source", tmp_path / "new", "--config", "model/tiny")
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("import_hf: recipe model/tiny describes another model than HunyuanVideo")
    mend = done.stderr.strip().partition("or add ")[2].split()
    again = ["--config", "model/tiny", *mend, "model.latent_channels=4"]
    assert tool("--from", "hunyuan_video", tmp_path / "source", tmp_path / "new", *again).returncode == 0
    wrong = tool("--from", "hunyuan_video", tmp_path / "source", tmp_path / "newer", "model.num_layers=5")
    assert wrong.returncode == 1 and "model.num_layers: 5, not 3" in wrong.stderr


@pytest.mark.parametrize(
    "words, message",
    [
        (["no/such", "new"], "no/such is no release"),
        (["--from", "seedvr_7b", "no/such.pth", "new"], "no/such.pth is no file or folder"),
        (["--from", "hunyuan_video", "no/such", "new"], "no/such is no folder"),
        (["no/such", "new", "--fresh", "x"], "--fresh and --guidance-scale are for base models"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(words, message):
    done = tool(*words)
    assert done.returncode == 1 and done.stdout == "" and not (REPOSITORY / "new").exists()
    assert done.stderr.splitlines()[-1].startswith("import_hf: ") and message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_has_examples():
    done = tool("--help")
    assert done.returncode == 0 and "--from seedvr_7b" in done.stdout and "train.finetune=true" in done.stdout


# Not getrusage: its peak is inherited from the process that starts this one.
MEASURE = """
import re, sys
from pathlib import Path
sys.argv = ["import_hf", *sys.argv[1:]]
sys.path.insert(0, "tools")
import import_hf
def memory(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
import_hf.main()
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_the_largest_tensor_and_not_by_the_model(tmp_path):
    """416 MiB of tensors, the largest of them 24 MiB."""
    sizes = {"num_layers": 4, "hidden_size": 1024, "num_attention_heads": 8, "ffn_hidden_size": 4096}
    model = PhantomTransformer3DModel(**sizes, rope_axes_dim=[32, 48, 48])
    total = sum(param.numel() * 4 for param in model.parameters())
    model.save_pretrained(tmp_path / "release", max_shard_size="100MB")
    largest = 6 * 1024 * 1024 * 4
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "release"), str(tmp_path / "new")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.splitlines()[-1])
    print(f"{peak / 2**20:.0f} MiB for {total / 2**20:.0f} MiB of tensors, the largest {largest / 2**20:.0f} MiB")
    assert total > 14 * largest and largest < peak < 3 * largest + (48 << 20)
