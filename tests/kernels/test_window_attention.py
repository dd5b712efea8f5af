"""Triton window attention equals the dense reference with all gradients: interpreted on a CPU, compiled on a GPU."""

import sys

import pytest
import torch

from phantom_mega.attention import Windows, resolve_backend, window_attention
from phantom_mega.errors import UserError
from phantom_mega.geometry import SampleShape
from phantom_mega.kernels.window_attention import kept_bytes
from phantom_mega.windows import WindowSpec, pack_offsets, plan_windows
from tests.dense_attention import dense_reference
from tests.kernels import probes
from tests.kernels.interpreter import (
    attention_with_gradients,
    interpreter_process,
    same_with_and_without_gradients,
    saved_bytes,
)

NAMES = ("out", "dq", "dk", "dv")


@pytest.fixture(scope="module")
def interpreted():
    """Runs a function in the process that interprets kernels."""
    with interpreter_process() as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def shape(frames, height, width, references=0, text=0, clip=0):
    return SampleShape(frames, height, width, references=references, text_tokens=text, clip_tokens=clip)


def plan_of(shapes, spec, shifted=False, padding=(3, 2)):
    visual, text = (offsets[-1] + pad for offsets, pad in zip(pack_offsets(shapes), padding))
    return plan_windows(shapes, spec, shifted, visual, text), visual


def draw(plan, S, heads=2, head_dim=16, dtype=torch.float32, device="cpu"):
    """q, k, v and the output's gradient, of a pack with 2 text tokens of padding."""
    J = max(plan.gather.max() + 1 + 2, S + 2)
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(J, heads, head_dim, generator=generator).to(dtype).to(device) for _ in range(4)]


def dense(shapes, spec, shifted, S, q, k, v, grad):
    """As `attention_with_gradients`, of the dense reference in float64."""
    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    out = dense_reference(q, k, v, shapes, spec, shifted, S)
    out.backward(grad.double())
    return out.detach(), q.grad, k.grad, v.grad


def errors(found, exact):
    """Largest differences of output and gradients, each against its exact value's largest."""
    scale = [x.abs().max().double() for x in exact]
    return [((x.double() - y.double()).abs().max() / s).item() for x, y, s in zip(found, exact, scale, strict=True)]


DISPLACE, APPEND = WindowSpec(5), WindowSpec(5, reference_injection="append")
TEMPORAL = {
    "several samples, one without references": ([shape(8, 2, 3, 2, 4, 2), shape(6, 1, 3, 0, 3)], DISPLACE, False),
    "shifted, appended": ([shape(9, 2, 2, 1, 3, 1), shape(2, 3, 2, 3, 1)], APPEND, True),
    "four references": ([shape(3, 2, 3, 4, 5, 2)], DISPLACE, False),
    "full attention": ([shape(5, 3, 3, 1, 2), shape(2, 2, 2, 0, 1)], WindowSpec(0), False),
    "one window beside many, all shorter than a block": (
        [shape(2, 1, 2, 1, 2), shape(7, 1, 1, 0, 2)],
        WindowSpec(2, reference_injection="append"),
        False,
    ),
    "a single shared row": ([shape(6, 2, 5, 0, 1)], WindowSpec(2), True),
    "nothing shared": ([shape(4, 3, 6)], WindowSpec(2), False),
    "windows that fill blocks exactly": ([shape(4, 4, 8, 1, 32)], WindowSpec(2), False),
}


@pytest.mark.parametrize("case", TEMPORAL)
def test_in_fp32_it_equals_the_dense_reference(interpreted, case):
    shapes, spec, shifted = TEMPORAL[case]
    plan, S = plan_of(shapes, spec, shifted)
    tensors = draw(plan, S)
    found = interpreted(attention_with_gradients, plan, "triton", *tensors)
    exact = dense(shapes, spec, shifted, S, *tensors)
    for name, mine, other in zip(NAMES, found, exact):
        torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    padding = torch.ones(len(tensors[0]), dtype=torch.bool)
    padding[plan.gather] = False
    assert padding.sum() == 5 and all((x[padding] == 0).all() for x in found)


