"""GPU data by name, and rates from a benchmark's file."""

import json

import pytest

from phantom_mega.errors import UserError
from phantom_mega.planner.gpus import GPUS, Rates, find_gpu, gpu_of_device

H100, A100 = find_gpu("h100"), find_gpu("a100-80")


def test_names_are_found_in_any_case_and_others_refused_with_the_nearest():
    assert find_gpu("H100") is GPUS["h100"] and find_gpu("a100") is A100
    with pytest.raises(UserError, match=r"--gpu h1000 is unknown; .*nearest: h100"):
        find_gpu("h1000")


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_assumed_rates_lie_below_the_peak_and_say_that_nobody_measured_them(gpu):
    assert 0 < gpu.assumed.attention_bf16 < gpu.peak_bf16 and 0 < gpu.assumed.linear_bf16 < gpu.peak_bf16
    assert (gpu.peak_fp8 is None) == (gpu.assumed.linear_fp8 is None)
    assert not gpu.assumed.measured and "arXiv" in gpu.assumed.source


def test_a_benchmarks_rates_take_the_place_of_the_assumed_ones(tmp_path):
    path = tmp_path / "rates.json"
    rates = {"linear_bf16": 520.5, "attention_bf16": 310, "linear_fp8": 700.0}
    path.write_text(json.dumps({"rates": rates, "device": "NVIDIA H100 80GB HBM3", "steps": []}))
    found = Rates.read(path, H100)
    assert {name: getattr(found, name) for name in rates} == rates
    assert found.all_measured(fp8=False) and found.all_measured(fp8=True) and "NVIDIA H100" in found.source


def test_what_a_file_leaves_out_stays_assumed_and_is_named(tmp_path):
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"rates": {"linear_bf16": 520.5}}))
    found = Rates.read(path, H100)
    assert found.attention_bf16 == H100.assumed.attention_bf16
    assert not found.all_measured(fp8=False)
    assert "attention_bf16, linear_fp8 assumed, not measured" in found.source


def test_rates_without_fp8_are_measured_for_a_run_in_bf16_alone(tmp_path):
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"rates": {"linear_bf16": 520.5, "attention_bf16": 310}}))
    found = Rates.read(path, H100)
    assert found.all_measured(fp8=False) and not found.all_measured(fp8=True)


@pytest.mark.parametrize(
    "content, gpu, message",
    [
        ("{", H100, "cannot be read as JSON"),
        ('{"rates": {}}', H100, "has no 'rates', as a benchmark on a CPU or without one of its parts has none"),
        ("[1]", H100, "has no 'rates'"),
        ('{"rates": {"linear_bf61": 5}}', H100, "unknown rate 'linear_bf61' .*did you mean linear_bf16"),
        ('{"rates": {"linear_bf16": 5000}}', H100, r"linear_bf16=5000 TFLOP/s; on h100 it lies in \(0, 989\]"),
        ('{"rates": {"linear_bf16": true}}', H100, "linear_bf16=True"),
        ('{"rates": {"linear_bf16": 5}, "full_size": false}', H100, "was measured at the sizes of --small"),
        ('{"rates": {"linear_fp8": 500}}', A100, "a100-80 has no FP8"),
        ('{"rates": {"linear_bf16": 200}, "device": "NVIDIA H100 PCIe"}', A100, "was measured on NVIDIA H100 PCIe"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused(tmp_path, content, gpu, message):
    path = tmp_path / "rates.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        Rates.read(path, gpu)


def test_a_device_is_known_by_its_name_and_memory():
    assert gpu_of_device("NVIDIA A100-SXM4-40GB", 39.4) is GPUS["a100-40"]
    assert gpu_of_device("NVIDIA H100 80GB HBM3", 79.1) is H100
    assert gpu_of_device("NVIDIA L4", 22.0) is None and gpu_of_device(None) is None
