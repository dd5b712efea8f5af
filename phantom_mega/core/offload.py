"""Activation offload: what a block keeps for its backward pass waits in pinned host memory, not on the GPU.

megatron-core's own two ways do not fit: `cpu_offloading` is Transformer Engine's and refuses pipelines and recompute;
`fine_grained_activation_offloading` needs Transformer Engine and the same sequence of passes in every iteration, and
cannot run on a CPU. So: autograd's hooks for saved tensors, copies on two streams of their own (one a direction), and
one block of lookahead in the backward pass. With full recompute that is the recomputed blocks' inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks


@functools.cache
def _streams() -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Streams of copies to the host and back."""
    return torch.cuda.Stream(), torch.cuda.Stream()


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


class _Offloaded:
    """One storage in host memory, with all saved views of it.

    Whole storages are moved: views of one storage (q, k and v; both streams' parts of joint attention) are one copy,
    and come back with the strides that they had.
    """

    def __init__(self, storage: torch.UntypedStorage):
        self.device, self.device_storage = storage.device, storage
        source, compute = _bytes(storage), torch.cuda.current_stream()
        self.host = torch.empty(source.shape, dtype=torch.uint8, pin_memory=source.is_cuda)
        to_host, _ = _streams()
        to_host.wait_stream(compute)
        with torch.cuda.stream(to_host):
            self.host.copy_(source, non_blocking=True)

    def load(self) -> None:
        """Start the copy back. The memory belongs to the computing stream, which waits for the copy before it reads."""
        if self.device_storage is None:
            target = torch.empty(self.host.shape, dtype=torch.uint8, device=self.device)
            _, to_device = _streams()
            to_device.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(to_device):
                target.copy_(self.host, non_blocking=True)
            self.device_storage = target.untyped_storage()


class _Block:
    """What one block of one forward pass has offloaded.

    The handles belong to autograd's graph, which lets go of each once it is used; here they are listed until loaded.
    """

    def __init__(self):
        self.handles: dict[int, _Offloaded] = {}
        self.copied = torch.cuda.Event()
        self.loaded = torch.cuda.Event()

    def release(self) -> None:
        """Free the memory on the device; the computing stream may reuse it after the copies."""
        torch.cuda.current_stream().wait_event(self.copied)
        for handle in self.handles.values():
            handle.device_storage = None

    def load(self, _gradient: torch.Tensor | None = None) -> None:
        """Start all copies back, once; a hook of a gradient."""
        if self.handles:
            for handle in self.handles.values():
                handle.load()
            self.loaded.record(_streams()[1])
            self.handles = {}


class ActivationOffload:
    """Offload of the blocks of one forward pass of one model chunk.

    At most two offloaded blocks are on the device at a time: in the forward pass the one that runs and the one before,
    whose copies end meanwhile; in the backward pass the one that runs and the next.

    Args:
        module: its parameters and buffers stay, and what Transformer Engine caches of them.
        *inputs: dataclasses of tensors that live as long as the pass and so stay too.
    """

    def __init__(self, module: nn.Module, *inputs):
        resident = [*module.parameters(), *module.buffers(), *_cached_weights(module), *_tensors(inputs)]
        self._resident = {tensor.untyped_storage().data_ptr() for tensor in resident}
        self._device = resident[0].device
        self._running: _Block | None = None
        self._copying: _Block | None = None

    @contextlib.contextmanager
    def block(self) -> Iterator[None]:
        """What runs inside is offloaded. Call `computed` after it."""
        block = _Block()

        def pack(tensor: torch.Tensor):
            storage = tensor.untyped_storage()
            key = storage.data_ptr()
            # Random states are on the host as it is.
            if tensor.device != self._device or key in self._resident:
                return tensor
            if key not in block.handles:
                block.handles[key] = _Offloaded(storage)
            return block.handles[key], tensor.dtype, tensor.storage_offset(), tensor.size(), tensor.stride()

        def unpack(packed) -> torch.Tensor:
            if isinstance(packed, torch.Tensor):
                return packed
            handle, dtype, *view = packed
            block.load()  # for a gradient that did not come by way of the output
            torch.cuda.current_stream().wait_event(block.loaded)
            return torch.empty(0, dtype=dtype, device=handle.device).set_(handle.device_storage, *view)

        with saved_tensors_hooks(pack, unpack):
            yield
        block.copied.record(_streams()[0])
        self._running = block

    def computed(self, output: torch.Tensor) -> None:
        """After every block, offloaded or not, with its output: frees the block before, to be back one block ahead."""
        if self._copying is not None:
            self._copying.release()
        # Once the gradient of this output is known: itself, if no block behind it did that, then the block before.
        for block in (self._running, self._copying):
            if block is not None:
                output.register_hook(block.load)
        self._copying, self._running = self._running, None

    def finish(self) -> None:
        """After the last block: if it was offloaded, its memory is freed too."""
        if self._copying is not None:
            self._copying.release()
            self._copying = None


def _cached_weights(module: nn.Module) -> Iterator[torch.Tensor]:
    """Transformer Engine's 8-bit copies of weights: its linears have them from their first pass on.

    They are saved for every backward pass, and marked as what not to offload only if its own offload is on.
    """
    for each in module.modules():
        for copy in getattr(each, "_fp8_workspaces", {}).values():
            yield from (data for data in copy.get_data_tensors() if data is not None)


def _tensors(value) -> Iterator[torch.Tensor]:
    """All tensors in dataclasses and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        yield from _tensors(tuple(vars(value).values()))
    elif isinstance(value, tuple):
        for each in value:
            yield from _tensors(each)
