"""Selective recompute and activation offload: the same numbers to the bit, less memory, copies back one block ahead."""

import contextlib
import functools

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from phantom_mega.config import ModelConfig, ParallelConfig, PrecisionConfig
from phantom_mega.core import offload
from phantom_mega.core.build import build_model, wrap_ddp
from phantom_mega.core.convert import load_hf
from phantom_mega.core.fused import modulated_layer_norm
from phantom_mega.core.layers import BlockInputs
from phantom_mega.core.recompute import dropped
from phantom_mega.geometry import SampleShape
from phantom_mega.hf.transformer_phantom import joint_attention
from phantom_mega.packs import PackInputs, PackLayout
from phantom_mega.parallel_layout import RECOMPUTE_MODULES
from phantom_mega.windows import WindowSpec
from tests.core.memory import live_bytes
from tests.parallel import reference

pytestmark = pytest.mark.usefixtures("single_rank")

FULL = dict(recompute_granularity="full")
SELECTIVE = dict(recompute_granularity="selective")


def loaded(**fields):
    chunks = build_model(reference.MODEL, ParallelConfig(**fields), PrecisionConfig(), seed=3)
    load_hf(chunks, reference.plain_model().state_dict())
    return chunks[0]


def gradients(chunk) -> list[torch.Tensor]:
    """Of two microbatches whose backward passes come after both forward passes, as in a pipeline."""
    outputs = [chunk(inputs) for inputs, _, _ in reference.microbatches()[:2]]
    for out in outputs:
        out.square().sum().backward()
    return [*(out.detach() for out in outputs), *(param.grad for param in chunk.parameters())]


@pytest.fixture(scope="module")
def expected(single_rank):
    return gradients(loaded())


@pytest.mark.parametrize(
    "fields",
    [
        SELECTIVE,
        *(dict(SELECTIVE, recompute_modules=[name]) for name in RECOMPUTE_MODULES),
        dict(SELECTIVE, recompute_modules=["layernorm", "mlp", "core_attn"]),
        dict(cpu_offloading_num_layers=1),
        dict(cpu_offloading_num_layers=4),
        dict(FULL, cpu_offloading_num_layers=3),
        dict(FULL, recompute_num_layers=2, cpu_offloading_num_layers=3),
        dict(SELECTIVE, recompute_modules=["layernorm", "mlp_act", "core_attn"], cpu_offloading_num_layers=3),
    ],
    ids=lambda fields: "-".join(str(value) for value in fields.values()),
)
def test_outputs_and_gradients_are_the_same_to_the_bit(fields, expected):
    for actual, wanted in zip(gradients(loaded(**fields)), expected, strict=True):
        assert torch.equal(actual, wanted)


# One block, one window over all tokens: bytes are those of `core.fused`'s table, and attention's.
MODEL = ModelConfig(num_layers=2, window_frames=0)
C, N, F, S, L = MODEL.hidden_size, MODEL.num_attention_heads, MODEL.ffn_hidden_size, 512, 64
T = S + L


def kept_by_a_block(**fields) -> tuple[int, int]:
    """Bytes on the device and in host memory that a bf16 block keeps, both streams; without its input and output."""
    (chunk,) = build_model(MODEL, ParallelConfig(**fields), PrecisionConfig(bf16=True), seed=3)
    layout = PackLayout.build([SampleShape(8, 8, 8, 0, L, 0)], WindowSpec(0), MODEL.rope_axes_dim, 1e4, S, L)
    attend = functools.partial(joint_attention, backend="sdpa")
    inputs = BlockInputs(layout.visual_sample, layout.text_sample, layout.windows, attend)
    draw = lambda *size: torch.randn(*size, dtype=torch.bfloat16, requires_grad=True)  # noqa: E731
    args = (draw(S, C), draw(L, C), draw(1, 6, C), draw(1, 6, C), inputs)
    del chunk.blocks._modules["1"]
    (visual, text), kept, host = live_bytes(lambda: chunk.blocks(*args))
    return kept - visual.nbytes - text.nbytes, host


def rows_and_statistics() -> int:
    """Small change: 6 modulation rows of both streams, mean and 1/std of 2 norms, 1/rms of q and k heads."""
    return 2 * 6 * C * 2 + T * (2 * 8 + 2 * 4 * N)


