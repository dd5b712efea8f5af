"""Ratios, targets, rates and the tables, from given times."""

from types import SimpleNamespace

import pytest
import torch

from phantom_mega.benchmark import report, summary
from phantom_mega.benchmark.attention_alone import AttentionResult
from phantom_mega.benchmark.cases import CASES, Deadline, attempt, check
from phantom_mega.benchmark.linears import LinearResult
from phantom_mega.benchmark.session import Session
from phantom_mega.benchmark.steps import StepResult, StepSettings
from phantom_mega.benchmark.timing import Spread, share
from phantom_mega.benchmark.workload import FULL, SMALL
from phantom_mega.errors import UserError
from phantom_mega.planner.gpus import Rates, find_gpu, peak_tflops

H100 = "NVIDIA H100 80GB HBM3"
SPEEDS = {"peak_bf16": 989.0, "peak_fp8": 1979.0, "matmul": 700.0}


def step(name: str, *times: float, frames: int = 81, flops: float = 1e14, **fields) -> StepResult:
    case = next(case for case in CASES if case.name == name)
    precision = "fp8" if name.endswith("fp8") else "bf16"
    shares = dict(forward_backward=[0.9 * t for t in times], update=[0.1 * t for t in times])
    return StepResult(case, frames, precision, step=list(times), flops=flops, **(shares | fields))


def alone(name: str, *times: float, references: int = 4, frames: int = 81, windows: bool = True, **fields):
    return AttentionResult(name, frames, references, windows, times=list(times), **({"flops": 1e12} | fields))


def verdicts(steps, attention=(), device=H100, full_size=True) -> list[tuple]:
    found = summary.targets(list(steps), list(attention), (81,), device, peak_tflops(device)[0], full_size)
    return [(target.measured, target.verdict) for target in found]


def test_targets_are_met_from_their_value_on_and_missed_below():
    # 40% of 989 TFLOP/s, to the digit.
    steps = [
        step("ours_full", 100.0),
        step("diffusers_flash", 115.0),
        step("ours_windows", 50.0, flops=0.4 * 989e12 * 0.05),
    ]
    steps += [step("ours_windows_fp8", 40.0)]
    attention = [alone("varlen", 13.0), alone("triton", 10.0), alone("merged", 12.0), alone("te", 1.0)]
    found = verdicts(steps, attention)
    assert [v for _, v in found] == ["met"] * 4
    assert [m for m, _ in found] == pytest.approx([1.15, 40.0, 1.25, 1.3])
    slower = [
        step("ours_full", 100.1),
        steps[1],
        step("ours_windows", 50.1, flops=steps[2].flops),
        step("ours_windows_fp8", 40.2),
    ]
    assert [v for _, v in verdicts(slower, [attention[0], alone("triton", 10.1)])] == ["missed"] * 4


def test_what_was_not_timed_is_no_target_missed():
    failed = step("ours_windows_fp8", 10.0, problem="out of memory")
    assert [v for _, v in verdicts([step("ours_full", 1.0), failed])] == ["not run"] * 4


@pytest.mark.parametrize("device, full_size, why", [("NVIDIA H200", True, "one H100"), (H100, False, "the full size")])
def test_targets_are_judged_on_their_gpu_at_their_size_alone(device, full_size, why):
    found = verdicts([step("ours_full", 1.0), step("diffusers_cudnn", 2.0)], device=device, full_size=full_size)
    assert found[0][0] == 2.0 and all(v.startswith("not run") and v.endswith(why) for _, v in found)


def test_the_fair_peer_is_the_fastest_without_a_mask_and_one_with_it_is_not_fair():
    steps = [step("diffusers_flash", 9.0), step("diffusers_cudnn", 8.0), step("diffusers_compiled", 1.0)]
    assert summary.fair_peer([*steps, step("diffusers_flash", 1.0, frames=49)], 81) == 8.0
    assert summary.fair_peer([*steps, step("diffusers_cudnn_compiled", 7.0)], 81) == 7.0
    assert summary.fair_peer(steps, 49) is None


def test_the_fastest_backend_is_that_of_the_longest_video_with_one_reference():
    results = [alone("sdpa", 9.0, references=1), alone("varlen", 5.0, references=1), alone("te", 1.0, references=4)]
    results += [alone("te", 1.0, references=1, frames=49), alone("te", 4.0, references=1, problem="failed: no")]
    results += [alone("torch cudnn", 1.0, references=1, windows=False), alone("sdpa", 2.0, references=1, windows=False)]
    assert summary.fastest_backend(results, windows=True) == "varlen"
    assert summary.fastest_backend(results, windows=False) == "sdpa"
    assert summary.fastest_backend([], windows=True) is None


def test_rates_for_the_planner_give_back_the_speeds_that_made_the_times():
    # Linears at 500 (FP8: 800) and attention at 250 TFLOP/s: 100 and 25 TFLOP in a step of four layers.
    def make(name: str, speed: float) -> StepResult:
        forward_backward = [1e3 * (100 / speed + 0.1)]
        return step(name, 0.0, flops=125e12, backend="merged", forward_backward=forward_backward)

    steps = [make("ours_windows", 500), make("ours_windows_fp8", 800), step("ours_windows", 1.0, frames=49)]
    attention = [alone("merged", 50.0, references=1, flops=12.5e12), alone("merged", 1.0, references=4)]
    rates = summary.planner_rates(steps, attention, {81: 100e12, 49: 1.0})
    assert rates == {"attention_bf16": 250.0, "linear_bf16": 500.0, "linear_fp8": 800.0}
    assert summary.planner_rates(steps, [], {81: 100e12}) == {}


