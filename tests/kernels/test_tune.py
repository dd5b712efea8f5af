"""Tuning runs every candidate of every kernel and picks the fastest that fits."""

import pytest
import torch

from phantom_mega.attention import Windows
from phantom_mega.geometry import SampleShape
from phantom_mega.kernels.blocks import KERNELS, Blocks, candidates
from phantom_mega.kernels.tune import Timing, fastest, measure
from phantom_mega.windows import WindowSpec, plan_windows
from tests.kernels.interpreter import interpreter_process


def small_measurement(device="cpu", dtype=torch.float32, head_dim=16):
    shape = SampleShape(3, 2, 2, 1, 3)
    plan = plan_windows([shape], WindowSpec(3), False, shape.visual_tokens, 3)
    windows = Windows.from_plan(plan, [2, 2, 0], 10.0, device)
    return measure(*torch.randn(4, shape.visual_tokens + 3, 1, head_dim, device=device, dtype=dtype), windows)


def test_every_candidate_is_timed():
    with interpreter_process() as pool:
        timings = pool.submit(small_measurement).result()
    assert [timing.kernel for timing in timings] == list(KERNELS)
    assert all(timing.milliseconds > 0 for timing in timings)


def test_the_fastest_that_fits_is_named():
    large, small = Blocks(128, 64, 8, 3), Blocks(64, 64, 4, 3)
    timings = [Timing("attend", large, None), Timing("attend", small, 3.0), Timing("dq", large, 1.0)]
    timings.append(Timing("dq", small, 2.0))
    assert {kernel: timing.blocks for kernel, timing in fastest(timings).items()} == {"attend": small, "dq": large}


@pytest.mark.gpu
def test_on_a_gpu_all_candidates_fit():
    timings = small_measurement("cuda", torch.bfloat16, 128)
    assert len(timings) == sum(len(candidates(kernel, 2)) for kernel in KERNELS)
    assert all(timing.milliseconds for timing in timings)
