"""Sample videos of held-out subjects while training goes on: generated, written, measured.

The weights, averaged ones where there are any, are put together tensor by tensor in the host memory of a few ranks, as
many as there are videos; each makes its videos by the pipeline that users generate with, and the others wait in step.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from phantom_mega.conditioning.head import InputHead
from phantom_mega.config import RunConfig, model_arguments
from phantom_mega.core.convert import core_to_hf
from phantom_mega.data.decode import read_references
from phantom_mega.data.plan import PackPlan, PlannedSample
from phantom_mega.data.shards import ShardReader
from phantom_mega.errors import UserError
from phantom_mega.evaluation.metric import Item, Measured, Metric
from phantom_mega.files import hidden_folder, publish_folder, whole_file
from phantom_mega.generation.load import make_scheduler, pipeline_settings
from phantom_mega.generation.video import animation, video_card, write_mp4
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.hf.pipeline_phantom import PhantomPipeline
from phantom_mega.training.collective import Pulse, in_turn, on_first_rank, on_some_ranks
from phantom_mega.training.draws import generator_for
from phantom_mega.training.held_out import SEED
from phantom_mega.training.optimizer import averages
from phantom_mega.training.sample_metrics import find_metrics, load_metrics
from phantom_mega.training.source import BatchSource

RECORD = "samples.json"


class StoppedError(Exception):
    """A rank was told to stop while videos were being made."""


@dataclass(frozen=True)
class SampleVideo:
    """One video, made or failed.

    Attributes:
        id: the held-out sample's key.
        prompt: its caption.
        measured: metric -> what it says.
        problems: why it or one of its metrics failed.
        card: PNG of references and frames; empty where it failed.
        preview: animated GIF.
    """

    id: str
    prompt: str = ""
    measured: dict[str, Measured] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    card: bytes = b""
    preview: bytes = b""

    def record(self) -> dict:
        """What `samples.json` and `eval.jsonl` say of it."""
        measured = {name: dataclasses.asdict(found) for name, found in self.measured.items()}
        return {"id": self.id, "prompt": self.prompt, "metrics": measured, "problems": list(self.problems)}


@dataclass(frozen=True)
class Samples:
    """All videos of one evaluation.

    Attributes:
        weights: `ema` or `raw`.
        videos: in the order of the cases.
        folder: where their files are, or None.
    """

    weights: str
    videos: list[SampleVideo]
    folder: Path | None = None

    def means(self) -> dict[str, float]:
        """Metric -> mean over the videos that were made; what was missing in one counts as the metric says."""
        names = dict.fromkeys(name for video in self.videos for name in video.measured)
        values = {name: [v.measured[name].value for v in self.videos if name in v.measured] for name in names}
        return {name: float(np.mean(found)) for name, found in values.items()}


def choose_cases(plan: PackPlan, count: int) -> list[PlannedSample]:
    """The first samples of the plan that are videos with references; the same ones at every call."""
    chosen = []
    for pack in plan.packs(0):
        chosen += [sample for sample in pack if sample.references and sample.num_frames > 1]
        if len(chosen) >= count:
            break
    return chosen[:count]


def spread(count: int, world: int) -> list[int]:
    """As many ranks as there are videos, far from one another: host memory holds the model once for each."""
    ranks = min(count, world)
    return [i * world // ranks for i in range(ranks)]


class SampleVideos:
    """Makes the sample videos of a run.

    Args:
        config: of the run.
        plan: of the held-out samples.
        source: has the encoders, unless features are cached: they are then loaded for each evaluation.

    Attributes:
        cases: what is generated.
        ranks: which ranks do.

    Raises:
        UserError: no held-out sample is a video with references, or a metric cannot be loaded.
    """

    def __init__(self, config: RunConfig, plan: PackPlan, source: BatchSource):
        self.config, self.source, self.plan = config, source, plan
        self.cases = choose_cases(plan, config.train.eval_videos)
        if not self.cases:
            raise UserError(
                "data.valid_index_path: no sample of it is a video with references, as sample videos need; "
                "set train.eval_videos=0"
            )
        self.ranks = spread(len(self.cases), dist.get_world_size())
        self.makes = dist.get_rank() in self.ranks
        find_metrics(config.train.eval_metrics)
        tower = source.head.vision if source.head else None
        self.metrics: list[Metric] = on_some_ranks(
            lambda: load_metrics(config.train.eval_metrics, config, source.device, tower), self.makes
        ) or []  # fmt: skip

    @property
    def weights(self) -> str:
        """Which weights make the videos."""
        return "ema" if self.config.train.ema_decay > 0 else "raw"

    def make(self, chunks: list, optimizer, target: Path | None, pulse: Pulse) -> Samples | None:
        """Generate, write and measure all of them; a collective call.

        Args:
            chunks: this rank's model chunks, with up-to-date weights.
            optimizer: holds the averages.
            target: folder of the files, which gets this name when all are there; None writes none.
            pulse: between the ranks.

        Returns:
            All videos, on every rank; None where the run was told to stop, and then nothing is written.

        Raises:
            UserError: the folder cannot be written to.
        """
        value = averages(optimizer) if self.weights == "ema" else lambda param: param.data
        state = core_to_hf(chunks, value, ranks=self.ranks, dtype=self.source.dtype)
        temporary = on_first_rank(lambda: hidden_folder(target)) if target else None
        own: list[SampleVideo] = []
        if self.makes:
            mine = self.cases[self.ranks.index(dist.get_rank()) :: len(self.ranks)]
            own = self._videos(mine, state, temporary, pulse)
        del state
        pulse.rest()
        if pulse.stopped:
            on_first_rank(lambda: shutil.rmtree(temporary, ignore_errors=True) if temporary else None)
            return None
        made = {video.id: video for videos in in_turn(self.ranks, own) for video in videos}
        samples = Samples(self.weights, [made[case.key] for case in self.cases], target)
        if temporary:
            on_first_rank(lambda: _publish(samples, temporary, target))
        return samples

    def _videos(self, cases: list[PlannedSample], state: dict, folder: Path | None, pulse: Pulse) -> list[SampleVideo]:
        """This rank's videos; whatever fails is told and ends nothing."""
        made: list[SampleVideo] = []
        try:
            pipe = self._pipeline(state)
            made += [self._video(pipe, case, folder, pulse) for case in cases]
        except StoppedError:
            return []
        except Exception as error:  # no pipeline: out of memory, an encoder that is gone
            made = [SampleVideo(case.key, problems=(_reason(error),)) for case in cases]
        finally:
            if self.source.device.type == "cuda":
                pipe = None
                torch.cuda.empty_cache()
        return made

    def _pipeline(self, state: dict[str, torch.Tensor]) -> PhantomPipeline:
        with torch.device("meta"):
            model = PhantomTransformer3DModel(**model_arguments(self.config.model))
        model.load_state_dict(state, strict=True, assign=True)
        model = model.to(self.source.device)
        state.clear()  # on a GPU the weights need not stay in host memory too
        pipe = PhantomPipeline(
            model.eval(), make_scheduler(),
            **_encoders(self.source.head), **pipeline_settings(self.config),
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _video(self, pipe: PhantomPipeline, case: PlannedSample, folder: Path | None, pulse: Pulse) -> SampleVideo:
        """One video; a failure is part of the result.

        Raises:
            StoppedError: the run was told to stop.
        """

        def beat() -> None:
            pulse.beat(True)
            if pulse.stopped:
                raise StoppedError

        def step(pipe, number, timestep, given) -> dict:
            beat()
            return given

        try:
            raw = ShardReader(self.plan.index).read(case.row)
            references = read_references(case, raw)
            frames = pipe(
                raw.triplet.caption, references, height=case.height, width=case.width, num_frames=case.num_frames,
                num_inference_steps=self.config.train.eval_video_steps, output_type="np",
                generator=generator_for(SEED, case.key, "sample video"), callback_on_step_end=step,
            ).frames[0]  # fmt: skip
            frames = (frames * 255).round().astype(np.uint8)
            labels = tuple(raw.triplet.references[number].phrase for number in case.references)
            fps = self.config.data.frame_rate
            item = Item(case.key, frames, fps, raw.triplet.caption, tuple(references), labels)
            card, preview = _write(item, folder)
        except StoppedError:
            raise
        except Exception as error:
            return SampleVideo(case.key, problems=(_reason(error),))
        measured, problems = {}, []
        for metric in self.metrics:
            beat()
            try:
                measured[metric.name] = _plain(metric.measure(item))
            except Exception as error:  # anybody's code
                problems.append(f"{metric.name}: {_reason(error)}")
        return SampleVideo(case.key, item.prompt, measured, tuple(problems), card, preview)


def _plain(found: object) -> Measured:
    """What a metric gave, in numbers that every rank and JSON can take.

    Raises:
        TypeError, ValueError: it is no `Measured`, or holds something else than numbers.
    """
    if not isinstance(found, Measured):
        raise TypeError(f"measure returned a {type(found).__name__}, not a Measured")
    detail = {str(name): float(value) for name, value in found.detail.items()}
    return Measured(float(found.value), str(found.missing), detail)


def _encoders(head: InputHead | None) -> dict:
    """The run's own encoders, as the pipeline takes them."""
    if head is None:
        return {}
    return {
        "vae": head.vae.model,
        "text_encoder": head.text.model,
        "tokenizer": head.text.tokenizer,
        "image_encoder": head.vision.model,
    }


def _write(item: Item, folder: Path | None) -> tuple[bytes, bytes]:
    """(card, preview) of a video; with a folder, `<id>.png` and `<id>.mp4` in it."""
    count, height, width = item.frames.shape[:3]
    about = f"{width}x{height}   {count} frames at {item.fps:.4g}/s"
    buffer = io.BytesIO()
    video_card(item.id, about, item.prompt, item.references, item.frames, item.labels).save(buffer, format="PNG")
    if folder:
        with whole_file(folder / f"{item.id}.png") as path:
            path.write_bytes(buffer.getvalue())
        write_mp4(item.frames, folder / f"{item.id}.mp4", item.fps)
    return buffer.getvalue(), animation(item.frames, item.fps)


def _publish(samples: Samples, temporary: Path, target: Path) -> None:
    record = {"weights": samples.weights, "videos": [video.record() for video in samples.videos]}
    try:
        (temporary / RECORD).write_text(json.dumps(record, indent=1))
        publish_folder(temporary, target)
    finally:  # a full disk keeps no half of it
        shutil.rmtree(temporary, ignore_errors=True)


def _reason(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory ({first}); set train.eval_videos=0"
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"
