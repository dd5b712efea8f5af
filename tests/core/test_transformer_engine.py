"""Transformer Engine's classes in this project's hands, where it is installed: also without a GPU."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="transformer-engine-torch")),
    reason="needs Transformer Engine (extra `te`)",
)
REPOSITORY = Path(__file__).resolve().parents[2]


def test_moments_averages_steps_and_delayed_scales_go_through_a_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.core.engine_worker", str(tmp_path)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    # 4 blocks of 4 visual linears, 3 of 4 and one of 1 text linear.
    assert result["linears"] == 29 and result["fused"]
    assert "optimizer    Transformer Engine FusedAdam" in result["kernels"]
    assert "linears      Transformer Engine, FP8 hybrid, delayed scales" in result["kernels"]
    assert result["state"] == ["ema", "exp_avg", "exp_avg_sq"]
    assert result["equal"] and result["steps"] == [7] and result["tensors"] > 4 * 29
    assert result["reset"] == [[0.0, 0.0], True] and result["reset_steps"] == [0]
