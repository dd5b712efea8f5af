"""The flow loss on held-out samples: the same packs, noise and timesteps each time, of every run, on any layout.

Noise is a function of the sample's key, timesteps are a small grid, and nothing is dropped; so two losses of the same
samples and sizes differ by the weights alone. For rectified flow such a loss goes with the quality of what is generated
(Esser et al. 2024, arXiv 2403.03206).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from phantom_mega.conditioning.ahead import encode_next
from phantom_mega.conditioning.head import InputHead, SampleFeatures
from phantom_mega.conditioning.share import exchange
from phantom_mega.config import RunConfig
from phantom_mega.core.schedule import Microbatch, forward_backward
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.loader import PackLoader
from phantom_mega.data.plan import Pack, PackPlan, PlannedSample
from phantom_mega.data.shards import ShardReader
from phantom_mega.errors import UserError
from phantom_mega.training.batch import build_batch
from phantom_mega.training.draws import SampleDraws, generator_for
from phantom_mega.training.source import BatchSource

# Not the run's: runs of different seeds are compared on the same numbers.
SEED = 0


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean squared error of the velocity per video token, over all ranks.

    Attributes:
        loss: over all timesteps.
        loss_per_timestep: timestep -> loss over the same tokens.
        video_tokens: tokens of one timestep.
        bad_samples: held-out samples that could not be read; they count nowhere.
    """

    loss: float
    loss_per_timestep: dict[float, float]
    video_tokens: int
    bad_samples: int


class FixedPacks:
    """The first packs of a plan's first epoch, over and over: what a `PackLoader` reads of a plan.

    Args:
        plan: of the held-out samples.
        count: packs to take; there may be fewer.
    """

    def __init__(self, plan: PackPlan, count: int):
        self.index, self._packs = plan.index, plan.packs(0)[:count]

    def __len__(self) -> int:
        return len(self._packs)

    def __iter__(self) -> Iterator[Pack]:
        return iter(self._packs)

    def locate(self, position: int) -> tuple[int, Pack]:
        """(0, pack) of a position; after the last pack comes the first."""
        return 0, self._packs[position % len(self._packs)]


