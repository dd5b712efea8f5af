"""An export where only torch, diffusers, transformers and open_clip are installed: from a folder and from a hub."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from phantom_mega.checkpoint import integrity
from phantom_mega.config import ConditioningConfig, ModelConfig, RunConfig
from phantom_mega.config_io import to_yaml
from phantom_mega.generation.load import load_pipeline
from tests.checkpoint.helpers import all_weights, write_checkpoint
from tests.conditioning.helpers import save_tiny_qwen
from tests.release.hub import serve
from tests.release.libraries import library_folder, run_alone
from tests.training.conftest import REPOSITORY, environment

pytestmark = pytest.mark.slow
PROMPT = "A red thing on a wide one."


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """The four libraries with what they require, and nothing else."""
    return library_folder(tmp_path_factory.mktemp("site") / "packages")


def test_the_cards_example_gives_the_frames_of_the_projects_own_pipeline(release, libraries, images, tmp_path):
    """To the bit, where neither this project nor its other dependencies can be imported."""
    folder = release[0]
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    files = [str(images / "a.png"), str(images / "b.jpg")]
    before = f"sys.argv = {['example.py', str(folder), *files, PROMPT]!r}\n"
    after = """
import importlib.util, json, numpy
names = ("phantom_mega", "megatron", "accelerate", "av", "omegaconf", "psutil")
numpy.save("frames.npy", numpy.stack([numpy.asarray(frame) for frame in video]))
print(json.dumps([name for name in names if importlib.util.find_spec(name)]))
"""
    assert json.loads(run_alone(libraries, before + code + after, tmp_path).splitlines()[-1]) == []
    pipe, _ = load_pipeline(folder)
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(0)
    wanted = pipe(PROMPT, files, height=64, width=128, num_frames=9, generator=seed).frames[0]
    found = np.load(tmp_path / "frames.npy")
    assert (tmp_path / "video.gif").is_file() and found.shape == (9, 64, 128, 3) and found.std() > 1
    assert np.array_equal(found, np.stack([np.asarray(frame) for frame in wanted]))


def test_an_export_goes_to_a_hub_and_opens_from_there(libraries, tmp_path):
    """The hub serves `pipeline.py` and one file for each component of its own; no others may be needed."""
    model = ModelConfig(
        num_layers=2, hidden_size=64, num_attention_heads=2, ffn_hidden_size=128, latent_channels=48, text_dim=32
    )
    config = RunConfig(model=model, conditioning=ConditioningConfig(text_encoder=save_tiny_qwen(tmp_path / "qwen")))
    source = write_checkpoint(tmp_path / "iter_0000003", model, shapes=all_weights(model))
    (source / "config.yaml").write_text(to_yaml(config))
    integrity.write_manifest(source)
    with serve() as hub:
        there = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_XET": "1"}
        there |= {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
        words = [source, tmp_path / "mine", "--skip-verify", "--push-to-hub", "me/mine"]
        done = subprocess.run(
            [sys.executable, "tools/export_hf.py", *map(str, words)],
            cwd=REPOSITORY, env=environment() | there, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"uploaded to {hub.url}/me/mine" in done.stdout and hub.visibility == {"me/mine": "private"}
        files = [path for path in (tmp_path / "mine").rglob("*") if path.is_file()]
        uploaded = hub.files["me/mine"]
        assert all(uploaded[path.relative_to(tmp_path / "mine").as_posix()] == path.read_bytes() for path in files)
        code = f"""
import os
os.environ.update({there!r})
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("me/mine", trust_remote_code=True)
size = dict(height=32, width=32, num_frames=1, num_inference_steps=2, output_type="pt")
frames = pipe("a cat", generator=torch.Generator().manual_seed(0), **size).frames
print(tuple(frames.shape), bool(frames.isfinite().all()))
"""
        assert run_alone(libraries, code, tmp_path).splitlines()[-1] == "(1, 1, 3, 32, 32) True"
        code = {name for name in hub.downloads if name.endswith(".py")}
    wanted = {"pipeline.py", "transformer/transformer_phantom.py", "vae/linear_vae.py", "image_encoder/vision_tower.py"}
    assert code == wanted
