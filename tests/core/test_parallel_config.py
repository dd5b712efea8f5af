"""Layouts that cannot run are refused with the field's name; those that can become megatron's settings."""

import pytest
import torch

from phantom_mega.config import DataConfig, ModelConfig, ParallelConfig, PrecisionConfig
from phantom_mega.core.parallel_config import check_layout, check_num_microbatches, ddp_config, transformer_config
from phantom_mega.errors import UserError

MODEL = ModelConfig()


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            dict(tensor_model_parallel_size=3),
            r"num_attention_heads=4 is not a multiple of tensor_model_parallel_size=3",
        ),
        (dict(tensor_model_parallel_size=0), r"tensor_model_parallel_size=0 must be at least 1"),
        (dict(pipeline_model_parallel_size=3), r"num_layers=4 is not a multiple of .* = 3 x 1"),
        (
            dict(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=4),
            r"num_layers=4 is not a multiple of .* = 2 x 4",
        ),
        (dict(virtual_pipeline_model_parallel_size=2), r"needs pipeline_model_parallel_size > 1"),
        (
            dict(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=1),
            r"virtual_pipeline_model_parallel_size=1 must be at least 2",
        ),
        (dict(sequence_parallel=True), r"sequence_parallel=true needs tensor_model_parallel_size > 1"),
        (dict(overlap_param_gather=True), r"overlap_param_gather=true needs .*overlap_grad_reduce=true"),
        (dict(recompute_granularity="selective"), r"recompute_granularity='selective' is unknown"),
        (dict(recompute_num_layers=1), r"recompute_num_layers=1 has no effect without recompute_granularity=full"),
        (dict(recompute_granularity="full", recompute_num_layers=5), r"must lie in 1\.\.4"),
    ],
)
def test_layouts_that_cannot_run_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        transformer_config(MODEL, ParallelConfig(**fields), PrecisionConfig())


def test_packs_that_sequence_parallelism_cannot_split_are_refused_with_the_next_length_that_fits():
    parallel = ParallelConfig(tensor_model_parallel_size=4, sequence_parallel=True)
    check_layout(MODEL, parallel, DataConfig(seq_length=2048, text_seq_length=512))
    with pytest.raises(UserError, match=r"text_seq_length=510 is not a multiple .* use 512"):
        check_layout(MODEL, parallel, DataConfig(seq_length=2048, text_seq_length=510))


def test_ranks_that_form_no_whole_replica_are_refused():
    parallel = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    check_layout(MODEL, parallel, world_size=8)
    with pytest.raises(UserError, match=r"6 ranks cannot form groups .* = 2 x 2; start a multiple of 4"):
        check_layout(MODEL, parallel, world_size=6)


def test_interleaved_schedule_needs_whole_groups_of_microbatches():
    parallel = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    check_num_microbatches(parallel, 4)
    check_num_microbatches(ParallelConfig(pipeline_model_parallel_size=2), 3)
    with pytest.raises(UserError, match="3 microbatches"):
        check_num_microbatches(parallel, 3)


@pytest.mark.parametrize("vpp", [None, 2])
def test_interleaved_schedule_always_overlaps_its_messages(vpp):
    parallel = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=vpp)
    config = transformer_config(MODEL, parallel, PrecisionConfig())
    assert (config.overlap_p2p_comm, config.batch_p2p_comm) == ((True, False) if vpp else (False, True))


def test_bf16_computes_in_bf16_and_reduces_gradients_in_fp32():
    config = transformer_config(MODEL, ParallelConfig(), PrecisionConfig(bf16=True))
    assert (config.params_dtype, config.bf16) == (torch.bfloat16, True)
    assert ddp_config(ParallelConfig(), PrecisionConfig(bf16=True)).grad_reduce_in_fp32
    assert not ddp_config(ParallelConfig(), PrecisionConfig()).grad_reduce_in_fp32


def test_losses_are_summed_per_token_and_conditioning_gradients_over_stages():
    config = transformer_config(MODEL, ParallelConfig(), PrecisionConfig())
    assert config.calculate_per_token_loss and config.has_cond_embedder and config.qk_layernorm
