"""What a computation leaves in memory, measured without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Storages(TorchDispatchMode):
    """Remembers every storage that an operation made, without keeping it."""

    def __init__(self):
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int, torch.dtype]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._note((args, kwargs), made=False)
        result = func(*args, **(kwargs or {}))
        self._note(result, made=True)
        return result

    def _note(self, tensors, made: bool) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                known = self.made.get(storage.data_ptr())
                if known is None or known[0].expired():
                    # What was there before counts nothing, also where an operation returns a view of it.
                    self.made[storage.data_ptr()] = StorageWeakRef(storage), made * storage.nbytes(), tensor.dtype


def live_bytes(function: Callable[[], object]) -> tuple[object, int, int]:
    """Call `function`; its result, the bytes alive after it that it made, and of those the raw ones (dtype uint8).

    With autograd on, what is alive is the result and what the graph keeps; raw bytes are copies in host memory.
    """
    with _Storages() as storages:
        result = function()
    alive = [(nbytes, dtype) for ref, nbytes, dtype in storages.made.values() if not ref.expired()]
    raw = sum(nbytes for nbytes, dtype in alive if dtype == torch.uint8)
    return result, sum(nbytes for nbytes, _ in alive) - raw, raw