@pytest.mark.parametrize("shifted", [False, True])
def test_spatial_windows_equal_the_gathered_ones(interpreted, shifted):
    """Rows of such windows do not follow each other."""
    shapes = [shape(3, 4, 6, 1, 3)]
    plan, S = plan_of(shapes, WindowSpec(3, window_height=18, window_width=16), shifted)
    assert (torch.from_numpy(plan.video_rows).diff() < 0).any()
    tensors = draw(plan, S, heads=1)
    found = interpreted(attention_with_gradients, plan, "triton", *tensors)
    for mine, other in zip(found, attention_with_gradients(plan, "sdpa", *(x.double() for x in tensors))):
        torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_no_more_than_gathered_attention_does(interpreted, dtype):
    shapes, spec, shifted = TEMPORAL["several samples, one without references"]
    plan, S = plan_of(shapes, spec, shifted)
    tensors = draw(plan, S, head_dim=32, dtype=dtype)
    exact = dense(shapes, spec, shifted, S, *tensors)
    mine = errors(interpreted(attention_with_gradients, plan, "triton", *tensors), exact)
    other = errors(attention_with_gradients(plan, "sdpa", *tensors), exact)
    assert all(a <= 2 * b for a, b in zip(mine, other)), (mine, other)


def test_scores_far_from_each_other_neither_overflow_nor_vanish(interpreted):
    """Windows whose log-sum-exps differ by hundreds, and masked keys whose score 0 is far above a row's level."""
    shapes, spec, shifted = TEMPORAL["several samples, one without references"]
    plan, S = plan_of(shapes, spec, shifted)
    q, k, v, grad = draw(plan, S)
    # Of few bits, so that scores are exact whatever order a machine adds products in.
    q, k = ((10 + q) * 8).round() / 8, ((k * 20 - 30) * 2).round() / 2
    found = interpreted(attention_with_gradients, plan, "triton", q, k, v, grad)
    # The softmax's exponents are scores in fp32: each is off by its own rounding.
    largest = (torch.einsum("ihd,jhd->hij", q, k) * q.shape[-1] ** -0.5).abs().max().item()
    bound = 4 * torch.finfo(torch.float32).eps * largest
    assert largest > 300 and bound < 1e-3
    assert all(error < bound for error in errors(found, dense(shapes, spec, shifted, S, q, k, v, grad)))