class HeldOutSet:
    """The held-out packs of this rank, encoded once and kept in host memory.

    Args:
        config: `data.valid_index_path` and `train.eval_iters`, `train.eval_timesteps`; sizes are those of training.
        source: of the training batches, whose encoders are used where it has them.

    Attributes:
        plan: of all held-out samples.
        packs: the packs that count, of all ranks.

    Raises:
        UserError: the data set cannot be used.
    """

    def __init__(self, config: RunConfig, source: BatchSource):
        self.config, self.source = config, source
        try:
            index = TripletIndex.open(config.data.valid_index_path)
            self.plan = PackPlan(
                index, config.data, config.model, config.conditioning.clip_tokens, SEED, len(source.empty_text)
            )
        except UserError as error:
            raise UserError(f"data.valid_index_path: {error}") from None
        self.packs = FixedPacks(self.plan, config.train.eval_iters)
        # Every rank passes as many packs through the pipeline, in the interleaved schedule a multiple of its stages.
        stages = config.parallel.pipeline_model_parallel_size
        group = stages if config.parallel.virtual_pipeline_model_parallel_size else 1
        self._per_rank = group * math.ceil(len(self.packs) / source.dp_size / group)
        self._encoded: list[tuple[Pack, list[SampleFeatures]]] = []
        self.bad_samples = 0

    def also_trained_on(self) -> int:
        """Held-out samples whose keys are in the training index too."""
        return int(np.isin(self.plan.index.key_hashes, self.source.index.key_hashes).sum())

    def encode(self, progress: Callable[[str], None]) -> None:
        """Decode and encode this rank's packs, before any other thread uses the encoders; a collective call.

        Raises:
            UserError: none of the samples can be read, or captions were counted by another tokenizer.
            DataWorkerError: the data worker is stuck or gone.
        """
        source = self.source
        head = source.head or InputHead(self.config, source.device)
        loader = PackLoader(
            self.packs, ShardReader(self.plan.index), self.config.data,
            data_parallel_rank=source.dp_rank, data_parallel_size=source.dp_size,
            model_parallel_rank=source.mp_rank, model_parallel_size=source.mp_size,
            global_batch_size=source.dp_size, device=source.device,
        )  # fmt: skip
        own, encoded = 0, []
        with contextlib.closing(loader):
            for number in range(self._per_rank):
                progress(f"encoding held-out pack {number + 1} of {self._per_rank}")
                share = encode_next(loader, head, source.group)
                for error in share.errors if self._counts(number) else ():
                    print(f"bad held-out sample, skipped: {error}", flush=True)
                features = exchange(share.pack, share.own, head.dims, source.group, source.device)
                own += sum(not one.valid for one in features) * self._counts(number)
                encoded.append((share.pack, [_moved(one, torch.device("cpu")) for one in features]))
        if source.head is None and source.device.type == "cuda":
            # A run on cached features has no room planned for encoders: they leave again.
            del head
            torch.cuda.empty_cache()
        total = torch.tensor(float(own), device=source.device)
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        self._encoded, self.bad_samples = encoded, round(total.item())
        if self.bad_samples == sum(map(len, self.packs)):
            raise UserError("data.valid_index_path: none of its samples can be read; mend the shards named above")

    def _counts(self, number: int) -> bool:
        """Whether the rank's pack of this number is one of the packs, not there to fill up a rank."""
        return self.source.dp_rank + number * self.source.dp_size < len(self.packs)

    def microbatches(self, timestep: float) -> list[Microbatch]:
        """This rank's packs, all samples noised to one timestep."""
        source, made = self.source, []
        for number, (pack, features) in enumerate(self._encoded):
            on_device = [_moved(one, source.device) for one in features]
            batch = build_batch(
                pack, on_device, source.empty_text, self.config, source.device, source.dtype,
                draw=lambda sample, shape, config: held_out_draws(sample, shape, timestep),
            )  # fmt: skip
            made.append((batch.inputs, batch.target, batch.weight * self._counts(number)))
        return made

    def loss(self, wrapped: list[torch.nn.Module], core_config, proceed: Callable[[str], bool]) -> HeldOutLoss | None:
        """Forward passes alone, one timestep after the other; a collective call.

        Args:
            wrapped: this rank's chunks, with up-to-date weights; left as they are (`untouched`).
            core_config: their configuration.
            proceed: is told what comes next, on every rank; False on all of them ends the evaluation.

        Returns:
            The loss, equal on all ranks; None where it was ended.
        """
        sums, tokens = {}, 0
        with untouched(wrapped, core_config):
            for timestep in self.config.train.eval_timesteps:
                if not proceed(f"evaluating held-out samples at timestep {timestep:g}"):
                    return None
                stats = forward_backward(wrapped, self.microbatches(timestep), core_config, forward_only=True)
                sums[timestep], tokens = stats.loss_sum, stats.num_tokens
        per_timestep = {timestep: total / tokens for timestep, total in sums.items()}
        return HeldOutLoss(sum(per_timestep.values()) / len(sums), per_timestep, tokens, self.bad_samples)


def held_out_draws(sample: PlannedSample, latent_shape: tuple[int, ...], timestep: float) -> SampleDraws:
    """Noise by the sample's key, the same at every timestep; nothing is dropped."""
    noise = torch.randn(latent_shape, generator=generator_for(SEED, sample.key, "held out"))
    return SampleDraws(noise, timestep, drop_text=False, drop_latents=False, drop_clip=False)


@contextlib.contextmanager
def untouched(wrapped: list[torch.nn.Module], core_config) -> Iterator[None]:
    """Evaluation mode without gradients; what training reads is afterwards as it was before.

    Under FP8 the blocks compute in bf16: delayed scaling would otherwise take maxima of held-out samples into its
    history, and losses of runs with and without FP8 could not be compared.
    """
    modes = [(module, module.training) for chunk in wrapped for module in chunk.modules()]
    fp8, core_config.fp8 = core_config.fp8, None
    for chunk in wrapped:
        chunk.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        core_config.fp8 = fp8
        for module, training in modes:
            module.training = training


def _moved(features: SampleFeatures, device: torch.device) -> SampleFeatures:
    return dataclasses.replace(
        features,
        **{field: getattr(features, field).to(device) for field in ("latents", "reference_latents", "text", "clip")},
    )
