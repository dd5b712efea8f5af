"""What a block keeps for its backward pass: one table, tensor by tensor, tested against autograd on the real blocks.

S, L: visual and text-stream tokens of the padded pack, J = S + L, B: samples, C: width, F: MLP width, N: heads, tp, cp:
tensor- and context-parallel sizes, e: bytes of a number (2 in bf16), G, V, H: rows of all windows, video rows among
them, shared rows. The operations are those of `core.layers` and `core.fused`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from phantom_mega.attention import GATHERED
from phantom_mega.config import ModelConfig, ParallelConfig, PrecisionConfig
from phantom_mega.geometry import PATCH
from phantom_mega.planner.workload import PackSizes, resolved_backend

FP32 = 4


@dataclass(frozen=True)
class Saved:
    """One tensor that is kept from the forward to the backward pass.

    Attributes:
        operation: what saves it.
        name: which one.
        size: bytes on one rank.
        modules: names in `recompute_modules`, each of which drops it.
        only_with: a name in `recompute_modules` without which it is not kept; empty: it always is.
    """

    operation: str
    name: str
    size: float
    modules: tuple[str, ...] = ()
    only_with: str = ""

    def kept(self, recomputed: tuple[str, ...]) -> bool:
        """Whether it is kept when these modules are recomputed."""
        return not set(self.modules) & set(recomputed) and (not self.only_with or self.only_with in recomputed)


@dataclass(frozen=True)
class Local:
    """Counts of one rank.

    Attributes:
        model, sizes: the whole model's and pack's.
        width: e.
        fp8: whether linears keep their inputs in FP8, whatever is recomputed.
        tp, cp: sizes.
        split: ranks over which tokens are split between linears: tp x cp with sequence parallelism, else cp.
        backend: of attention, resolved.
    """

    model: ModelConfig
    sizes: PackSizes
    width: int
    fp8: bool
    tp: int
    cp: int
    split: int
    backend: str

    @classmethod
    def of(cls, model: ModelConfig, parallel: ParallelConfig, sizes: PackSizes, precision: PrecisionConfig) -> Local:
        """Of a layout; `auto` is the backend that a GPU gets in this precision."""
        tp, cp = parallel.tensor_model_parallel_size, parallel.context_parallel_size
        split = cp * tp if parallel.sequence_parallel else cp
        backend = resolved_backend(parallel.attention_backend, precision.bf16)
        return cls(model, sizes, 2 if precision.bf16 else 4, precision.fp8 is not None, tp, cp, split, backend)

    @property
    def channels(self) -> float:
        """Channels of this rank's heads inside attention, C / (tp cp)."""
        return self.model.hidden_size / (self.tp * self.cp)

    @property
    def heads(self) -> float:
        """This rank's heads inside attention, N / (tp cp)."""
        return self.model.num_attention_heads / (self.tp * self.cp)

    def linear_input(self, name: str, numbers: float, modules: tuple[str, ...] = ()) -> Saved:
        """What a linear keeps of its input: Transformer Engine's FP8 copy, which is never recomputed, or the input."""
        return Saved(name, "input in FP8", numbers) if self.fp8 else Saved(name, "input", self.width * numbers, modules)


def _stream(local: Local, tokens: int, qkv_only: bool) -> Iterator[Saved]:
    """One stream's tensors outside of attention; `tokens` of the whole pack."""
    C, F, N, e = local.model.hidden_size, local.model.ffn_hidden_size, local.model.num_attention_heads, local.width
    between, inside = tokens / local.split, tokens / local.cp  # a rank's tokens between linears, and after the gather
    rows = 2 if qkv_only else 6
    yield Saved("modulation", "shift, scale and gate", e * rows * C * local.sizes.samples)
    yield Saved("attention norm", "block input", e * between * C)
    yield Saved("attention norm", "mean and 1/std", 2 * FP32 * between)
    yield local.linear_input("linear_qkv", between * C, ("layernorm",))
    yield Saved("head norm", "q, k, v of linear_qkv", 3 * e * inside * C / local.tp)
    yield Saved("head norm", "1/rms of q and k", 2 * FP32 * inside * N / local.tp)
    if qkv_only:
        return
    yield Saved("attention residual", "output of linear_proj", e * between * C)
    yield Saved("mlp norm", "input", e * between * C)
    yield Saved("mlp norm", "mean and 1/std", 2 * FP32 * between, ("mlp",))
    yield local.linear_input("linear_fc1", between * C, ("layernorm", "mlp"))
    yield Saved("gelu", "output of linear_fc1", e * inside * F / local.tp, ("mlp",))
    yield local.linear_input("linear_fc2", inside * F / local.tp, ("mlp_act", "mlp"))
    yield Saved("mlp residual", "output of linear_fc2", e * between * C, ("mlp",))


