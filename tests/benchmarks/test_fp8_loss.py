"""The FP8 loss benchmark: its rounding is FP8's and Transformer Engine's scales, and it runs by one command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.fp8_emulation import E4M3, E5M2, Delayed, Quantizers, RoundedLinear, blockwise, tensorwise
from benchmarks.fp8_loss import compare

REPOSITORY = Path(__file__).resolve().parents[2]


def draw(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype, bits", [(E4M3, 3), (E5M2, 2)])
def test_rounding_keeps_the_mantissa_of_the_format_and_the_largest_value_exactly(dtype, bits):
    x = draw(64, 64) * 1e-4
    rounded = tensorwise(x, dtype)
    normal = x.abs() > x.abs().max() / 2**7  # in the formats' normal range
    assert ((rounded - x).abs() <= x.abs() * 2.0 ** -(bits + 1) * 1.001)[normal].all()
    assert not torch.equal(rounded, x)
    torch.testing.assert_close(rounded.abs().max(), x.abs().max())


def test_an_outlier_costs_its_own_block_alone():
    x = draw(130, 200)  # no multiples of a block
    clean = blockwise(x, E4M3, 1, 128)
    x[0, 0] = 1e6
    spoilt = blockwise(x, E4M3, 1, 128)
    assert torch.equal(spoilt[1:], clean[1:]) and torch.equal(spoilt[0, 128:], clean[0, 128:])
    assert (spoilt[0, 1:128] == 0).any()  # under the outlier's scale these vanish
    assert (tensorwise(x, E4M3)[1:] == 0).any()


def test_scales_of_blocks_are_powers_of_two():
    x = torch.full((1, 128), 3.0)
    assert torch.equal(blockwise(x, E4M3, 1, 128), x)  # a power of two loses nothing of 3 = 1.5 x 2
    assert torch.equal(blockwise(torch.zeros(2, 128), E4M3, 1, 128), torch.zeros(2, 128))


def test_delayed_scales_follow_the_largest_of_past_maxima():
    quantize = Delayed(history=2)
    assert quantize(torch.tensor([896.0]), E4M3).item() == 448  # the first scale is 1: saturates
    assert quantize(torch.tensor([896.0]), E4M3).item() == 896  # by now it has seen it
    quantize(torch.tensor([1.0]), E4M3)
    quantize(torch.tensor([1.0]), E4M3)
    assert quantize(torch.tensor([896.0]), E4M3).item() == 1.0  # and has forgotten it


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_products_and_gradients_are_those_of_a_linear_up_to_rounding(recipe):
    x, weight, grad = draw(48, 256).requires_grad_(), draw(384, 256).requires_grad_(), draw(48, 384)
    expected = x @ weight.t()
    wanted = torch.autograd.grad(expected, (x, weight), grad)
    y = RoundedLinear.apply(x, weight, Quantizers(recipe, "hybrid"))
    found = torch.autograd.grad(y, (x, weight), grad)
    for ours, theirs, most in [(y, expected, 0.05), (found[0], wanted[0], 0.09), (found[1], wanted[1], 0.09)]:
        error = ((ours - theirs).norm() / theirs.norm()).item()
        assert 0.005 < error < most


def test_a_curve_that_leaves_the_bound_anywhere_fails():
    baseline = [2.0 - 0.005 * step for step in range(100)]
    assert compare(baseline, baseline)["passed"]
    assert not compare([value * 1.011 for value in baseline], baseline)["passed"]
    early = [value * (1.03 if step < 40 else 1.0) for step, value in enumerate(baseline)]
    assert compare(early, baseline)["deviation"] == 0 and not compare(early, baseline)["passed"]
    assert not compare([*baseline[:-1], float("nan")], baseline)["passed"]


def test_one_command_trains_every_recipe_and_tells_that_it_was_emulated(tmp_path):
    options = ["--emulate", "--steps=4", "--lr=3e-3", "--num-layers=1", "--hidden-size=128"]
    done = subprocess.run(
        [sys.executable, "benchmarks/fp8_loss.py", *options, f"--json={tmp_path}/fp8.json"],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "EMULATED by rounding, no FP8 kernel ran" in done.stdout
    result = json.loads((tmp_path / "fp8.json").read_text())
    curves = result["curves"]
    assert list(curves) == ["fp32", "bf16", "delayed", "tensorwise", "blockwise"]
    # Each recipe computes something of its own.
    assert len({curve[-1] for curve in curves.values()}) == len(curves)
    assert all(curve[-1] < curve[0] for curve in curves.values())
