"""Selective recompute: what autograd does not keep, because the backward pass can cheaply compute it again.

megatron-core's `CheckpointWithoutOutput` does the same by emptying a tensor's storage and filling it again in a
gradient hook, for which it builds a C++ extension in the first backward pass: every node then needs a compiler and
ninja, and everything that reads the tensor must be known. Autograd's own hooks for saved tensors do it without either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.autograd.graph import saved_tensors_hooks


@contextlib.contextmanager
def dropped(output: torch.Tensor) -> Iterator[None]:
    """What runs inside does not keep `output` for its backward pass: it is then computed again from its own inputs.

    All else is kept as it would be outside, also in host memory (`offload`): an 8-bit copy that Transformer Engine
    makes of `output` is one such tensor.

    Args:
        output: of a function of `fused` that leaves `again` in its context: from what it saved to its output.
    """
    node, storage = output.grad_fn, output.untyped_storage().data_ptr()
    if node is None:  # nothing is saved
        yield
        return

    # Autograd calls the innermost hooks alone.
    outer_pack, outer_unpack = torch._C._autograd._top_saved_tensors_default_hooks(False) or (_same, _same)

    def pack(tensor: torch.Tensor):
        if tensor.untyped_storage().data_ptr() != storage:
            return False, outer_pack(tensor)
        return True, (tensor.size(), tensor.stride(), tensor.storage_offset())

    def unpack(packed) -> torch.Tensor:
        is_dropped, kept = packed
        return node.again(node.saved_tensors).as_strided(*kept) if is_dropped else outer_unpack(kept)

    with saved_tensors_hooks(pack, unpack):
        yield


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
