"""tools/export_hf.py on the command line: export, proof, refusals, memory."""

import subprocess
import sys

import pytest

from phantom_mega.config import ModelConfig
from tests.checkpoint.helpers import all_weights, write_checkpoint
from tests.generation.conftest import run  # noqa: F401 (a fixture)
from tests.release.hub import serve
from tests.scripts import run_script
from tests.training.conftest import REPOSITORY, environment

MODEL = ModelConfig(num_layers=2, hidden_size=64, num_attention_heads=2, ffn_hidden_size=128, latent_channels=48)


def tool(*words, code=0, env=None):
    # The hub's library reads its variables when it is imported.
    done = run_script("tools/export_hf.py", *words, env=environment() | (env or {}), fresh=env is not None)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "iter_0000003", MODEL, shapes=all_weights(MODEL))


@pytest.mark.slow
def test_a_run_is_exported_proved_and_replaced_only_when_told(run, tmp_path):  # noqa: F811
    printed = tool(run, tmp_path / "out", "--dtype", "bfloat16", "--max-shard-size", "200KB")
    assert "ema weights of" in printed and "checked: loads strictly without this project, differs from" in printed
    assert "write: 100%" in printed and "--dtype bfloat16" in (tmp_path / "out/README.md").read_text()
    assert "is there already" in tool(run, tmp_path / "out", code=1)
    tool(run, tmp_path / "out", "--overwrite", "--skip-verify", "--weights", "raw")
    assert "| weights | raw, float32 |" in (tmp_path / "out/README.md").read_text()


def test_mistakes_are_one_line_and_write_nothing(checkpoint, tmp_path):
    printed = tool(tmp_path, tmp_path / "out", code=1)
    assert printed.startswith("export_hf: ") and "holds no checkpoint" in printed and printed.count("\n") == 1
    printed = tool(checkpoint, tmp_path / "out", "--components", "reference", code=1)
    assert "lies on this machine alone" in printed and "Traceback" not in printed
    printed = tool(checkpoint, tmp_path / "out", "--max-shard-size", "big", code=1)
    assert "--max-shard-size big" in printed and "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_memory_is_bounded_by_a_shard_and_not_by_the_model(tmp_path):
    """640 MiB of checkpoint and 160 MiB of weights in shards of 20 MiB."""
    code = (
        "import resource, subprocess, sys\n"
        "code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
        "sys.exit(code)\n"
    )
    peaks = {}
    for name, layers, width in (("small", 1, 64), ("large", 2, 1024)):
        heads, inner = width // 32, 4 * width
        sizes = dict(num_layers=layers, hidden_size=width, num_attention_heads=heads, ffn_hidden_size=inner)
        model = ModelConfig(**sizes, latent_channels=48)
        source = write_checkpoint(tmp_path / name, model, distinct=False, shapes=all_weights(model))
        words = [source, tmp_path / f"{name}_out", "--skip-verify", "--max-shard-size", "20MB"]
        done = subprocess.run(
            [sys.executable, "-c", code, sys.executable, "tools/export_hf.py", *map(str, words)],
            cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        peaks[name] = int(done.stdout)
    total = sum(path.stat().st_size for path in (tmp_path / "large_out/transformer").glob("*.safetensors"))
    extra = peaks["large"] - peaks["small"]
    print(f"weights {total >> 20} MiB, extra memory {extra >> 20} MiB")
    # Two shards, the largest tensor (16 MiB) as it is read, and what the allocator keeps.
    assert total > 140 << 20 and extra < (2 * 20 + 3 * 16 + 32) << 20


def test_an_upload_that_the_hub_refuses_keeps_the_export(checkpoint, tmp_path):
    with serve() as hub:
        hub.refuse = 401  # it knows nobody
        address = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x"}
        words = [checkpoint, tmp_path / "out", "--skip-verify", "--push-to-hub", "me/model"]
        printed = tool(*words, code=1, env=address)
    assert "is exported, but me/model was not uploaded" in printed and "Traceback" not in printed
    assert "/api/repos/create" in hub.writes and (tmp_path / "out/model_index.json").is_file()
