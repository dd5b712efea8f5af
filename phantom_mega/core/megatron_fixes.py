"""Corrections of megatron-core 0.19.2's distributed-optimizer checkpoints, on any device; each has a test.

`phantom_mega.core` applies them on import.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from multiprocessing.managers import SyncManager
from queue import Queue

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
from megatron.core.dist_checkpointing.strategies import filesystem_async, fully_parallel
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.optimizer import distrib_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from phantom_mega.processes import end_with_parent

_applied = False


def apply() -> None:
    """Apply all corrections once."""
    global _applied
    if _applied:
        return
    _applied = True
    _keep_padding_between_buckets()
    _write_shards_held_twice_once()
    _write_equal_metadata_for_equal_checkpoints()
    _end_result_server_with_the_run()
    if not distrib_optimizer.HAVE_APEX_OR_TE:
        _keep_torch_adamw_state()


def _keep_padding_between_buckets() -> None:
    """`fully_reshardable` state of a buffer with several buckets is saved shifted, its end as zeros.

    megatron gathers the state without the padding between buckets, then cuts out each parameter at its place in the
    padded buffer. Here the gathered state gets its padding back.
    """
    gather = DistributedOptimizer.get_parameter_state_dp_zero
    shard = DistributedOptimizer.sharded_param_state_fully_reshardable

    def gather_padded(self, *args, **kwargs):
        state = gather(self, *args, **kwargs)
        if state is None:
            return None
        for index, buffer in enumerate(self.buffers):
            for tensors in state[index].values():
                for key, compact in tensors.items():
                    if not isinstance(compact, torch.Tensor):
                        continue
                    padded, start = compact.new_zeros(buffer.numel), 0
                    for bucket in buffer.buckets:
                        part = compact[start : start + bucket.numel_unpadded]
                        padded[bucket.offset : bucket.offset + len(part)] = part
                        start += bucket.numel_unpadded
                    tensors[key] = padded
        return state

    @functools.wraps(shard)
    def shard_(self, *args, **kwargs):
        # On this optimizer for this call only: other checkpoint formats want the state without padding.
        self.get_parameter_state_dp_zero = functools.partial(gather_padded, self)
        try:
            return shard(self, *args, **kwargs)
        finally:
            del self.get_parameter_state_dp_zero

    DistributedOptimizer.sharded_param_state_fully_reshardable = shard_


def _write_shards_held_twice_once() -> None:
    """`FullyParallelSaveStrategyWrapper` refuses a rank that holds two copies of a tensor.

    With the interleaved schedule every chunk of a rank has the timestep embedder. When the wrapper shares writing out
    over data-parallel ranks, it appoints both copies of the chosen rank; here the second one stays a replica.
    """
    distribute = fully_parallel.distribute_main_replicas_with_precomputed_distribution

    @functools.wraps(distribute)
    def distribute_(sharded_state_dict, parallelization_group, precomputed_distribution):
        distribute(sharded_state_dict, parallelization_group, precomputed_distribution)
        appointed = set()
        for sharded in nested_values(sharded_state_dict):
            if isinstance(sharded, ShardedTensor) and is_main_replica(sharded.replica_id):
                shard = (sharded.key, sharded.global_offset)
                sharded.replica_id = int(shard in appointed)
                appointed.add(shard)

    fully_parallel.distribute_main_replicas_with_precomputed_distribution = distribute_


def _write_equal_metadata_for_equal_checkpoints() -> None:
    """torch notes a random number and the temporary folder's path in `.metadata`; nothing reads them."""
    FileSystemWriterAsync.storage_meta = lambda self: None


def _end_result_server_with_the_run() -> None:
    """megatron starts a server process for the results of checkpoint writers, which outlives a rank that is killed.

    Without CUDA it is forked: a spawned one costs seconds per rank and imports `__main__` anew.
    """

    @functools.cache
    def get_write_results_queue(mp_mode: str = "spawn") -> Queue:
        context = multiprocessing.get_context(mp_mode if torch.cuda.is_available() else "fork")
        manager = SyncManager(ctx=context)
        manager.start(end_with_parent, (os.getpid(),))
        return manager.Queue()

    filesystem_async.get_write_results_queue = get_write_results_queue


def _keep_torch_adamw_state() -> None:
    """Without TE and apex the optimizer is torch's AdamW, whose `step` megatron saves and loads wrongly."""
    cls = DistributedOptimizer
    state_dict, load_state_dict = cls.state_dict, cls.load_state_dict
    set_states = cls._set_main_param_and_optimizer_states

    @functools.wraps(state_dict)
    def state_dict_(self):
        # AdamW has no state before its first step; megatron reads state["step"] of every parameter.
        for group in self.optimizer.param_groups:
            for param in group["params"]:
                if not self.optimizer.state[param]:
                    moments = {key: torch.zeros_like(param) for key in ("exp_avg", "exp_avg_sq")}
                    self.optimizer.state[param] = {"step": torch.tensor(0.0), **moments}
        return state_dict(self)

    @functools.wraps(load_state_dict)
    def load_state_dict_(self, state):
        # Every parameter gets the same `step` tensor, so that one AdamW step would advance it once per parameter.
        load_state_dict(self, state)
        for param_state in self.optimizer.state.values():
            param_state["step"] = param_state["step"].clone()

    @torch.no_grad()  # fp32 main parameters are views of leaves
    def set_states_(self, model_param, tensors):
        # megatron copies every tensor of AdamW's state from the checkpoint, but "step" is stored with the group.
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        step = {"step": state["step"]} if "step" in state else {}
        return set_states(self, model_param, {**tensors, **step})

    cls.state_dict, cls.load_state_dict = state_dict_, load_state_dict_
    cls._set_main_param_and_optimizer_states = set_states_
