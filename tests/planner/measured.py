"""What a computation keeps in memory and takes at its peak, counted storage by storage, without a GPU.

Megatron's ranks and its sizes of real runs are there without processes or memory: collectives of torch's fake backend
do nothing but return tensors of the right sizes, fake tensors hold no data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from phantom_mega.core import fused


class Storages(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, as long as they live.

    Args:
        resident: tensors that were there before, and whose views are not counted.

    Attributes:
        peak: most bytes alive after any operation.
        collectives: bytes that each collective operation takes in.
    """

    def __init__(self, resident: Iterable[torch.Tensor] = ()):
        super().__init__()
        self._resident = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in resident}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self._inside = 0
        self.peak = 0
        self.collectives: dict[str, int] = {}

    def live(self) -> int:
        """Bytes alive now."""
        self._made = {key: entry for key, entry in self._made.items() if not entry[0].expired()}
        return sum(size for _, size in self._made.values())

    def _note(self, result: object) -> None:
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                if reference.cdata not in self._resident:
                    self._made[reference.cdata] = reference, tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, self.live())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "c10d" in str(func):
            name, inputs = str(func).split(".")[1], args[0] if "allreduce" in str(func) else args[1]
            for sent in inputs if isinstance(inputs, list) else [inputs]:
                self.collectives[name] = self.collectives.get(name, 0) + sent.numel() * sent.element_size()
        if not self._inside:
            self._note(result)
        return result

    def kernel(self, function: Callable) -> Callable:
        """`function` as one kernel: nothing that it makes on the way counts, as on a GPU, where it is compiled."""

        @functools.wraps(function)
        def call(*args):
            self._inside += 1
            try:
                result = function(*args)
            finally:
                self._inside -= 1
            self._note(result)
            return result

        return call

    def compiled(self, monkeypatch) -> None:
        """Every function that `core.fused` compiles on a GPU counts as one kernel."""
        for name, function in vars(fused).items():
            if hasattr(function, "__wrapped__") and function.__module__ == fused.__name__:
                monkeypatch.setattr(fused, name, self.kernel(function))


class OneCall(torch.autograd.Function):
    """Attention over all windows' rows with the memory of one variable-length flash attention, not its values."""

    @staticmethod
    def forward(ctx, q, k, v):
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx, grad):
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])
