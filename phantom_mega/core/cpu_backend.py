"""Makes megatron-core run on CPU over gloo.

megatron-core has no CPU mode, yet its tensor, sequence, pipeline and data parallelism need CUDA only for device
queries, streams and literal "cuda" devices. `install()` redirects those where no GPU exists; `phantom_mega.core` calls
it on import, before any module of this project touches megatron.
"""

from __future__ import annotations

import contextlib
import functools
import logging

import torch
import torch.utils._device

_CPU = torch.device("cpu")
# Factories that megatron-core calls with device="cuda" on the code paths of this project.
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "zeros_like", "empty_like", "full_like")
_installed = False


def install() -> None:
    """Apply all patches once; nothing is touched where CUDA is available."""
    global _installed
    if _installed or torch.cuda.is_available():
        return
    _installed = True
    # At import dynamo tabulates torch functions and megatron compiles (jit_fuser): both must see the originals.
    from megatron.core import dist_checkpointing, distributed, optimizer, pipeline_parallel  # noqa: F401
    from torch import _dynamo  # noqa: F401

    _redirect_device_queries()
    _redirect_random_state()
    _redirect_literal_devices()
    _redirect_streams()


def _ignore():
    """A new no-op per symbol: dynamo keys its rules by function identity."""
    return lambda *args, **kwargs: None


def _redirect_device_queries() -> None:
    # Nearly every buffer is allocated with device=torch.cuda.current_device().
    torch.cuda.current_device = lambda: _CPU
    for name in ("synchronize", "set_device", "empty_cache", "reset_peak_memory_stats"):
        setattr(torch.cuda, name, _ignore())


def _redirect_random_state() -> None:
    """The RNG tracker and activation recompute save and restore "the GPU's" generator: there is only the CPU's."""
    import megatron.core.tensor_parallel.random as megatron_random

    for module in (torch.cuda, torch.cuda.random):
        module.get_rng_state = lambda device=None: torch.get_rng_state()
        module.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
        module.manual_seed = lambda seed: torch.default_generator.manual_seed(seed) and None
        module.manual_seed_all = _ignore()  # torch.manual_seed calls it
    megatron_random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    # It warns that the CPU generator changed inside a fork; here that is the point.
    logging.getLogger(megatron_random.__name__).addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )


def _to_cpu(device):
    """ "cuda", "cuda:1" and CUDA devices become the CPU; anything else stays."""
    if isinstance(device, torch.device):
        return _CPU if device.type == "cuda" else device
    return _CPU if isinstance(device, str) and device.split(":")[0] == "cuda" else device


def _redirect_literal_devices() -> None:
    def on_cpu(factory):
        @functools.wraps(factory)
        def wrapped(*args, **kwargs):
            if "device" in kwargs:
                kwargs["device"] = _to_cpu(kwargs["device"])
            return factory(*args, **kwargs)

        return wrapped

    # `with torch.device("meta")` knows the factories by identity and lists them at its first use: it must list the
    # originals, or models of other libraries are built half on CPU (transformers then leaves buffers uninitialized).
    torch.utils._device._device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, on_cpu(getattr(torch, name)))
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    # The optimizers sort parameters by their type string and know only 'torch.cuda.*Tensor'.
    tensor_type = torch.Tensor.type

    def type_(self, *args, **kwargs):
        name = tensor_type(self, *args, **kwargs)
        bare_query = not args and not kwargs and not name.startswith("torch.cuda.")
        return name.replace("torch.", "torch.cuda.", 1) if bare_query else name

    torch.Tensor.type = type_


class _Stream:
    """Everything is synchronous on a CPU: a stream orders nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def _nothing(self, *args, **kwargs):
        return None

    wait_stream = wait_event = synchronize = record = wait = _nothing

    def record_event(self, event=None):
        return event or _Stream()

    def query(self) -> bool:
        return True


def _redirect_streams() -> None:
    """DDP's gradient reduction and the checkpoint's staging order their work by streams and events."""
    torch.cuda.Stream = torch.cuda.Event = _Stream
    torch.cuda.current_stream = torch.cuda.default_stream = lambda *args, **kwargs: _Stream()
    torch.cuda.stream = lambda stream: contextlib.nullcontext()
    torch.Tensor.record_stream = _ignore()
