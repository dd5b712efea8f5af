"""What the GPUs of a layout send to each other in one iteration, over which link, and how much of it nobody waits for.

Ranks are in megatron's order tp-cp-dp-pp: tensor-parallel peers are neighbours, stages are farthest apart. A
collective over n ranks sends (n - 1) / n of the whole from each; rings over r ranks of a node use its r adapters.
"""

from __future__ import annotations

from dataclasses import dataclass

from phantom_mega.config import RunConfig
from phantom_mega.parallel_layout import layers_per_chunk
from phantom_mega.planner.gpus import LINK_EFFICIENCY, Gpu
from phantom_mega.planner.memory import recomputed_modules
from phantom_mega.planner.parameters import stage_parameters

GIGA = 1e9


@dataclass(frozen=True)
class Cluster:
    """Machines.

    Attributes:
        gpu: their kind.
        nodes: number of nodes.
        gpus_per_node: GPUs of each.
    """

    gpu: Gpu
    nodes: int
    gpus_per_node: int = 8

    @property
    def world_size(self) -> int:
        """All GPUs."""
        return self.nodes * self.gpus_per_node

    def in_node(self, size: int, stride: int) -> int:
        """Ranks of a group on one node; a group has `size` ranks, `stride` apart."""
        return max(1, min(size, self.gpus_per_node // stride))

    def ring(self, size: int, stride: int) -> float:
        """Bytes a second of an all-gather or reduce-scatter for each rank."""
        here = self.in_node(size, stride)
        link = self.gpu.nvlink if here == size else min(self.gpu.nvlink, here * self.gpu.network)
        return link * GIGA * LINK_EFFICIENCY

    def exchange(self, size: int, stride: int) -> float:
        """Bytes a second of an all-to-all for each rank: what leaves the node goes through the rank's own adapter."""
        here = self.in_node(size, stride)
        if here == size:
            return self.gpu.nvlink * GIGA * LINK_EFFICIENCY
        return self.gpu.network * GIGA * LINK_EFFICIENCY * (size - 1) / (size - here)


@dataclass(frozen=True)
class Transfer:
    """What one GPU sends for one purpose in one iteration.

    Attributes:
        name: purpose.
        size: bytes sent.
        seconds: how long it takes alone.
        exposed: seconds of it that the GPU's computation waits for.
        across_nodes: whether the group spans nodes.
    """

    name: str
    size: float
    seconds: float
    exposed: float
    across_nodes: bool


def _passes(config: RunConfig) -> tuple[float, float]:
    """(forward passes of a block in one iteration of it, forward passes of its attention): more when recomputed."""
    parallel, modules = config.parallel, recomputed_modules(config.parallel)
    if parallel.recompute_granularity == "full":
        layers = layers_per_chunk(config.model, parallel)
        again = (parallel.recompute_num_layers or layers) / layers
        return 1 + again, 1 + again
    return 1 + 0.5 * ("mlp" in modules), 1 + ("core_attn" in modules)


def transfers(
    config: RunConfig, cluster: Cluster, data_parallel: int, microbatches: int, backward_seconds: float
) -> list[Transfer]:
    """Everything that one GPU of the first stage sends.

    Tensor parallelism sends, per layer, stream and forward pass, the tokens of two all-gathers and two reduce-scatters
    (or two all-reduces, as much); the backward pass the same, and two more all-gathers of linear layers' inputs with
    sequence parallelism. In the backward pass half of them run beside the weights' gradients (megatron-core). Context
    parallelism: `core.context_parallel`. Gradients are reduced in fp32, weights gathered in the model's type.

    Args:
        config: the run.
        cluster: machines.
        data_parallel: replicas.
        microbatches: packs of an iteration on one replica.
        backward_seconds: of one microbatch on one stage, behind which overlapped reduction hides.
    """
    model, parallel, data = config.model, config.parallel, config.data
    tp, cp, pp = (
        parallel.tensor_model_parallel_size, parallel.context_parallel_size, parallel.pipeline_model_parallel_size
    )  # fmt: skip
    e, C, joint = 2 if config.precision.bf16 else 4, model.hidden_size, data.seq_length + data.text_seq_length
    layers, found = model.num_layers / pp * microbatches, []
    forward, attention = _passes(config)
    if tp > 1:
        one = e * joint / cp * C * (tp - 1) / tp * layers
        backward = 6 if parallel.sequence_parallel else 4
        rate = cluster.ring(tp, 1)
        found.append(
            Transfer("tensor parallel", one * (4 * forward + backward), one * (4 * forward + backward) / rate,
                     one * (4 * forward + 2) / rate, cluster.in_node(tp, 1) < tp)
        )  # fmt: skip
    if cp > 1:
        one = 4 * e * joint / cp * C / tp * (cp - 1) / cp * layers
        size, rate = one * (attention + 1), cluster.exchange(cp, tp)
        found.append(Transfer("context parallel", size, size / rate, size / rate, cluster.in_node(cp, tp) < cp))
    if pp > 1:
        chunks = parallel.virtual_pipeline_model_parallel_size or 1
        split = cp * tp if parallel.sequence_parallel else cp
        size = 2 * e * joint / split * C * microbatches * chunks
        across = cluster.world_size // pp * (pp - 1) >= cluster.gpus_per_node
        link = cluster.gpu.network if across else cluster.gpu.nvlink
        seconds = size / (link * GIGA * LINK_EFFICIENCY)
        # The interleaved schedule sends while it computes.
        found.append(Transfer("pipeline", size, seconds, 0.0 if chunks > 1 else seconds, across))
    shards = data_parallel * cp
    if shards > 1:
        count, rate = stage_parameters(model, parallel, 0), cluster.ring(shards, tp)
        across = cluster.in_node(shards, tp) < shards
        for name, width, hidden, behind in (
            ("gradient reduction", 4, parallel.overlap_grad_reduce, backward_seconds),
            ("weight gathering", e, parallel.overlap_param_gather, backward_seconds / 2),
        ):
            size = count * width * (shards - 1) / shards
            seconds = size / rate
            found.append(Transfer(name, size, seconds, max(0.0, seconds - behind) if hidden else seconds, across))
    return found
