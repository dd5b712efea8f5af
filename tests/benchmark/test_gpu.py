"""The benchmark on a GPU at the small size: every case is right and timed, and a parked model leaves the device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from phantom_mega.benchmark import engines
from phantom_mega.benchmark.workload import SMALL
from phantom_mega.config import ParallelConfig, PrecisionConfig

pytestmark = pytest.mark.gpu
TOOL = Path(__file__).parents[2] / "tools/benchmark.py"


def test_every_case_runs_on_a_gpu(tmp_path):
    command = [sys.executable, TOOL, "--small", "--json", tmp_path / "report.json", "--compile-backend", "inductor"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    without_engine = report["versions"]["transformer-engine"] is None
    for record in report["steps"] + report["attention"] + report["linears"]:
        needs_engine = record["precision"] == "fp8" if "precision" in record else record["attention"] == "te"
        if not (without_engine and needs_engine):
            assert record["problem"] is None, record
            assert record["tflops"] > 0
    assert all(record["peak_memory_gib"] > 0 for record in report["steps"] if record["problem"] is None)
    assert report["rates"]["linear_bf16"] > 0 and report["rates"]["attention_bf16"] > 0


@pytest.mark.usefixtures("single_rank")
def test_a_parked_model_leaves_the_device(weights):
    before = torch.cuda.memory_allocated()
    engine = engines.ours(SMALL.model, ParallelConfig(), PrecisionConfig(bf16=True), weights)
    resident = torch.cuda.memory_allocated() - before
    engine.park()
    assert torch.cuda.memory_allocated() - before < 0.1 * resident
    engine.unpark()
    assert torch.cuda.memory_allocated() - before > 0.9 * resident
