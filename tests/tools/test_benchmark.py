"""tools/benchmark.py: its small mode on a CPU runs every part, so that it cannot rot."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from phantom_mega.benchmark.cases import CASES
from phantom_mega.benchmark.workload import SMALL
from phantom_mega.errors import UserError

TOOL = Path(__file__).parents[2] / "tools/benchmark.py"
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")


def benchmark(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)


@on_cpu
def test_the_small_mode_checks_and_times_every_case_that_a_cpu_has(tmp_path):
    files = ("--json", tmp_path / "out/report.json", "--markdown", tmp_path / "out/report.md")
    done = benchmark("--small", "--frames", 17, "--references", 1, 4, "--iters", 2, *files)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["device"].startswith("CPU") and report["versions"]["torch"] and report["date"]
    assert report["command"].startswith("python tools/benchmark.py --small --frames 17")
    steps = {record["case"]: record for record in report["steps"]}
    needs_gpu = {"ours_windows_fp8", "diffusers_cudnn", "diffusers_cudnn_compiled"}
    assert {name for name, record in steps.items() if record["problem"]} == needs_gpu
    timed = [record for name, record in steps.items() if name not in needs_gpu]
    assert {"diffusers_stock", "diffusers_compiled", "diffusers_flash", "seedvr_varlen"} <= {r["case"] for r in timed}
    for record in timed:
        # Checked against the plain model, which is another implementation of each of them.
        assert 0 < record["relative_error"] < 1e-5
        spread = record["step_ms"]
        assert 0 < spread["min"] <= spread["median"] <= spread["max"] and spread["count"] == 2
        assert record["tflops"] > 0 and record["percent_of_matmul"] > 0
        # No figure of a GPU is made of a CPU's time.
        assert record["percent_of_bf16_peak"] is None and record["peak_memory_gib"] is None
        assert record["over_fair_peer"] > 0 and record["over_windows_bf16"] > 0
    assert {r["references"] for r in report["attention"] if r["attention"] == "sdpa" and not r["problem"]} == {1, 4}
    assert [r["precision"] for r in report["linears"]] == ["fp32"] and report["linears"][0]["tflops"] > 0
    assert report["rates"] == {} and all(t["verdict"].startswith("not run") for t in report["targets"])
    assert done.stdout == (tmp_path / "out/report.md").read_text()
    assert "**Measured on a CPU" in done.stdout


@pytest.fixture
def session(monkeypatch):
    """What the tool would run for its arguments, without the seconds that another Python takes to start."""
    tool = runpy.run_path(str(TOOL))

    def build(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
        return tool["build_session"](tool["parse"]())

    return build


@on_cpu
def test_the_full_size_asks_for_a_gpu(session):
    with pytest.raises(UserError, match="there is no GPU; --small"):
        session()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--frames", 50), "the nearest counts are 49 and 53"),
        (("--cases", "ours"), "--cases ours is unknown; use some of ours_full"),
        (("--references", 9), "9 references fill a window"),
        (("--iters", 0), "--iters 0 must be at least 1"),
        (("--warmup", -1), "--warmup -1 at least 0"),
        (("--json", TOOL.parent), "tools is a folder; name a file in it"),
    ],
)
def test_settings_that_cannot_be_are_one_message(session, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        session("--small", *arguments)


def test_what_is_not_said_is_the_default_of_the_size(session):
    settings = session("--small", "--warmup", 0).settings
    assert (settings.frames, settings.iters, settings.warmup) == (SMALL.frames, SMALL.iters, 0)
    assert len(settings.cases) == len(CASES) and settings.compiler == "eager"