# q, k, v and the output that SDPA keeps, and its log-sum-exp.
ATTENTION = T * (2 * 4 * C + 4 * N)
# linear_qkv's input and output, linear_proj's input and output, fc1's input, fc2's output, the MLP's residual stream.
LINEARS = T * 2 * (C + 3 * C + C + C + C + C + C)
GELU = T * 2 * (F + F)


def test_a_block_keeps_what_the_table_says():
    assert kept_by_a_block() == (rows_and_statistics() + ATTENTION + LINEARS + GELU, 0)


@pytest.mark.parametrize(
    "modules, saved",
    [
        ([], T * 2 * (2 * C + F)),
        (["layernorm"], T * 2 * 2 * C),
        (["mlp_act"], T * 2 * F),
        # fc1's input and output, fc2's input and output, the norm's statistics; the gate is an input all the same.
        (["mlp"], T * (2 * (C + 2 * F + C) + 8)),
        # q and k stay, one copy of each; v is a view of what linear_qkv put out.
        (["core_attn"], ATTENTION - T * 2 * 2 * C),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_recomputed_parts_are_not_kept(modules, saved):
    kept, _ = kept_by_a_block(recompute_granularity="selective", recompute_modules=modules)
    assert kept == kept_by_a_block()[0] - saved


@pytest.mark.parametrize(
    "fields, conditions", [({}, 0), (SELECTIVE, 0), (FULL, 2 * 6 * C * 2)], ids=["all", "selective", "full"]
)
def test_an_offloaded_block_keeps_nothing_on_the_device(fields, conditions):
    kept, _ = kept_by_a_block(**fields)
    left, host = kept_by_a_block(**fields, cpu_offloading_num_layers=1)
    # The block's inputs go to the host too; weights and the pack's index arrays do not.
    assert (left, host) == (0, kept + T * 2 * C + conditions)


@pytest.mark.parametrize(
    "layers, order",
    [
        # "<i" is the start of block i's way back, "i" of its backward pass.
        (2, ["3", "<1", "2", "<0", "1", "0"]),
        (4, ["<3", "<2", "3", "<1", "2", "<0", "1", "0"]),
    ],
)
def test_offloaded_blocks_come_back_one_block_ahead_of_their_backward_pass(layers, order, monkeypatch):
    chunk, events, load = loaded(cpu_offloading_num_layers=layers), [], offload._Block.load
    made = []

    def logged(self, gradient=None):
        if self.handles:
            events.append(f"<{made.index(self)}")
        load(self, gradient)

    monkeypatch.setattr(offload._Block, "__init__", _then(offload._Block.__init__, made.append))
    monkeypatch.setattr(offload._Block, "load", logged)
    for number, block in chunk.blocks.named_children():
        # The MLP is what a block's backward pass reaches first.
        block.visual.mlp.register_full_backward_pre_hook(lambda *_, number=number: events.append(number))
    chunk(reference.microbatches()[0][0]).sum().backward()
    assert events == order


def _then(first, second):
    def both(self):
        first(self)
        second(self)

    return both


def test_memory_of_an_offloaded_block_is_free_as_soon_as_the_next_has_run(monkeypatch):
    chunk, events = loaded(cpu_offloading_num_layers=2), []
    release = offload._Block.release
    monkeypatch.setattr(offload._Block, "release", lambda self: (events.append("release"), release(self)))
    for number, block in chunk.blocks.named_children():
        block.register_forward_hook(lambda *_, number=number: events.append(number))
    chunk(reference.microbatches()[0][0])
    assert events == ["0", "1", "release", "2", "release", "3"]


class CachingLinear(torch.nn.Linear):
    """Has a quantized copy of its weight from its first pass on, where Transformer Engine's linears keep theirs."""

    def __init__(self):
        super().__init__(8, 8, bias=False)
        self._fp8_workspaces = {}

    def get_data_tensors(self):
        return self.copy, None

    def forward(self, x):
        if not self._fp8_workspaces:
            self.copy, self._fp8_workspaces["weight"] = self.weight.detach().clone(), self
        return x @ self.copy


def test_cached_copies_of_weights_are_not_offloaded():
    linear, x = CachingLinear(), torch.randn(4, 8, requires_grad=True)

    def offloaded():
        engine = offload.ActivationOffload(linear)
        with engine.block():
            out = linear(x)
        engine.computed(out)
        engine.finish()
        return out

    offloaded()  # makes the copy
    out, kept, host = live_bytes(offloaded)
    assert (kept - out.nbytes, host) == (0, 0)


def test_nothing_is_offloaded_without_gradients():
    chunk, inputs = loaded(cpu_offloading_num_layers=4), reference.microbatches()[0][0]
    with torch.no_grad():
        _, _, host = live_bytes(lambda: chunk(inputs))
    assert host == 0


def test_a_dropped_tensor_is_computed_again_also_where_a_view_of_it_is_kept():
    x, weight = torch.randn(6, 8, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    rows, sample = torch.randn(2, 8), torch.tensor([0, 1, 1, 0, 1, 0])
    results = []
    for drop in (False, True):
        y = modulated_layer_norm(x, rows, rows, sample, 1e-6)
        if drop:
            with dropped(y):
                out = y.view(12, 4)[2:] @ weight
            y.untyped_storage().resize_(0)  # nobody may read it any more
        else:
            out = y.view(12, 4)[2:] @ weight
        results.append(torch.autograd.grad(out.square().sum(), (x, weight)))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_what_else_is_kept_beside_a_dropped_tensor_goes_where_it_would_go_outside():
    """As the 8-bit copies of Transformer Engine's linears go to the host with the rest of an offloaded block."""
    x, weight = torch.randn(6, 8, requires_grad=True), torch.randn(8, 5, requires_grad=True)
    rows, sample, seen = torch.randn(2, 8), torch.tensor([0, 1, 1, 0, 1, 0]), []

    def pack(tensor):
        seen.append(tensor)
        return [tensor.clone()]

    results = []
    for hooks in (saved_tensors_hooks(pack, lambda packed: packed[0]), contextlib.nullcontext()):
        y = modulated_layer_norm(x, rows, rows, sample, 1e-6)
        with hooks, dropped(y):
            out = (torch.exp(y) @ weight).square()
        results.append(torch.autograd.grad(out.sum(), (x, weight)))
    # What exp put out (for itself and for the product), the weight, and the product.
    assert sorted(tuple(tensor.shape) for tensor in seen) == [(6, 5), (6, 8), (6, 8), (8, 5)]
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "fields, most",
    [
        (SELECTIVE, 0.9),
        (dict(cpu_offloading_num_layers=3), 0.8),
        # Only the inputs of three blocks, beside all that one recomputed block keeps.
        (dict(FULL, cpu_offloading_num_layers=4), 0.97),
    ],
)
def test_less_memory_of_the_gpu_is_used(fields, most):
    model = ModelConfig(num_layers=4, hidden_size=1024, num_attention_heads=8, ffn_hidden_size=4096)
    model.rope_axes_dim = [32, 48, 48]
    shapes = [SampleShape(16, 16, 32, 1, 64, 16)]
    layout = PackLayout.build(shapes, WindowSpec(9), model.rope_axes_dim, 1e4, 8704, 128, device="cuda")
    draw = lambda *size: torch.randn(*size, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    inputs = PackInputs(
        visual=draw(8704, 64), timestep=torch.rand(1, device="cuda"), text=draw(64, model.text_dim),
        clip=draw(16, model.clip_dim), layout=layout,
    )  # fmt: skip
    peaks, results = [], []
    base = {key: value for key, value in fields.items() if key != "cpu_offloading_num_layers"}
    for settings in (base if base != fields else {}, fields):
        parallel = ParallelConfig(**settings)
        (chunk,) = build_model(model, parallel, PrecisionConfig(bf16=True), seed=3)
        generator = torch.Generator().manual_seed(0)
        for param in chunk.parameters():
            param.data.add_(0.02 * torch.randn(param.shape, generator=generator).to(param))
        # Transformer Engine's linears add to DDP's gradients.
        (wrapped,) = wrap_ddp([chunk], chunk.config, parallel)
        for _ in range(2):  # the first pass compiles
            wrapped.zero_grad_buffer()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            out = wrapped(inputs)
            out.float().square().sum().backward()
            peaks.append(torch.cuda.max_memory_allocated() - before)
        results.append([out.detach().float(), *(param.main_grad.clone() for param in chunk.parameters())])
        del chunk, wrapped, out
    assert peaks[3] < most * peaks[1], peaks
    for first, second in zip(*results, strict=True):
        assert (first - second).norm() <= 0.01 * first.norm() + 1e-6