def _attention(local: Local) -> Iterator[Saved]:
    """The joint part of both streams."""
    sizes, e, C, N = local.sizes, local.width, local.channels, local.heads
    inner = ("core_attn",)
    # v is a part of linear_qkv's output, which stays anyway.
    yield Saved("attention", "q and k of both streams", 2 * e * sizes.joint * C, only_with="core_attn")
    if local.backend in GATHERED:
        yield Saved("attention", "q, k, v of all windows", 3 * e * sizes.rows * C, inner)
        yield Saved("attention", "output of all windows", e * sizes.rows * C, inner)
        yield Saved("attention", "log-sum-exp", FP32 * sizes.rows * N, inner)
    else:
        repeated = sizes.rows - sizes.video_rows  # shared rows, once for each window that reads them
        lse = sizes.video_rows + repeated + (sizes.shared_rows if local.backend == "triton" else 0)
        yield Saved("attention", "q, k, v", 3 * e * sizes.joint * C, inner)
        yield Saved("attention", "outputs of shared rows in each window", e * repeated * C, inner)
        yield Saved("attention", "log-sum-exp", FP32 * lse * N, inner)
        if local.backend != "triton":
            yield Saved("attention", "offsets of the calls", 4 * (sizes.windows + sizes.samples + 2), inner)
        if local.cp > 1 or local.fp8:  # else it is the next one
            yield Saved("attention", "output", e * sizes.joint * C, inner)
    yield local.linear_input("linear_proj", sizes.joint * C)


def layer_saved(local: Local, last: bool) -> list[Saved]:
    """Every tensor of one block.

    Args:
        local: counts of this rank.
        last: the model's last block, whose text stream stops after its q, k, v.
    """
    sizes = local.sizes
    return [*_stream(local, sizes.visual, False), *_stream(local, sizes.text, last), *_attention(local)]


def total(saved: list[Saved], recomputed: tuple[str, ...] = ()) -> float:
    """Bytes of a table when some modules are recomputed."""
    return sum(entry.size for entry in saved if entry.kept(recomputed))


def layer_inputs(local: Local) -> float:
    """Bytes that a block keeps where the whole of it is recomputed: its two inputs."""
    return local.width * local.sizes.joint / local.split * local.model.hidden_size


def layer_workspace(local: Local, recomputed: tuple[str, ...] = ()) -> float:
    """Bytes at the peak of one block's backward pass beyond what it keeps, when all blocks before it keep theirs.

    Either where fc2 computes its input's gradient, or, when the MLPs of both streams and the output projections are
    through, in attention. megatron's linears hold a buffer for the tokens that sequence parallelism gathers.
    """
    sizes, e, C, F = local.sizes, local.width, local.model.hidden_size, local.model.ffn_hidden_size
    inside = sizes.visual / local.cp  # the larger stream
    hidden = e * inside * F / local.tp
    # Gradients of fc2's output (gathered), input and weight; that of the block's output is as large as what the
    # residual kept, which is free by then.
    mlp = e * inside * C + hidden + e * C * F / local.tp
    if "mlp" in recomputed:
        others = tuple(name for name in recomputed if name != "mlp")
        visual = _stream(local, sizes.visual, qkv_only=False)
        mlp += sum(entry.size for entry in visual if "mlp" in entry.modules and entry.kept(others))
    elif "mlp_act" in recomputed and not local.fp8:
        mlp += hidden
    saved = layer_saved(local, last=False)
    attention = layer_inputs(local) + _attention_workspace(local)
    if "core_attn" in recomputed:
        attention += sum(entry.size for entry in saved if "core_attn" in entry.modules)
    attention -= sum(entry.size for entry in saved if entry.operation in _AFTER_ATTENTION and entry.kept(recomputed))
    return max(mlp, attention) + (e * inside * C if local.split > local.cp else 0.0)


_AFTER_ATTENTION = ("linear_proj", "attention residual", "mlp norm", "linear_fc1", "gelu", "linear_fc2", "mlp residual")


def _attention_workspace(local: Local) -> float:
    """Gradients inside of attention: of its output, and of what the backend computes with."""
    sizes, e, C = local.sizes, local.width, local.channels
    if local.backend in GATHERED:
        # Of all windows' rows those of the output and of q, k and v, and the sum that takes them back to tokens.
        return 5 * e * sizes.rows * C + 2 * e * sizes.joint * C
    # Of q, k, v and the output; each window's copies of shared queries and of their gradients.
    return 4 * e * sizes.joint * C + 2 * e * (sizes.rows - sizes.video_rows) * C


def embedding_saved(local: Local) -> list[Saved]:
    """What the embedders keep, on the first stage; inputs of the pack are counted with the packs."""
    C, e, sizes = local.model.hidden_size, local.width, local.sizes
    whole = e * C * sizes.text * (1 - 1 / local.split)  # the first block's text input is a view of all text tokens
    return [
        Saved("clip_projector", "gelu input and output", 2 * e * C * sizes.clip),
        Saved("text_embedder", "text tokens of other ranks", whole),
    ]


def final_saved(local: Local) -> list[Saved]:
    """What the final layer and the loss keep, on the last stage."""
    C, e, tokens = local.model.hidden_size, local.width, local.sizes.visual / local.split
    patch_dim = local.model.latent_channels * PATCH[1] * PATCH[2]
    return [
        Saved("final norm", "input", e * tokens * C),
        Saved("final norm", "mean and 1/std", 2 * FP32 * tokens),
        Saved("final_proj", "input", e * tokens * C),
        Saved("loss", "velocity and error", 3 * FP32 * local.sizes.visual / local.cp * patch_dim),
    ]
