"""Bytes that real blocks hand to collectives, and which link a group of ranks uses."""

import dataclasses

import pytest
import torch

from phantom_mega.config import ParallelConfig, RunConfig
from phantom_mega.planner.communication import Cluster, transfers
from phantom_mega.planner.gpus import LINK_EFFICIENCY, find_gpu
from tests.planner import slices
from tests.planner.measured import Storages
from tests.planner.test_activations import BF16, HEADS, SHAPES, SMALL

H100 = find_gpu("h100")


def run(**parallel) -> RunConfig:
    config = RunConfig(model=SMALL, precision=BF16, parallel=ParallelConfig(**parallel))
    config.data.seq_length, config.data.text_seq_length = slices.padded(SHAPES, 16)
    return config


def sent(config: RunConfig, nodes: int = 1, data_parallel: int = 1, microbatches: int = 1, seconds: float = 0.0):
    found = transfers(config, Cluster(H100, nodes), data_parallel, microbatches, seconds)
    return {transfer.name: transfer for transfer in found}


@pytest.mark.parametrize("recompute", [None, "full"])
def test_tensor_parallel_blocks_send_what_the_formula_says(fake_world, recompute):
    """Within 2%: the last block's text stream stops after its q, k, v, and recomputation leaves out its last sum."""
    tp, config = 4, run(tensor_model_parallel_size=4, sequence_parallel=True, recompute_granularity=recompute)
    config.model = dataclasses.replace(SMALL, num_layers=12)
    config.parallel.attention_backend, config.parallel.transformer_impl = "sdpa", "local"
    layout = slices.pack(SMALL, SHAPES, 16)
    with fake_world(config.parallel):
        slice_ = slices.build(config.model, config.parallel, BF16, layout)
        with Storages() as storages:
            visual, _ = slice_.blocks(*slice_.arguments)
            visual.backward(torch.ones_like(visual))
    gathered, scattered = (
        sum(size for name, size in storages.collectives.items() if kind in name) for kind in ("allgather", "scatter")
    )
    # An all-gather takes in a rank's part, a reduce-scatter all parts.
    measured = gathered * (tp - 1) + scattered * (tp - 1) / tp
    assert sent(config)["tensor parallel"].size == pytest.approx(measured, rel=0.05)


def test_gradients_are_reduced_in_fp32_and_weights_gathered_in_bf16():
    found = sent(run(), nodes=2, data_parallel=16)
    assert found["gradient reduction"].size == 2 * found["weight gathering"].size
    assert found["gradient reduction"].across_nodes
    assert sent(run(), data_parallel=1) == {}


def test_overlapped_reduction_is_exposed_only_beyond_the_backward_pass():
    config = run(overlap_grad_reduce=True, overlap_param_gather=True)
    alone = sent(config, data_parallel=8)["gradient reduction"].seconds
    for hidden in (0.0, 0.4 * alone, 2 * alone):
        exposed = sent(config, data_parallel=8, seconds=hidden)["gradient reduction"].exposed
        assert exposed == pytest.approx(max(0.0, alone - hidden))


@pytest.mark.parametrize(
    "recompute",
    [{}, dict(recompute_granularity="full"), dict(recompute_granularity="selective", recompute_modules=["core_attn"])],
)
def test_context_parallel_blocks_send_what_the_formula_says(fake_world, recompute):
    config = run(context_parallel_size=4, attention_backend="sdpa", transformer_impl="local", **recompute)
    config.model = HEADS
    layout = slices.pack(HEADS, SHAPES, 16)
    with fake_world(config.parallel):
        slice_ = slices.build(HEADS, config.parallel, BF16, layout)
        with Storages() as storages:
            visual, _ = slice_.blocks(*slice_.arguments)
            visual.backward(torch.ones_like(visual))
    (exchanged,) = (size for name, size in storages.collectives.items() if "alltoall" in name)
    # An all-to-all takes in a rank's own part too.
    assert sent(config)["context parallel"].size == exchanged * 3 / 4


def test_groups_inside_a_node_use_nvlink_and_others_as_many_adapters_as_they_have_ranks_there():
    cluster, nvlink, network = Cluster(H100, nodes=4), H100.nvlink * 1e9, H100.network * 1e9
    assert cluster.ring(8, 1) == LINK_EFFICIENCY * nvlink
    assert cluster.ring(32, 1) == LINK_EFFICIENCY * 8 * network
    assert cluster.ring(16, 2) == LINK_EFFICIENCY * 4 * network
    assert cluster.ring(4, 8) == LINK_EFFICIENCY * network
    assert cluster.exchange(4, 2) == LINK_EFFICIENCY * nvlink
    # Of 15 peers, 8 are on the other node.
    assert cluster.exchange(16, 1) == pytest.approx(LINK_EFFICIENCY * network * 15 / 8)


def test_pipelines_cross_nodes_and_the_interleaved_schedule_hides_its_sends():
    plain = sent(run(pipeline_model_parallel_size=2), nodes=2, microbatches=4)["pipeline"]
    assert plain.across_nodes and plain.exposed == plain.seconds > 0
    virtual = run(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    assert sent(virtual, nodes=2, microbatches=4)["pipeline"].exposed == 0