def test_same_bits_twice_with_and_without_gradients_and_for_strided_inputs(interpreted):
    shapes, spec, shifted = TEMPORAL["shifted, appended"]
    plan, S = plan_of(shapes, spec, shifted)
    tensors = draw(plan, S, heads=1)
    outputs, gradients = interpreted(same_with_and_without_gradients, plan, *tensors)
    assert all(torch.equal(outputs[0], x) for x in outputs[1:])
    assert all(torch.equal(a, b) for other in gradients[1:] for a, b in zip(gradients[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_it_keeps_as_many_bytes_as_the_formula_says(interpreted, dtype):
    shapes, spec, shifted = TEMPORAL["one window beside many, all shorter than a block"]
    plan, S = plan_of(shapes, spec, shifted)
    q, k, v, _ = draw(plan, S, dtype=dtype)
    kept = interpreted(saved_bytes, plan, q, k, v) - 4 * q.nbytes
    assert kept == kept_bytes(plan, q.shape[1], q.shape[2], q.element_size()) > 0


def test_offsets_of_rows_pass_the_range_of_int32(interpreted):
    rows, stride = [3, 1_000_000], 3072
    expected = torch.tensor(rows)[:, None] * stride + torch.arange(16)
    assert expected.max() > 2**31 and torch.equal(interpreted(probes.row_offsets, rows, stride), expected)


def test_heads_dtypes_and_devices_that_it_lacks_are_refused():
    plan, S = plan_of([shape(2, 1, 1, 0, 1)], WindowSpec(1))
    windows = Windows.from_plan(plan, [2, 2, 0], 10.0)
    q, *_ = draw(plan, S, head_dim=24)
    with pytest.raises(UserError, match="heads of 16, 32, 64, 128 channels and not of 24"):
        window_attention(q, q, q, windows, "triton")
    q, *_ = draw(plan, S)
    with pytest.raises(UserError, match=r"alike in bf16, fp16 or fp32; they are in torch.float64"):
        window_attention(q.double(), q.double(), q.double(), windows, "triton")
    with pytest.raises(UserError, match=r"torch.float32, torch.bfloat16, torch.float32"):
        window_attention(q, q.bfloat16(), q, windows, "triton")
    with pytest.raises(UserError, match="needs a GPU; the tensors are on cpu"):
        window_attention(q, q, q, windows, "triton")


def test_without_triton_it_says_what_is_missing(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("phantom_mega.kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    q = torch.zeros(4, 1, 16)
    with pytest.raises(UserError, match="attention_backend=triton needs the package triton, which is not installed"):
        window_attention(q, q, q, None, "triton")


def test_the_backend_is_for_a_gpu_in_half_precision_or_fp32():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert resolve_backend("triton", torch.device("cuda"), dtype) == "triton"
    for device, dtype in (("cpu", torch.bfloat16), ("cuda", torch.float64)):
        with pytest.raises(UserError, match="attention_backend=triton needs a GPU"):
            resolve_backend("triton", torch.device(device), dtype)


REAL = {
    "temporal": ([shape(13, 16, 20, 2, 100, 50), shape(5, 12, 14, 0, 77)], WindowSpec(9), False),
    "shifted, appended, four references": ([shape(9, 14, 18, 4, 60, 30)], APPEND, True),
    "full attention": ([shape(9, 16, 20, 1, 256, 10)], WindowSpec(0), False),
    "spatial": ([shape(7, 24, 40, 1, 100, 50)], WindowSpec(5, window_height=3, window_width=3), True),
}  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("case", REAL)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compiled_in_half_precision_it_errs_no_more_than_gathered_attention_does(case, head_dim, dtype):
    shapes, spec, shifted = REAL[case]
    plan, S = plan_of(shapes, spec, shifted)
    tensors = draw(plan, S, 4, head_dim, dtype, "cuda")
    exact = attention_with_gradients(plan, "sdpa", *(x.double() for x in tensors))
    mine = errors(attention_with_gradients(plan, "triton", *tensors), exact)
    other = errors(attention_with_gradients(plan, "sdpa", *tensors), exact)
    assert all(a <= 2 * b for a, b in zip(mine, other)), (mine, other)


@pytest.mark.gpu
@pytest.mark.parametrize("case", TEMPORAL)
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
def test_compiled_in_fp32_it_equals_the_dense_reference(case, head_dim):
    shapes, spec, shifted = TEMPORAL[case]
    plan, S = plan_of(shapes, spec, shifted)
    tensors = draw(plan, S, head_dim=head_dim)
    found = attention_with_gradients(plan, "triton", *(x.cuda() for x in tensors))
    for mine, other in zip(found, dense(shapes, spec, shifted, S, *tensors)):
        torch.testing.assert_close(mine.double().cpu(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_compiled_it_gives_the_same_bits_twice():
    shapes, spec, shifted = REAL["temporal"]
    plan, S = plan_of(shapes, spec, shifted)
    tensors = draw(plan, S, 8, 128, torch.bfloat16, "cuda")
    outputs, gradients = same_with_and_without_gradients(plan, *tensors)
    assert all(torch.equal(outputs[0], x) for x in outputs[1:])
    assert all(torch.equal(a, b) for other in gradients[1:] for a, b in zip(gradients[0], other, strict=True))


@pytest.mark.gpu
def test_compiled_it_reads_rows_beyond_two_to_the_31_elements():
    """The text stream comes after all visual tokens, padding too: 16 heads of 128 put it beyond the range of int32."""
    shapes = [shape(4, 8, 8, 1, 100)]
    small, S = plan_of(shapes, WindowSpec(3))
    far = 2**31 // (16 * 128) + 1 - S
    plan, _ = plan_of(shapes, WindowSpec(3), padding=(3 + far, 2))
    tensors = draw(small, S, 16, 128, torch.bfloat16, "cuda")
    expected = attention_with_gradients(small, "triton", *tensors)
    spread = [torch.cat([x[:S], x.new_zeros(far, *x.shape[1:]), x[S:]]) for x in tensors]
    for found, same in zip(attention_with_gradients(plan, "triton", *spread), expected):
        assert torch.equal(torch.cat([found[:S], found[S + far :]]), same)
