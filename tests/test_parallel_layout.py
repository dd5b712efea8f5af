"""Layouts that cannot run are refused with the field's name and what it must be."""

import pytest

from phantom_mega.config import DataConfig, ModelConfig, ParallelConfig
from phantom_mega.errors import UserError
from phantom_mega.parallel_layout import check_global_batch_size, check_layout, check_num_microbatches

MODEL = ModelConfig()


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            dict(tensor_model_parallel_size=3),
            r"num_attention_heads=4 is not a multiple of tensor_model_parallel_size=3",
        ),
        (dict(tensor_model_parallel_size=0), r"tensor_model_parallel_size=0 must be at least 1"),
        (dict(context_parallel_size=0), r"context_parallel_size=0 must be at least 1"),
        (
            dict(tensor_model_parallel_size=2, context_parallel_size=4),
            r"num_attention_heads=4 is not a multiple of .* = 2 x 4, .* the nearest context_parallel_size is 2",
        ),
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
        (dict(recompute_granularity="some"), r"recompute_granularity='some' is unknown; use full, selective or null"),
        (
            dict(recompute_granularity="selective", recompute_num_layers=1),
            r"recompute_num_layers=1 has no effect without recompute_granularity=full",
        ),
        (
            dict(recompute_granularity="selective", recompute_modules=["layer_norm"]),
            r"'layer_norm', which is unknown; did you mean layernorm\?",
        ),
        (
            dict(recompute_granularity="selective", recompute_modules=["moe"]),
            r"recompute_modules has 'moe', which is unknown.* layernorm, mlp_act, mlp, core_attn",
        ),
        (dict(recompute_granularity="selective", recompute_modules=["mlp", "mlp_act"]), r"mlp and mlp_act.*leave one"),
        (dict(recompute_modules=["mlp"]), r"recompute_modules=\['mlp'\] has no effect without .*selective"),
        (dict(cpu_offloading_num_layers=5), r"cpu_offloading_num_layers=5 must lie in 0\.\.4"),
        (dict(cpu_offloading_num_layers=3, pipeline_model_parallel_size=2), r"cpu_offloading_num_layers=3 .* 0\.\.2"),
        (dict(recompute_num_layers=1), r"recompute_num_layers=1 has no effect without recompute_granularity=full"),
        (dict(recompute_granularity="full", recompute_num_layers=5), r"must lie in 1\.\.4"),
    ],
)
def test_layouts_that_cannot_run_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        check_layout(MODEL, ParallelConfig(**fields))


def test_packs_that_sequence_parallelism_cannot_split_are_refused_with_the_next_length_that_fits():
    parallel = ParallelConfig(tensor_model_parallel_size=4, sequence_parallel=True)
    check_layout(MODEL, parallel, DataConfig(seq_length=2048, text_seq_length=512))
    with pytest.raises(UserError, match=r"text_seq_length=510 is not a multiple .* use 512"):
        check_layout(MODEL, parallel, DataConfig(seq_length=2048, text_seq_length=510))


def test_packs_that_context_parallelism_cannot_split_are_refused_with_the_next_length_that_fits():
    parallel = ParallelConfig(context_parallel_size=4)
    check_layout(MODEL, parallel, DataConfig(seq_length=2044, text_seq_length=512))
    with pytest.raises(UserError, match=r"seq_length=2046 is not a multiple of context_parallel_size = 4, .* use 2048"):
        check_layout(MODEL, parallel, DataConfig(seq_length=2046, text_seq_length=512))
    both = ParallelConfig(tensor_model_parallel_size=2, context_parallel_size=2, sequence_parallel=True)
    with pytest.raises(UserError, match=r"seq_length=2046 .* tensor_.* x context_parallel_size = 2 x 2, .* use 2048"):
        check_layout(MODEL, both, DataConfig(seq_length=2046, text_seq_length=512))
    check_layout(MODEL, ParallelConfig(tensor_model_parallel_size=4), DataConfig(seq_length=2045, text_seq_length=511))


def test_ranks_that_form_no_whole_replica_are_refused():
    parallel = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    check_layout(MODEL, parallel, world_size=8)
    with pytest.raises(UserError, match=r"6 ranks cannot form groups .* = 2 x 1 x 2; start a multiple of 4"):
        check_layout(MODEL, parallel, world_size=6)
    with pytest.raises(UserError, match=r"6 ranks cannot form groups .* = 1 x 4 x 1; start a multiple of 4"):
        check_layout(MODEL, ParallelConfig(context_parallel_size=4), world_size=6)


def test_an_iteration_has_packs_as_many_for_each_replica():
    check_global_batch_size(8, 4)
    for size, message in ((0, "global_batch_size=0 must be at least 1"), (9, "the nearest is 8")):
        with pytest.raises(UserError, match=message):
            check_global_batch_size(size, 4)


def test_interleaved_schedule_needs_whole_groups_of_microbatches():
    parallel = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    check_num_microbatches(parallel, 4)
    check_num_microbatches(ParallelConfig(pipeline_model_parallel_size=2), 3)
    with pytest.raises(UserError, match="3 microbatches"):
        check_num_microbatches(parallel, 3)
