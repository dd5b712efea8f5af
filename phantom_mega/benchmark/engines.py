"""A model with all that a training step needs, and where its tensors wait while another is measured.

Ours and the peers are chunks of the same schedule, with the same loss, gradient buffers, clipping and AdamW: what
differs is the model alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import torch
from megatron.core.transformer import MegatronModule

from phantom_mega.benchmark.timing import Clock
from phantom_mega.config import ModelConfig, OptimizerConfig, ParallelConfig, PrecisionConfig, RunConfig, TrainConfig
from phantom_mega.core.build import build_model, wrap_ddp
from phantom_mega.core.convert import load_hf
from phantom_mega.core.parallel_config import transformer_config
from phantom_mega.core.schedule import Microbatch, forward_backward
from phantom_mega.packs import PackInputs
from phantom_mega.training.optimizer import apply_update, build_optimizer, gradient_norm


class Engine:
    """One chunk, its gradient buffers and its optimizer, on one rank.

    Args:
        chunk: the model, with `config`.
        run: its settings.
    """

    def __init__(self, chunk: MegatronModule, run: RunConfig):
        self.chunk, self.run, self.config = chunk, run, chunk.config
        self.wrapped = wrap_ddp([chunk], self.config, run.parallel)
        self.optimizer = build_optimizer(self.wrapped, run)
        self._host: list[torch.Tensor] = []
        self._parked: list[torch.UntypedStorage] = []
        self._emptied: list[tuple[torch.UntypedStorage, int]] = []

    @property
    def parameters(self) -> int:
        """Trained parameters."""
        return sum(param.numel() for param in self.chunk.parameters() if param.requires_grad)

    @property
    def optimizer_name(self) -> str:
        """Class of the innermost optimizer, with its module."""
        kind = type(self.optimizer.chained_optimizers[0].optimizer)
        return f"{kind.__module__}.{kind.__qualname__}"

    def forward(self, inputs: PackInputs) -> torch.Tensor:
        """Velocity [S, 4 * latent_channels] of a pack; as in a step, so that nothing is compiled for this alone."""
        return self.chunk(inputs).detach()

    def step(self, batch: Microbatch, clock: Clock) -> list:
        """Forward, loss, backward; global norm, clipping, AdamW. Returns marks of the clock: start, between, end."""
        marks = [clock.mark()]
        self.wrapped[0].zero_grad_buffer()
        self.optimizer.zero_grad()
        forward_backward(self.wrapped, [batch], self.config)
        marks.append(clock.mark())
        apply_update(self.optimizer, gradient_norm(self.optimizer), self.run.optimizer.clip_grad)
        marks.append(clock.mark())
        return marks

    def _kept(self) -> Iterator[torch.Tensor]:
        """What has to survive parking: weights, fp32 copies, moments; not gradients, which every step clears first."""
        yield from self.chunk.parameters()
        yield from self.chunk.buffers()
        for part in self.optimizer.chained_optimizers:
            for group in part.optimizer.param_groups:
                yield from group["params"]
            for state in part.optimizer.state.values():
                yield from (value for value in state.values() if torch.is_tensor(value))

    def park(self) -> None:
        """Move everything to host memory and free the device's; views of it are valid again after `unpark`."""
        self.optimizer.zero_grad()
        for module in self.chunk.modules():
            # Transformer Engine's quantized weights, made anew in the next step: they would count as others' memory.
            getattr(module, "_fp8_workspaces", {}).clear()
        self._parked = _storages(self._kept())
        gradients = _storages(buffer.grad_data for buffer in self.wrapped[0].buffers)
        self._emptied = [(storage, storage.nbytes()) for storage in self._parked + gradients]
        missing = sum(storage.nbytes() for storage in self._parked) - _PIECE * len(self._host)
        self._host += [_host_piece() for _ in range(-(-missing // _PIECE))]
        self._copy(to_host=True)
        for storage, _ in self._emptied:
            storage.resize_(0)
        torch.cuda.empty_cache()

    def unpark(self) -> None:
        """Bring everything back; the host memory is kept for the next time."""
        for storage, nbytes in self._emptied:
            storage.resize_(nbytes)
        self._copy(to_host=False)
        self._emptied, self._parked = [], []

    def _copy(self, to_host: bool) -> None:
        """Between the parked storages, one after another, and the pieces of host memory."""
        position = 0
        for storage in self._parked:
            data = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            while len(data):
                piece, at = divmod(position, _PIECE)
                count = min(len(data), _PIECE - at)
                here, there = data[:count], self._host[piece][at : at + count]
                there.copy_(here, non_blocking=True) if to_host else here.copy_(there, non_blocking=True)
                data, position = data[count:], position + count
        torch.cuda.synchronize()


# Bytes. A power of two: torch rounds pinned memory up to one.
_PIECE = 1 << 28


def _host_piece() -> torch.Tensor:
    return torch.empty(_PIECE, dtype=torch.uint8, pin_memory=torch.cuda.is_available())


def _storages(tensors: Iterable[torch.Tensor]) -> list[torch.UntypedStorage]:
    """The device memory behind the tensors, each once; on a CPU all is host memory already, and counts as well."""
    device = torch.cuda.current_device()
    kind = device.type if isinstance(device, torch.device) else "cuda"
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.device.type == kind:
            found[storage._cdata] = storage
    return list(found.values())


def ours(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig, weights: dict[str, torch.Tensor]
) -> Engine:
    """This project's model with the given weights (by the plain model's names)."""
    chunks = build_model(model, parallel, precision, seed=0)
    load_hf(chunks, weights)
    return Engine(chunks[0], _run_config(model, parallel, precision))


def peer(
    model: ModelConfig, precision: PrecisionConfig, weights: dict[str, torch.Tensor], device: torch.device
) -> Engine:
    """Diffusers' stock transformer with the same weights."""
    from phantom_mega.benchmark.peers import DiffusersPeer

    parallel = ParallelConfig(transformer_impl="local")
    chunk = DiffusersPeer(transformer_config(model, parallel, precision), model, weights, device)
    return Engine(chunk, _run_config(model, parallel, precision))


def fp8_precision(recipe: str | None) -> PrecisionConfig:
    """BF16 with the blocks' linears in FP8; None takes the configuration's recipe."""
    precision = PrecisionConfig(bf16=True, fp8="hybrid")
    return dataclasses.replace(precision, fp8_recipe=recipe) if recipe else precision


def _run_config(model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig) -> RunConfig:
    return RunConfig(
        model=model,
        parallel=parallel,
        precision=precision,
        optimizer=OptimizerConfig(lr=1e-5, clip_grad=1.0, weight_decay=0.01),
        train=TrainConfig(ema_decay=0.0),
    )
