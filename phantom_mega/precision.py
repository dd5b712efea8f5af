"""Which number formats can be computed: checks of the configuration alone, before any process starts, without a GPU."""

from __future__ import annotations

from phantom_mega.config import DataConfig, ModelConfig, ParallelConfig, PrecisionConfig
from phantom_mega.errors import UserError

FP8_FORMATS = ("hybrid", "e4m3")
FP8_RECIPES = ("delayed", "tensorwise", "blockwise")
AMAX_ALGORITHMS = ("max", "most_recent")
# cuBLAS multiplies FP8 matrices whose rows are whole 16-byte words; tokens are rows of the weight gradient's factors.
FP8_ALIGNMENT = 16


def check_precision(
    precision: PrecisionConfig, model: ModelConfig, parallel: ParallelConfig, data: DataConfig | None = None
) -> None:
    """Refuse number formats that cannot be computed in this layout.

    Args:
        precision, model, parallel: as read.
        data: also check that FP8 can multiply packs of its size.

    Raises:
        UserError: names the field, its value and what it must be.
    """
    if precision.fp8 is None:
        return
    for name, known in (
        ("fp8", FP8_FORMATS),
        ("fp8_recipe", (*FP8_RECIPES, "mxfp8")),
        ("fp8_amax_compute_algo", AMAX_ALGORITHMS),
    ):
        if getattr(precision, name) not in known:
            words = ", ".join(value for value in known if value != "mxfp8")
            raise UserError(f"precision.{name}={getattr(precision, name)!r} is unknown; use one of {words}")
    if precision.fp8_recipe == "mxfp8":
        raise UserError(
            "precision.fp8_recipe=mxfp8 needs tensor cores that scale blocks of 32, which GPUs have from Blackwell on; "
            "on Hopper use blockwise"
        )
    if not precision.bf16:
        raise UserError(f"precision.fp8={precision.fp8} leaves all but the linears in bf16; set precision.bf16=true")
    if parallel.transformer_impl == "local":
        raise UserError(
            f"precision.fp8={precision.fp8} needs Transformer Engine's linears; set parallel.transformer_impl=auto"
        )
    if precision.fp8_amax_history_len < 1:
        raise UserError(f"precision.fp8_amax_history_len={precision.fp8_amax_history_len} must be at least 1")
    _check_bf16_layers(precision, model, parallel)
    _check_alignment(precision, model, parallel, data)


def _check_bf16_layers(precision: PrecisionConfig, model: ModelConfig, parallel: ParallelConfig) -> None:
    if not precision.first_last_layers_bf16:
        return
    if precision.fp8_recipe == "delayed":
        raise UserError(
            "precision.first_last_layers_bf16=true cannot be had with fp8_recipe=delayed, which follows all layers "
            "together; use tensorwise or blockwise"
        )
    most = model.num_layers // parallel.pipeline_model_parallel_size
    for name in ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"):
        if not 0 <= getattr(precision, name) <= most:
            raise UserError(
                f"precision.{name}={getattr(precision, name)} must lie in 0..{most}, the layers of a pipeline stage"
            )


def _check_alignment(
    precision: PrecisionConfig, model: ModelConfig, parallel: ParallelConfig, data: DataConfig | None
) -> None:
    tp = parallel.tensor_model_parallel_size
    token_ranks = (tp if parallel.sequence_parallel else 1) * parallel.context_parallel_size
    rows = [("model", model, "hidden_size", tp), ("model", model, "ffn_hidden_size", tp)]
    if data is not None:
        rows += [("data", data, name, token_ranks) for name in ("seq_length", "text_seq_length")]
    for section, owner, name, ranks in rows:
        value, step = getattr(owner, name), FP8_ALIGNMENT * ranks
        if value % step:
            over = f" on each of {ranks} ranks" if ranks > 1 else ""
            raise UserError(
                f"{section}.{name}={value}: precision.fp8={precision.fp8} multiplies matrices in steps of "
                f"{FP8_ALIGNMENT}{over}; use {-(-value // step) * step}"
            )
