"""Merged attention: equal to the dense reference with all gradients, no key copied, on any library's calls."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from phantom_mega.attention import Windows, resolve_backend, window_attention
from phantom_mega.attention_calls import CuDNN, FlashCPU, FlashVarlen, Segments
from phantom_mega.attention_merged import merge, merged_attention
from phantom_mega.errors import UserError
from phantom_mega.geometry import SampleShape
from phantom_mega.windows import WindowSpec, pack_offsets, plan_windows
from tests.dense_attention import dense_reference
from tests.hf.test_transformer_phantom import SHAPES, features, run, small_model
from tests.strategies import small_packs

PADDING = (3, 2)


def windows_of(shapes, spec, shifted=False, device="cpu"):
    """The windows, and S and L of the padded pack."""
    S, L = (offsets[-1] + pad for offsets, pad in zip(pack_offsets(shapes), PADDING))
    plan = plan_windows(shapes, spec, shifted, S, L)
    return Windows.from_plan(plan, [2, 2, 0], 10.0, device), S, L


def with_gradients(attend, tokens, heads=2, width=8, dtype=torch.float64, seed=0, device="cpu"):
    """Output and gradients of q, k, v for the same random inputs, in float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(tokens, heads, width, dtype=torch.float64, generator=generator)  # noqa: E731
    q, k, v, grad = (draw().to(torch.bfloat16).to(device, dtype) for _ in range(4))
    out = attend(*(x.requires_grad_() for x in (q, k, v)))
    return [x.detach().double() for x in (out, *torch.autograd.grad(out, (q, k, v), grad))]


def backend(name, windows):
    return lambda q, k, v: window_attention(q, k, v, windows, name)


def assert_same(found, expected, tolerance=1e-10):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@settings(max_examples=25)
@given(
    small_packs, st.sampled_from(["displace", "append"]), st.sampled_from([0, 5, 9]), st.booleans(), st.integers(0, 99)
)
def test_output_and_gradients_equal_dense_masked_attention_in_float64(shapes, mode, size, shifted, seed):
    spec = WindowSpec(window_frames=size, reference_injection=mode)
    windows, S, L = windows_of(shapes, spec, shifted)
    found = with_gradients(backend("merged", windows), S + L, seed=seed)
    dense = with_gradients(lambda q, k, v: dense_reference(q, k, v, shapes, spec, shifted, S), S + L, seed=seed)
    assert_same(found, dense)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_spatial_windows_whose_rows_are_scattered_equal_the_sdpa_backend(count, shifted):
    shapes = [SampleShape(7, 4, 5, 2, 3, 2), SampleShape(3, 5, 4, 1, 4, 1)][:count]
    windows, S, L = windows_of(shapes, WindowSpec(5, window_height=40, window_width=40), shifted)
    assert len(windows.lengths) > 4 * count and not (np.diff(windows.plan.video_rows) == 1).all()
    assert_same(*(with_gradients(backend(name, windows), S + L) for name in ("merged", "sdpa")))


@pytest.mark.parametrize("shapes", [
    [SampleShape(12, 2, 2, 2, 3, 2)],
    [SampleShape(12, 2, 2, 0, 3, 0)],
    [SampleShape(12, 2, 2)],
    [SampleShape(12, 2, 2), SampleShape(6, 2, 1, 1, 2, 1), SampleShape(5, 1, 1)],
], ids=["references", "text alone", "nothing shared", "nothing shared by some"])  # fmt: skip
@pytest.mark.parametrize("frames", [0, 5], ids=["one window", "several"])
def test_any_amount_of_shared_rows_equals_the_sdpa_backend(shapes, frames):
    windows, S, L = windows_of(shapes, WindowSpec(frames))
    assert_same(*(with_gradients(backend(name, windows), S + L) for name in ("merged", "sdpa")))


