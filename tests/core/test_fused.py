"""Each fused operation against the plain model's formula: values, gradients, rounding, bytes kept, compilation."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call

import phantom_mega.core  # noqa: F401 (redirects CUDA calls before anything compiles)
from phantom_mega.core import fused
from phantom_mega.hf.transformer_phantom import RMSNorm, modulate
from phantom_mega.rope import apply_rope
from tests.core.memory import live_bytes

T, C, N, D, B, EPS = 24, 32, 2, 16, 3, 1e-6
# Not sorted; no token at all is of sample 1.
SAMPLE = torch.tensor([0, 2, 2, 0] * (T // 4))


def plain_norm(x, shift, scale, sample):
    return modulate(x, shift[sample], scale[sample], EPS)


def plain_residual(x, y, bias, gate, sample):
    return x + gate[sample] * (y + bias)


def plain_head_norm(x, weight, cos=None, sin=None):
    normed = functional_call(RMSNorm(D, EPS), {"weight": weight}, x)
    return normed if cos is None else apply_rope(normed, cos, sin)


def plain_gelu(x, bias):
    return F.gelu(x + bias, approximate="tanh")


OPS = {
    "modulated_layer_norm": (lambda *args: fused.modulated_layer_norm(*args, EPS), plain_norm),
    "gated_residual": (fused.gated_residual, plain_residual),
    "head_norm": (lambda x, w, cos, sin: fused.head_norm(x, w, (cos, sin), EPS), plain_head_norm),
    "head_norm_unrotated": (lambda x, weight: fused.head_norm(x, weight, None, EPS), plain_head_norm),
    "bias_gelu": (fused.bias_gelu, plain_gelu),
}
every_op = pytest.mark.parametrize("name", OPS)


def arguments(name: str, dtype: torch.dtype, tokens: int = T, samples: int = B, device: str = "cpu") -> list:
    """Inputs whose mean is not zero and whose scales differ by sample; integer and angle inputs need no gradient."""
    generator = torch.Generator().manual_seed(len(name))
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64) + 0.5  # noqa: E731
    # As in the model: a view of linear_qkv's output.
    heads = draw(tokens, N, 3, D).to(device, dtype).unbind(2)[1]
    angle = draw(tokens, D // 2)
    rotation = [angle.cos().to(device, torch.float32), angle.sin().to(device, torch.float32)]
    sample = SAMPLE.repeat(tokens // T + 1)[:tokens].clamp(max=samples - 1).to(device)
    values = {
        "modulated_layer_norm": [draw(tokens, C), draw(samples, C), draw(samples, C), sample],
        "gated_residual": [draw(tokens, C), draw(tokens, C), draw(C), draw(samples, C), sample],
        "head_norm": [heads, draw(D), *rotation],
        "head_norm_unrotated": [heads, draw(D)],
        "bias_gelu": [draw(tokens, C), draw(C)],
    }[name]
    fixed = {id(value) for value in (sample, *rotation)}
    return [value if id(value) in fixed else value.to(device, dtype).requires_grad_() for value in values]


def run(function, args: list) -> list[torch.Tensor]:
    """Output and gradients, for a gradient of the output that is the same in every precision."""
    args = [arg.detach().requires_grad_(arg.requires_grad) for arg in args]
    out = function(*args)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out.backward(grad.bfloat16().to(out))
    return [out.detach(), *(arg.grad for arg in args if arg.requires_grad)]


@every_op
def test_gradients_are_those_of_finite_differences(name):
    assert torch.autograd.gradcheck(OPS[name][0], arguments(name, torch.float64))


@every_op
def test_values_and_gradients_equal_the_plain_formula(name):
    args = arguments(name, torch.float32)
    for actual, expected in zip(*(run(function, args) for function in OPS[name]), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@every_op
def test_bf16_is_no_less_exact_than_the_plain_formula(name):
    # The same rounded inputs for all three; many tokens, as sums over tokens are where plain bf16 loses most.
    args = arguments(name, torch.bfloat16, tokens=40 * T)
    wide = [arg.detach().double().requires_grad_() if arg.requires_grad else arg for arg in args]
    truth = run(OPS[name][1], wide)
    errors = []
    for function in OPS[name]:
        results = run(function, args)
        assert all(result.dtype == torch.bfloat16 for result in results)
        errors.append([((a - e).norm() / e.norm()).item() for a, e in zip(results, truth, strict=True)])
    for ours, plain in zip(*errors, strict=True):
        assert ours <= 1.1 * plain, errors


def test_sums_over_tokens_have_the_same_bits_in_every_run():
    args = arguments("modulated_layer_norm", torch.bfloat16, tokens=4096)
    first, second = (run(OPS["modulated_layer_norm"][0], args) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Bytes beside the inputs, that is: what an operation itself adds. The output is not counted.
KEPT = {
    "modulated_layer_norm": 8 * T,
    "gated_residual": 0,
    "head_norm": 4 * T * N,
    "head_norm_unrotated": 4 * T * N,
    "bias_gelu": 0,
}


@every_op
def test_nothing_is_kept_but_inputs_and_statistics(name):
    args = arguments(name, torch.bfloat16)
    out, kept, _ = live_bytes(lambda: OPS[name][0](*args))
    assert kept - out.nbytes == KEPT[name]


COMPILED = [
    ("_modulated_norm", "modulated_layer_norm", lambda a: (*a, EPS)),
    ("_gated", "gated_residual", tuple),
    ("_gated_backward", "gated_residual", tuple),
    ("_head_norm", "head_norm", lambda a: (*a, EPS)),
    ("_bias_gelu", "bias_gelu", tuple),
    ("_bias_gelu_backward", "bias_gelu", lambda a: (a[0], *a)),
]


def compiled_cases(dtype=torch.float32, device="cpu", **sizes):
    """(name, function, arguments) of all parts that are compiled on a GPU."""
    detached = lambda op: [arg.detach() for arg in arguments(op, dtype, device=device, **sizes)]  # noqa: E731
    with torch.no_grad():
        for name, op, make in COMPILED:
            yield name, getattr(fused, name), make(detached(op))
        x, shift, scale, sample = detached("modulated_layer_norm")
        _, mean, rstd = fused._modulated_norm(x, shift, scale, sample, EPS)
        yield "_modulated_again", fused._modulated_again, (x, mean, rstd, shift, scale, sample)
        yield "_modulated_backward", fused._modulated_backward, (x.flip(0), x, mean, rstd, scale, sample)
        x, weight, cos, sin = detached("head_norm")
        _, rstd = fused._head_norm(x, weight, cos, sin, EPS)
        yield "_head_norm_backward", fused._head_norm_backward, (x.flip(0), x, weight, rstd, cos, sin)


def test_packs_of_all_sizes_share_a_few_graphs_without_breaks():
    functions, counters = {}, {}
    for tokens, samples in ((48, 2), (24, 2), (96, 3), (72, 1), (48, 5), (120, 7)):
        for name, function, args in compiled_cases(tokens=tokens, samples=samples):
            counters.setdefault(name, CompileCounter())
            functions.setdefault(name, torch.compile(function.__wrapped__, backend=counters[name], fullgraph=True))
            functions[name](*args)
    # Static, tokens dynamic, samples dynamic, and one sample, which is always a case of its own.
    assert {name: counter.frame_count for name, counter in counters.items() if counter.frame_count > 4} == {}
    assert len(counters) == len(COMPILED) + 3


def test_inputs_with_and_without_gradient_share_a_graph(monkeypatch):
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, options: compile_(function, backend=counter))
    monkeypatch.setattr(fused, "_on_gpu", lambda x: True)
    function = fused.fused_on_gpu(fused._gated.__wrapped__)
    args = arguments("gated_residual", torch.float32)
    with torch.no_grad():
        expected = fused._gated.__wrapped__(*args)
        for inputs in (args, [arg.detach() for arg in args]):
            torch.testing.assert_close(function(*inputs), expected)
    assert counter.frame_count == 1


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_code_equals_what_is_compiled():
    function, args = next((f, args) for name, f, args in compiled_cases() if name == "_head_norm_backward")
    # Building the headers takes longer than this one function. (pytest's monkeypatch would leave the setting hidden.)
    with torch._inductor.config.patch(cpp_cache_precompile_headers=False):
        compiled = torch.compile(function.__wrapped__, fullgraph=True)(*args)
    for actual, expected in zip(compiled, function(*args), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.gpu
@every_op
def test_kernels_on_a_gpu_are_as_exact_as_the_plain_formula(name):
    args = arguments(name, torch.bfloat16, tokens=400 * T, device="cuda")
    wide = [arg.detach().double().requires_grad_() if arg.requires_grad else arg for arg in args]
    truth = run(OPS[name][1], wide)
    errors = [
        [((a - e).norm() / e.norm()).item() for a, e in zip(run(function, args), truth, strict=True)]
        for function in OPS[name]
    ]
    for ours, plain in zip(*errors, strict=True):
        assert ours <= 1.1 * plain, errors


@pytest.mark.gpu
def test_each_part_is_one_kernel_on_a_gpu():
    torch._dynamo.reset()  # graphs for other sizes and precisions that this process has seen
    for name, function, args in compiled_cases(torch.bfloat16, "cuda", tokens=4096):
        function(*args)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            function(*args)
            torch.cuda.synchronize()
        kernels = [event.key for event in profile.key_averages() if event.self_device_time_total > 0]
        # The sum of a head's weight gradient over all tokens is split in two.
        assert len(kernels) <= (3 if name == "_head_norm_backward" else 1), (name, kernels)
