"""What an evaluation tells: Megatron's validation line, TensorBoard, and one line of `eval.jsonl`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from phantom_mega.metrics import evaluations_path

if TYPE_CHECKING:
    from phantom_mega.training.held_out import HeldOutLoss
    from phantom_mega.training.samples import Samples


@dataclass(frozen=True)
class Evaluated:
    """One evaluation.

    Attributes:
        iteration: optimizer steps done.
        consumed_samples: packs trained on.
        held_out: the loss, of the weights that are trained.
        samples: the sample videos, or None where there are none.
        seconds: what it took.
    """

    iteration: int
    consumed_samples: int
    held_out: HeldOutLoss
    samples: Samples | None
    seconds: float

    def record(self) -> dict:
        """The line of `eval.jsonl`; `s2v` are the metrics' means, `videos` what each video has."""
        held_out, samples = self.held_out, self.samples
        record = {
            "iteration": self.iteration,
            "consumed_samples": self.consumed_samples,
            "loss": held_out.loss,
            "loss_per_timestep": {f"{t:g}": loss for t, loss in held_out.loss_per_timestep.items()},
            "video_tokens": held_out.video_tokens,
            "bad_samples": held_out.bad_samples,
            "seconds": round(self.seconds, 2),
        }
        if samples is not None:
            videos = [video.record() for video in samples.videos]
            record |= {"weights": samples.weights, "s2v": samples.means(), "videos": videos}
        return record


def lines(evaluated: Evaluated) -> list[str]:
    """For people: the loss in Megatron-LM's form (megatron/training/training.py, evaluate_and_print_results)."""
    held_out, samples = evaluated.held_out, evaluated.samples
    text = f" validation loss at iteration {evaluated.iteration} | flow loss value: {held_out.loss:.6E} | "
    text += " | ".join(f"t={t:g}: {loss:.4E}" for t, loss in held_out.loss_per_timestep.items())
    text += f" | elapsed time (s): {evaluated.seconds:.1f} |"
    told = [text]
    if samples is not None:
        made = sum(bool(video.card) for video in samples.videos)
        where = f" in {samples.folder}" if samples.folder else ""
        means = "".join(f" | {name}: {value:.4f}" for name, value in samples.means().items())
        told.append(
            f" {made} of {len(samples.videos)} sample videos by {samples.weights} weights at iteration "
            f"{evaluated.iteration}{where}{means} |"
        )
        told += [f" sample video {video.id}: {problem}" for video in samples.videos for problem in video.problems]
    rule = "-" * max(map(len, told[:2]))
    return [rule, *told, rule]


def scalars(evaluated: Evaluated) -> dict[str, float]:
    """TensorBoard tag -> value; Megatron-LM's tag for the loss."""
    held_out = evaluated.held_out
    tags = {"flow loss validation": held_out.loss}
    tags |= {f"validation loss per timestep/{t:g}": loss for t, loss in held_out.loss_per_timestep.items()}
    means = evaluated.samples.means() if evaluated.samples else {}
    return tags | {f"s2v/{name}": value for name, value in means.items()}


def append(evaluated: Evaluated, folder: Path) -> None:
    """Add the line to the run's `eval.jsonl`."""
    with open(evaluations_path(folder), "a") as file:
        file.write(json.dumps(evaluated.record()) + "\n")


def to_tensorboard(evaluated: Evaluated, writer: SummaryWriter) -> None:
    """Numbers, and of every sample video its card and a GIF that moves."""
    for tag, value in scalars(evaluated).items():
        writer.add_scalar(tag, value, evaluated.iteration)
    writer.add_scalar("flow loss validation vs samples", evaluated.held_out.loss, evaluated.consumed_samples)
    for tag, data in _pictures(evaluated):
        writer.file_writer.add_summary(_image(tag, data), evaluated.iteration)
    writer.flush()


def _pictures(evaluated: Evaluated) -> Iterator[tuple[str, bytes]]:
    for video in evaluated.samples.videos if evaluated.samples else ():
        if video.card:
            yield f"sample cards/{video.id}", video.card
            yield f"sample videos/{video.id}", video.preview


def _image(tag: str, data: bytes) -> Summary:
    """An image summary of encoded bytes. `SummaryWriter.add_video` makes the same of a GIF, but by way of moviepy."""
    with Image.open(io.BytesIO(data)) as picture:
        width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