def test_padding_has_no_output_and_no_gradient():
    shapes = [SampleShape(6, 2, 2, 1, 3, 1), SampleShape(3, 1, 2, 0, 2)]
    windows, S, L = windows_of(shapes, WindowSpec(5))
    padding = [*range(S - PADDING[0], S), *range(S + L - PADDING[1], S + L)]
    for x in with_gradients(backend("merged", windows), S + L):
        assert (x[padding] == 0).all()
        assert (np.delete(x.abs().amax((1, 2)).numpy(), padding) > 0).all()


def test_gradients_are_the_derivatives_of_the_output():
    windows, S, L = windows_of([SampleShape(4, 1, 1, 1, 1, 1)], WindowSpec(3))
    torch.manual_seed(0)
    inputs = [torch.randn(S + L, 1, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(backend("merged", windows), inputs)


class Strict(FlashCPU):
    """A library that takes contiguous rows alone and no empty segment, as the GPU's may."""

    def attend_backward(self, *rows_and_lse):
        assert all(x.is_contiguous() for x in rows_and_lse[:5])
        return super().attend_backward(*rows_and_lse)

    def dense(self, q, k, v):
        assert q.numel() and k.numel()
        return super().dense(q, k, v)

    def dense_backward(self, grad, q, k, v, out, lse):
        assert q.numel() and k.numel()
        return super().dense_backward(grad, q, k, v, out, lse)


def test_inputs_and_gradients_may_have_any_strides():
    windows, S, L = windows_of([SampleShape(6, 2, 2, 1, 3, 1)], WindowSpec(3))
    torch.manual_seed(0)
    fused = torch.randn(8, 2, 3, S + L, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(8, 2, S + L, dtype=torch.float64).permute(2, 1, 0)
    q, k, v = fused.permute(2, 3, 1, 0)
    attended = (merged_attention(q, k, v, windows, Strict()), window_attention(q, k, v, windows, "sdpa"))
    assert_same(*(torch.autograd.grad(out, fused, grad) for out in attended))


def relative_errors(found, exact):
    return [float((one - other).norm() / other.norm()) for one, other in zip(found, exact, strict=True)]


def test_in_bf16_it_is_about_as_near_to_float64_as_one_softmax_is():
    windows, S, L = windows_of([SampleShape(12, 6, 8, 3, 40, 4), SampleShape(5, 5, 5, 1, 20, 2)], WindowSpec(6))
    run_as = lambda name, dtype: with_gradients(backend(name, windows), S + L, 2, 64, dtype)  # noqa: E731
    exact = run_as("sdpa", torch.float64)
    merged, usual = (relative_errors(run_as(name, torch.bfloat16), exact) for name in ("merged", "sdpa"))
    assert all(one < 2 * other < 0.02 for one, other in zip(merged, usual, strict=True)), (merged, usual)


def test_in_fp32_it_is_exact_to_fp32():
    windows, S, L = windows_of([SampleShape(12, 3, 4, 3, 10, 4)], WindowSpec(6))
    exact = with_gradients(backend("sdpa", windows), S + L)
    assert max(relative_errors(with_gradients(backend("merged", windows), S + L, dtype=torch.float32), exact)) < 1e-6


def test_scores_far_beyond_the_range_of_exp_are_merged():
    """Log-sum-exps of hundreds, of both signs: a sum of exponentials that are not shifted is inf or 0."""
    windows, S, L = windows_of([SampleShape(6, 2, 2, 1, 3, 1)], WindowSpec(3))
    scaled = lambda name: lambda q, k, v: window_attention(60 * q, 60 * k, v, windows, name)  # noqa: E731
    assert_same(*(with_gradients(scaled(name), S + L) for name in ("merged", "sdpa")), tolerance=1e-8)


def test_a_part_without_keys_leaves_the_other_as_it_is():
    torch.manual_seed(0)
    out, lse = torch.randn(3, 2, 4), torch.randn(3, 2)
    nothing = (torch.zeros_like(out), torch.full_like(lse, -torch.inf))
    for found in (merge(out, lse, *nothing), merge(*nothing, out, lse)):
        torch.testing.assert_close(found, (out, lse))


class Attended(TorchDispatchMode):
    """Notes queries x keys of every attention call, and the storages that its keys lie in."""

    def __init__(self, operator):
        super().__init__()
        self.operator, self.pairs, self.keys = operator, 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is self.operator:
            query, key = args[:2] if len(args) == 3 else args[1:3]
            self.pairs += query.shape[2] * key.shape[2]
            self.keys.append(key)
        return function(*args, **(kwargs or {}))


def test_shared_rows_meet_once_and_no_key_is_copied_into_a_window():
    """The usual way costs sum_w (V_w + H)^2; here H^2 is paid once. Forward and backward."""
    shape = SampleShape(frames=12, height=2, width=3, references=2, text_tokens=4, clip_tokens=3)
    windows, S, L = windows_of([shape], WindowSpec(5))
    own, shared = np.diff(windows.plan.cu_video).tolist(), len(windows.plan.shared_rows)
    assert own == [18, 18, 18, 18] and shared == 22
    aten = torch.ops.aten
    q, k, v = (torch.randn(S + L, 2, 8, requires_grad=True) for _ in range(3))
    needed = sum(x * x for x in own) + 2 * sum(own) * shared + shared * shared
    forward = Attended(aten._scaled_dot_product_flash_attention_for_cpu.default)
    with forward:
        out = window_attention(q, k, v, windows, "merged")
    backward = Attended(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
    with backward:
        out.sum().backward()
    for seen in (forward, backward):
        assert seen.pairs == needed == sum((x + shared) ** 2 for x in own) - 3 * shared * shared
        bytes_of_storage = {key.untyped_storage().data_ptr(): key.untyped_storage().nbytes() for key in seen.keys}
        # The joint keys themselves (a view of them for video rows) and one gather of the shared rows.
        assert sorted(bytes_of_storage.values()) == sorted([(S + L) * 2 * 8 * 4, shared * 2 * 8 * 4])


def segments_of(queries, keys):
    host = [np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32) for lengths in (queries, keys)]
    return Segments(*map(torch.from_numpy, host), *host)


def test_a_call_gives_each_segment_its_softmax_and_log_sum_exp_and_nothing_where_there_are_no_keys():
    segments = segments_of([3, 2, 0, 4], [5, 0, 2, 6])
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, 2, 4, dtype=torch.float64) for n in (9, 13, 13))
    out, lse = Strict().attend(q, k, v, segments)
    for rows, keys in segments.pairs():
        scores = torch.einsum("ind,jnd->nij", q[rows], k[keys]) / 2
        torch.testing.assert_close(lse[:, rows], scores.logsumexp(-1))
        if keys.start < keys.stop:
            torch.testing.assert_close(out[rows], torch.einsum("nij,jnd->ind", scores.softmax(-1), v[keys]))
    assert (out[3:5] == 0).all() and (lse[:, 3:5] == -torch.inf).all()


def test_a_backward_call_uses_the_output_and_log_sum_exp_that_it_is_given():
    segments = segments_of([3, 2, 4], [5, 0, 6])
    torch.manual_seed(0)
    q, k, v, grad, out = (torch.randn(n, 2, 4, dtype=torch.float64) for n in (9, 11, 11, 9, 9))
    lse = torch.randn(2, 9, dtype=torch.float64)
    dq, dk, dv = Strict().attend_backward(grad, q, k, v, out, lse, segments)
    for rows, keys in segments.pairs():
        p = (torch.einsum("ind,jnd->nij", q[rows], k[keys]) / 2 - lse[:, rows, None]).exp()
        ds = p * (torch.einsum("ind,jnd->nij", grad[rows], v[keys]) - (grad * out)[rows].sum(-1).T[..., None]) / 2
        torch.testing.assert_close(dq[rows], torch.einsum("nij,jnd->ind", ds, k[keys]))
        torch.testing.assert_close(dk[keys], torch.einsum("nij,ind->jnd", ds, q[rows]))
        torch.testing.assert_close(dv[keys], torch.einsum("nij,ind->jnd", p, grad[rows]))


@pytest.mark.parametrize("calls", [FlashVarlen(), CuDNN()], ids=["flash", "cudnn"])
def test_the_operators_of_a_gpu_take_these_arguments_and_give_these_shapes(calls):
    """torch's own shape functions run without a GPU: they know the operators' signatures, and no number."""
    shapes = [SampleShape(12, 2, 2, 2, 3, 2), SampleShape(7, 1, 3, 0, 4)]
    windows, S, L = windows_of(shapes, WindowSpec(5))
    there = {x.name: getattr(windows, x.name) for x in dataclasses.fields(windows)}
    on_meta = {name: x.to("meta") for name, x in there.items() if isinstance(x, torch.Tensor)}
    windows = dataclasses.replace(windows, **on_meta)
    q, k, v = (torch.empty(S + L, 2, 64, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3))
    out = merged_attention(q, k, v, windows, calls)
    for x in (out, *torch.autograd.grad(out, (q, k, v), torch.empty_like(out))):
        assert (x.shape, x.dtype) == (q.shape, torch.bfloat16)


def test_the_whole_model_computes_the_same_with_it():
    model, samples = small_model(), features(SHAPES)
    outputs = []
    for model.attention_backend in ("sdpa", "merged"):
        outputs.append(run(model, SHAPES, samples, seq_length=160, text_seq_length=40))
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)


