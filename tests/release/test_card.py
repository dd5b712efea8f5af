"""The model card: true of the run, and its example runs as it stands, without this project."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from phantom_mega.config import DataConfig, ResolutionConfig, RunConfig
from phantom_mega.metrics import read_metrics
from phantom_mega.release.card import _public, largest_video
from tests.release.test_bundle import _CLEAN


@pytest.fixture(scope="module")
def card(release):
    return (release[0] / "README.md").read_text()


def test_the_card_says_what_was_trained_and_measured(card, run):
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0" and front["library_name"] == "diffusers"
    assert "| weights | exponential moving average, decay 0.5, float32 |" in card
    assert "| iteration | 4 of 4, 2 packs of up to 448 visual tokens each |" in card
    assert "64p: about 4,096 pixels, 1 or 17 frames, weight 1; 96p" in card
    assert "| started from | random weights |" in card and "python tools/export_hf.py run export" in card
    losses = [one["loss"] for one in read_metrics(run)]
    assert f"mean over the last 4 iterations before this checkpoint): {np.mean(losses):.4f}." in card
    assert "no evaluation was run" in card


@pytest.mark.slow
def test_its_example_makes_a_video_without_this_project(card, release, images, tmp_path):
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    blocked = _CLEAN[: _CLEAN.index("spec = ")]
    (tmp_path / "example.py").write_text(blocked + code)
    words = [str(release[0]), str(images / "a.png"), str(images / "b.jpg"), "A red thing on a wide one."]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-I", "example.py", *words], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    with Image.open(tmp_path / "video.gif") as video:
        assert video.n_frames == 9 and video.size == (128, 64)
        assert np.asarray(video.convert("RGB")).std() > 5


def test_folders_of_the_training_machine_are_not_told():
    assert _public("/home/me/runs/stage1/checkpoints") == "stage1/checkpoints"
    assert _public("Qwen/Qwen2.5-3B") == "Qwen/Qwen2.5-3B" and _public("linear") == "linear"


def test_the_example_takes_the_largest_video_that_was_trained():
    small, long = ResolutionConfig(16384, [1, 5]), ResolutionConfig(9216, [1, 33])
    data = DataConfig(resolutions={"a": small, "b": long}, aspect_ratios=["16:9", "1:1"])
    assert largest_video(RunConfig(data=data)) == (64, 128, 33)
    assert largest_video(RunConfig()) == (480, 832, 81)
