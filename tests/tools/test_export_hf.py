"""tools/export_hf.py on the command line: a real run exported, refusals, kills, full disks, memory, the hub."""

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from phantom_mega.checkpoint.folder import find_checkpoint
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.config import ConditioningConfig, ModelConfig, RunConfig
from phantom_mega.metrics import read_metrics
from phantom_mega.release.export import Options, open_source
from phantom_mega.release.verify import needed_memory
from tests.conditioning.helpers import save_tiny_qwen
from tests.generation.conftest import run  # noqa: F401 (a fixture)
from tests.release.helpers import REPOSITORY, library_folder, run_alone, run_config, write_checkpoint
from tests.release.hub import serve

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
# Runs a command line and prints the peak resident memory of the largest of its processes, in KiB.
MEASURE = (
    "import resource, subprocess, sys\n"
    "code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    "sys.exit(code)\n"
)


def command(*words):
    return [sys.executable, str(REPOSITORY / "tools/export_hf.py"), *map(str, words)]


def tool(*words, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | options.pop("env", {})
    return subprocess.run(command(*words), env=environment, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints/iter_0000003")


def test_a_run_is_exported_and_verified_in_one_command(run, tmp_path):  # noqa: F811
    done = tool(run, tmp_path / "mine", "--license", "apache-2.0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"wrote {tmp_path / 'mine'}: ema weights of iteration 4, float32, ")
    assert "read back without this project, it makes a video, velocities within" in done.stdout
    assert "write: 100%" in done.stderr
    reader = CheckpointReader(find_checkpoint(run))
    found = load_file(tmp_path / "mine" / WEIGHTS)["final_proj.weight"]
    assert torch.equal(found, reader.read("optimizer.state.ema.final_proj.weight"))
    card = (tmp_path / "mine/README.md").read_text()
    losses = [metrics["loss"] for metrics in read_metrics(run)]
    assert f"over the last 4 iterations: {sum(losses) / 4:.4f}" in card and "A forward pass of this folder" in card
    assert "    python tools/export_hf.py run mine --license apache-2.0\n" in card and str(tmp_path) not in card
    again = tool(run, tmp_path / "mine")
    assert again.returncode == 1 and "is there already" in again.stderr
    other = tool(run, tmp_path / "mine", "--weights", "raw", "--dtype", "bfloat16", "--overwrite", "--skip-verify")
    assert other.returncode == 0 and other.stdout.endswith("; not verified (--skip-verify)\n")
    found = load_file(tmp_path / "mine" / WEIGHTS)["final_proj.weight"]
    assert torch.equal(found, reader.read("final_proj.weight").bfloat16())
    card = (tmp_path / "mine/README.md").read_text()
    assert "A forward pass" not in card and "not their average" in card
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--license", "My License"], "--license 'My License' is no identifier"),
        (["--public"], "--public says how --push-to-hub makes a repository"),
        (["--max-shard-size", "huge"], "max_shard_size='huge'"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(checkpoint, tmp_path, words, message):
    done = tool(checkpoint, tmp_path / "mine", *words)
    assert done.returncode == 1 and done.stdout == "" and list(tmp_path.iterdir()) == []
    assert done.stderr.startswith("export_hf: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_too_little_memory_for_the_check_is_said_and_the_export_is_made(checkpoint, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("export_hf", REPOSITORY / "tools/export_hf.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "free_memory", lambda: 1 << 30)
    said = script.export(script.parser().parse_args([str(checkpoint), str(tmp_path / "mine")]))
    assert "not verified: that takes about 2" in said and "GiB of memory and 1.00 GiB are free" in said
    assert "A forward pass" not in (tmp_path / "mine/README.md").read_text()


def test_encoders_left_on_this_machine_are_pointed_out(tmp_path):
    config = run_config(ModelConfig(**{**vars(run_config().model), "text_dim": 32}))
    config.conditioning = ConditioningConfig(text_encoder=save_tiny_qwen(tmp_path / "qwen"))
    source = write_checkpoint(tmp_path / "iter_0000001", config)
    done = tool(source, tmp_path / "mine", "--components", "reference", "--skip-verify")
    assert done.returncode == 0, done.stderr
    assert f"its text_encoder is not in it but at {tmp_path / 'qwen'} on this machine" in done.stdout


# --- Whole or absent, and how much memory -----------------------------------------------------------------------------


def large(folder, layers=4, width=512):
    """A checkpoint of 12 MiB for each layer, all values equal."""
    model = ModelConfig(
        num_layers=layers, hidden_size=width, num_attention_heads=width // 32, ffn_hidden_size=4 * width,
        latent_channels=48,
    )  # fmt: skip
    return write_checkpoint(folder, RunConfig(model=model), distinct=False)


def test_a_killed_export_leaves_no_folder_and_the_next_one_cleans_up(tmp_path):
    source = large(tmp_path / "source/iter_0000001", layers=8)
    words = ["--max-shard-size", "4MB", "--skip-verify", "--skip-hashes"]
    process = subprocess.Popen(command(source, tmp_path / "mine", *words), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(tmp_path.glob(".mine.writing-*/transformer/*.safetensors")):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert any(tmp_path.glob(".mine.writing-*")) and not (tmp_path / "mine").exists()
    done = tool(source, tmp_path / "mine", "--skip-verify", "--skip-hashes")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "source"]


def test_a_file_system_that_takes_no_more_is_one_message_and_leaves_nothing(tmp_path):
    source = large(tmp_path / "source/iter_0000001", layers=2)

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))

    done = tool(source, tmp_path / "mine", "--skip-verify", "--skip-hashes", preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"export_hf: {tmp_path / 'mine'} could not be written: " in done.stderr
    assert done.stderr.endswith("; nothing was changed\n")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def peak(*words):
    words = [sys.executable, "-c", MEASURE, *command(*words)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024


@pytest.mark.slow
def test_memory_is_bounded_by_a_shard_and_not_by_the_model(checkpoint, tmp_path):
    """Two sizes of shards of one model: what is above a process without weights follows the shard."""
    source = large(tmp_path / "iter_0000001", layers=8, width=1024)
    opened = open_source(source, Options(hashes=False))
    largest = max(entry.nbytes for entry in opened.reader.tensors.values())
    words = ["--components", "reference", "--skip-verify", "--skip-hashes"]
    baseline = peak(checkpoint, tmp_path / "small", *words)
    found = {size: peak(source, tmp_path / f"{size}", *words, "--max-shard-size", f"{size}MB") for size in (50, 200)}
    print({"model": opened.nbytes, "largest": largest, "baseline": baseline} | found)
    assert opened.nbytes > 4 * 200e6
    for size, taken in found.items():
        # The shard, the tensor that is read (its bytes and its values), and what a process does not give back.
        assert taken - baseline < size * 1e6 + 2 * largest + (48 << 20), (size, taken - baseline)


@pytest.mark.slow
def test_the_check_takes_no_more_memory_than_is_asked_for_before_it(tmp_path):
    source = large(tmp_path / "iter_0000001", layers=4, width=1024)
    taken = peak(source, tmp_path / "mine", "--skip-hashes")
    needed = needed_memory(open_source(source, Options(hashes=False)), tmp_path / "mine")
    print({"taken": taken, "needed": needed})
    assert taken < needed


# --- The hub ----------------------------------------------------------------------------------------------------------


def test_an_export_goes_to_a_hub_and_opens_from_there_where_only_libraries_are_installed(tmp_path):
    config = run_config(ModelConfig(**{**vars(run_config().model), "text_dim": 32}))
    config.conditioning = ConditioningConfig(text_encoder=save_tiny_qwen(tmp_path / "qwen"))
    source = write_checkpoint(tmp_path / "iter_0000001", config)
    libraries = library_folder(tmp_path / "packages")
    with serve() as hub:
        there = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
        there |= {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
        done = tool(source, tmp_path / "mine", "--skip-verify", "--push-to-hub", "me/mine", env=there)
        assert done.returncode == 0, done.stderr
        assert f"uploaded to {hub.url}/me/mine" in done.stdout and hub.visibility == {"me/mine": "private"}
        files = {path.relative_to(tmp_path / "mine").as_posix(): path for path in (tmp_path / "mine").rglob("*.*")}
        assert all(hub.files["me/mine"][name] == path.read_bytes() for name, path in files.items() if path.is_file())
        code = f"""
import os
os.environ.update({there!r})
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("me/mine", trust_remote_code=True)
out = pipe("a cat", height=32, width=32, num_frames=1, num_inference_steps=2, output_type="pt",
           generator=torch.Generator().manual_seed(0))
print(type(pipe.transformer).__module__, tuple(out.frames.shape), bool(out.frames.isfinite().all()))
"""
        module, rest = run_alone(libraries, code, tmp_path).splitlines()[-1].split(" ", 1)
        assert module == "diffusers_modules.local.transformer_phantom" and rest == "(1, 1, 3, 32, 32) True"
        assert {"pipeline.py", "transformer/transformer_phantom.py", "vae/linear_vae.py"} <= set(hub.downloads)


def test_an_upload_that_is_refused_keeps_the_export_and_says_how_to_go_on(checkpoint, tmp_path):
    with serve() as hub:
        hub.refuse = 403
        there = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test", "NO_PROXY": "127.0.0.1"}
        done = tool(checkpoint, tmp_path / "mine", "--skip-verify", "--push-to-hub", "me/mine", "--public", env=there)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "is whole, but was not uploaded: " in done.stderr
    assert f"try `hf upload me/mine {tmp_path / 'mine'}`" in done.stderr
    assert json.loads((tmp_path / "mine/model_index.json").read_text())["_class_name"][1] == "PhantomPipeline"