def test_it_runs_on_a_cpu_and_auto_does_not_choose_it():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_backend("merged", cpu, torch.float32) == "merged"
    for name, dtype in itertools.product(("merged", "merged_cudnn"), (torch.bfloat16, torch.float16)):
        assert resolve_backend(name, cuda, dtype) == name
    assert resolve_backend("auto", cpu, torch.float32) == "sdpa"
    assert resolve_backend("auto", cuda, torch.bfloat16) == "varlen"
    for name, device, dtype in (("merged", cuda, torch.float32), ("merged_cudnn", cpu, torch.bfloat16)):
        with pytest.raises(UserError, match=f"attention_backend={name} needs a GPU and bf16"):
            resolve_backend(name, device, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["merged", "merged_cudnn"])
@pytest.mark.parametrize("references, shifted", [(4, False), (1, True), (0, False)])
def test_on_a_gpu_at_the_size_of_a_clip_it_is_as_near_to_fp32_as_flash_attention_is(name, references, shifted):
    """480 x 832 pixels, 49 frames, heads of 128 channels."""
    shapes = [SampleShape(13, 30, 52, references, 256, 257 if references else 0)]
    windows, S, L = windows_of(shapes, WindowSpec(9), shifted, "cuda")
    run_as = lambda name, dtype: with_gradients(  # noqa: E731
        backend(name, windows), S + L, 2, 128, dtype, device="cuda"
    )
    exact = run_as("sdpa", torch.float32)
    found, usual = (relative_errors(run_as(each, torch.bfloat16), exact) for each in (name, "varlen"))
    assert all(one < 2 * other < 0.02 for one, other in zip(found, usual, strict=True)), (found, usual)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["merged", "merged_cudnn"])
def test_on_a_gpu_packs_of_several_samples_some_without_shared_rows_agree_with_fp32(name):
    shapes = [SampleShape(12, 6, 8, 3, 40, 4), SampleShape(6, 7, 5), SampleShape(3, 5, 5, 1, 20, 2)]
    windows, S, L = windows_of(shapes, WindowSpec(6), device="cuda")
    run_as = lambda name, dtype: with_gradients(  # noqa: E731
        backend(name, windows), S + L, 2, 128, dtype, device="cuda"
    )
    exact = run_as("sdpa", torch.float32)
    assert max(relative_errors(run_as(name, torch.bfloat16), exact)) < 0.01
