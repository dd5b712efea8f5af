"""Number formats that cannot be computed are refused with the field's name and what it must be."""

import dataclasses

import pytest

from phantom_mega.config import DataConfig, ModelConfig, ParallelConfig, PrecisionConfig
from phantom_mega.errors import UserError
from phantom_mega.precision import FP8_FORMATS, FP8_RECIPES, check_precision

MODEL, DATA = ModelConfig(), DataConfig(seq_length=2048, text_seq_length=512)
FP8 = PrecisionConfig(bf16=True, fp8="hybrid")


@pytest.mark.parametrize("fp8", FP8_FORMATS)
@pytest.mark.parametrize("recipe", FP8_RECIPES)
def test_every_recipe_in_both_formats_is_accepted(fp8, recipe):
    check_precision(PrecisionConfig(bf16=True, fp8=fp8, fp8_recipe=recipe), MODEL, ParallelConfig(), DATA)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(fp8="e5m2"), r"precision\.fp8='e5m2' is unknown; use one of hybrid, e4m3"),
        (dict(fp8_recipe="current"), r"fp8_recipe='current' is unknown; use one of delayed, tensorwise, blockwise$"),
        (dict(fp8_recipe="mxfp8"), r"fp8_recipe=mxfp8 needs .* Blackwell .* use blockwise"),
        (dict(fp8_amax_compute_algo="mean"), r"fp8_amax_compute_algo='mean' is unknown; use one of max, most_recent"),
        (dict(fp8_amax_history_len=0), r"fp8_amax_history_len=0 must be at least 1"),
        (dict(bf16=False), r"set precision\.bf16=true"),
        (dict(fp8_recipe="delayed", first_last_layers_bf16=True), r"first_last_layers_bf16=true .* use tensorwise"),
        (dict(first_last_layers_bf16=True, num_layers_at_start_in_bf16=5), r"start_in_bf16=5 must lie in 0\.\.4"),
        (dict(first_last_layers_bf16=True, num_layers_at_end_in_bf16=-1), r"end_in_bf16=-1 must lie in 0\.\.4"),
    ],
)
def test_formats_that_cannot_be_computed_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        check_precision(dataclasses.replace(FP8, **fields), MODEL, ParallelConfig())


def test_nothing_is_asked_of_a_run_without_fp8():
    check_precision(PrecisionConfig(fp8_recipe="mxfp8"), MODEL, ParallelConfig(transformer_impl="local"))


def test_linears_of_megatron_core_have_no_fp8():
    with pytest.raises(UserError, match=r"needs Transformer Engine's linears; set parallel\.transformer_impl=auto"):
        check_precision(FP8, MODEL, ParallelConfig(transformer_impl="local"))


def test_packs_and_widths_that_fp8_cannot_multiply_are_refused_with_the_next_that_fits():
    split = ParallelConfig(tensor_model_parallel_size=4, sequence_parallel=True)
    check_precision(FP8, MODEL, split, DATA)
    with pytest.raises(UserError, match=r"data\.text_seq_length=520: .* on each of 4 ranks; use 576"):
        check_precision(FP8, MODEL, split, dataclasses.replace(DATA, text_seq_length=520))
    # Without sequence parallelism every rank multiplies all tokens.
    whole = ParallelConfig(tensor_model_parallel_size=4)
    check_precision(FP8, MODEL, whole, dataclasses.replace(DATA, text_seq_length=528))
    with pytest.raises(UserError, match=r"data\.seq_length=2050: .* in steps of 16; use 2064"):
        check_precision(FP8, MODEL, whole, dataclasses.replace(DATA, seq_length=2050))
    context = dataclasses.replace(split, context_parallel_size=2)
    with pytest.raises(UserError, match=r"data\.text_seq_length=576: .* on each of 8 ranks; use 640"):
        check_precision(FP8, MODEL, context, dataclasses.replace(DATA, text_seq_length=576))
    with pytest.raises(UserError, match=r"model\.ffn_hidden_size=480: .* on each of 4 ranks; use 512"):
        check_precision(FP8, dataclasses.replace(MODEL, ffn_hidden_size=480), whole)