@pytest.mark.parametrize("size", [FULL, SMALL])
def test_the_planner_reads_what_a_run_on_a_gpu_writes_but_not_that_of_small_sizes(tmp_path, size):
    settings = StepSettings(
        size=size, frames=(81,), cases=CASES, iters=1, warmup=0, attention_backend="merged", full_backend="sdpa",
        transformer_impl="auto", compiler="eager", fp8_recipe=None, deadline=Deadline(0),
    )  # fmt: skip
    session = Session(settings, (1,), ("attention", "steps"), tmp_path / "out/report.json", None, "benchmark.py")
    session.device, session.name = torch.device("cuda"), H100
    done = step("ours_windows", 300.0, flops=125e12, backend="merged", forward_backward=[300.0])
    session.steps = SimpleNamespace(results=[done], linear_flops={81: 100e12})
    session.attention = SimpleNamespace(results=[alone("merged", 50.0, references=1, flops=12.5e12)])
    session.save()
    if size == SMALL:
        with pytest.raises(UserError, match="measured at the sizes of --small"):
            Rates.read(tmp_path / "out/report.json", find_gpu("h100"))
        return
    rates = Rates.read(tmp_path / "out/report.json", find_gpu("h100"))
    assert (rates.linear_bf16, rates.attention_bf16) == (500.0, 250.0)
    assert rates.all_measured(fp8=False) and f"({H100}, attention by merged); linear_fp8 assumed" in rates.source


def test_records_and_tables_tell_speed_ratio_and_every_problem_once():
    steps = [
        step("ours_windows", 100.0, 90.0, 120.0, peak_memory=3 << 30, error=0.0123),
        step("diffusers_flash", 150.0),
    ]
    steps += [step("ours_windows_fp8", problem="not run: no FP8 here"), step("ours_full", 5.0, problem="out of memory")]
    records = report.step_records(steps, SPEEDS)
    first = records[0]
    assert first["step_ms"] == {"median": 100.0, "min": 90.0, "max": 120.0, "count": 3}
    assert first["tflops"] == 1000.0 and first["percent_of_bf16_peak"] == pytest.approx(101.11, abs=0.01)
    assert first["over_fair_peer"] == 1.5 and records[1]["over_windows_bf16"] == pytest.approx(2 / 3)
    assert records[3]["step_ms"] is None and records[3]["tflops"] is None
    attention = report.attention_records([alone("varlen", 4.0), alone("triton", 2.0)], SPEEDS)
    assert [r["over_varlen"] for r in attention] == [1.0, 2.0] and attention[1]["kind"] == "shared"
    content = dict(device=H100, date="d", command="c", commit=None, versions={"torch": "2", "driver": None}, rates={})
    content |= dict(matmul={"side": 8192, "tflops": 700.0}, steps=records, attention=attention, targets=[])
    content |= dict(linears=report.linear_records([LinearResult("bf16", 5, 1e12, [2.0])], SPEEDS))
    content |= dict(
        settings=dict(model=dict(num_layers=4, hidden_size=1, num_attention_heads=1), height=1, width=1, text_tokens=1)
    )
    text = report.to_markdown(content)
    assert " 100.0 (90.0 to 120.0) |" in text and "1.2e-02" in text and "3.0" in text
    assert text.count("no FP8 here") == 1 and "- ours, windows, FP8: not run: no FP8 here" in text
    assert "out of memory" in text and "CPU" not in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({len(line) for line in block.splitlines()}) == 1
    assert "**Measured on a CPU" in report.to_markdown(content | {"device": "CPU (x86_64, 1 threads)"})


def test_peaks_are_those_of_the_board():
    assert peak_tflops(H100) == (989.0, 1979.0) and peak_tflops("NVIDIA H100 PCIe") == (756.0, 1513.0)
    assert peak_tflops("NVIDIA A100-SXM4-80GB") == (312.0, None) and peak_tflops("CPU (x86_64)") == (None, None)


def test_iterations_are_spread_over_rounds_and_none_is_lost():
    assert [share(n, 3) for n in (1, 2, 8, 9)] == [[1], [1, 1], [3, 3, 2], [3, 3, 3]]
    assert Spread.of([3.0, 1.0, 9.0]) == Spread(3.0, 1.0, 9.0, 3)


def test_a_failure_becomes_a_line_and_not_an_end():
    def fail(error):
        raise error

    assert attempt(lambda a: a + 1, 2) == (3, None)
    assert attempt(fail, UserError("needs a GPU"))[1] == "not run: needs a GPU"
    assert attempt(fail, KeyError("x\ny"))[1].startswith("failed: KeyError: ")
    assert not Deadline(0).passed and Deadline(1e-9).passed


@pytest.mark.parametrize("value", [1.2, float("nan")])
def test_an_output_beyond_the_tolerance_or_not_a_number_is_refused(value):
    import torch

    assert check("same", torch.ones(3), torch.ones(3), 0.1) == 0.0
    with pytest.raises(RuntimeError, match="differs from the reference"):
        check("other", torch.tensor([value]), torch.ones(1), 0.1)
