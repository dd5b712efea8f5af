"""tools/plot_loss.py: draws what the record holds, and says what is missing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

TOOL = Path(__file__).parents[2] / "tools/plot_loss.py"


def run_of(folder, losses):
    folder.mkdir()
    lines = [json.dumps({"iteration": i + 1, "loss": x, "grad_norm": 0.5}) + "\n" for i, x in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def plot(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)


def test_two_runs_become_one_picture_with_their_means(tmp_path):
    first = run_of(tmp_path / "stage1", np.linspace(2, 1, 120))
    second = run_of(tmp_path / "stage2", [1.0, 0.5])
    done = plot(first, second, "--output", tmp_path / "pictures/loss.png")
    assert done.returncode == 0, done.stderr
    assert "stage1: 120 iterations, first 50: 1.7941, last 50: 1.2059" in done.stdout
    image = np.asarray(Image.open(tmp_path / "pictures/loss.png").convert("RGB"))
    assert image.shape[0] > 600 and len(np.unique(image.reshape(-1, 3), axis=0)) > 50


def test_a_folder_without_a_record_is_one_message(tmp_path):
    done = plot(tmp_path, "--output", tmp_path / "loss.png")
    assert done.returncode == 2 and "holds no training record" in done.stderr and "Traceback" not in done.stderr
