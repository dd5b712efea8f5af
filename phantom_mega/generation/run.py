"""Generate cases one after another into a folder: what is there already is kept, what fails is recorded.

<id>.mp4   the video         <id>.json         the settings that it was made with
<id>.png   its card          <id>.error.json   why it failed (gone once it succeeds)
"""

from __future__ import annotations

import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from phantom_mega.errors import SetupError, UserError
from phantom_mega.files import whole_file
from phantom_mega.generation.cases import Case, settings_of
from phantom_mega.generation.rephrase import Rephrased
from phantom_mega.generation.video import video_card, write_mp4
from phantom_mega.hf.pipeline_phantom import PhantomPipeline
from phantom_mega.pictures import sheet

SHEET = "contact_sheet.png"


@dataclass
class Job:
    """What all cases of a run have in common.

    Attributes:
        output: folder of the videos.
        height, width, num_frames: of the videos.
        sampling: further arguments of `PhantomPipeline.__call__`.
        seed: of cases that have none.
        fps: of the files.
        origin: names the weights (folder, iteration...), kept in every `<id>.json`.
        rephrase: from a case to its prompt for the model; None leaves prompts as they are.
        rephraser: names who rephrases, kept in every `<id>.json`.
        overwrite: make videos anew that were made with other settings.
        leads: whether this rank writes.
        report: prints a line.
    """

    output: Path
    height: int
    width: int
    num_frames: int
    sampling: dict
    seed: int = 0
    fps: float = 24.0
    origin: dict = field(default_factory=dict)
    rephrase: Callable[[Case], Rephrased] | None = None
    rephraser: dict = field(default_factory=dict)
    overwrite: bool = False
    leads: bool = True
    report: Callable[[str], None] = print

    def common(self) -> dict:
        """Settings that decide how a video looks."""
        size = {"size": [self.width, self.height], "num_frames": self.num_frames, "fps": self.fps}
        return {**self.origin, **size, **self.sampling, "run_seed": self.seed, "rephraser": self.rephraser}

    def todo(self, cases: Sequence[Case]) -> list[Case]:
        """Cases without a finished video of these settings.

        Raises:
            UserError: videos of other settings are in the folder, and they are not to be overwritten.
        """
        left, other = set(), []
        for case in cases:
            made = read_settings(self.output / f"{case.id}.json")
            if made is None or not (self.output / f"{case.id}.mp4").is_file():
                left.add(case.id)
            elif made != settings_of(case, self.common()):
                other.append((case, made))
        if other and not self.overwrite:
            case, made = other[0]
            wanted = settings_of(case, self.common())
            names = [name for name in wanted if made.get(name) != wanted[name]] or sorted(set(made) - set(wanted))
            raise UserError(
                f"{self.output} holds {len(other)} video(s) of other settings, the first is {case.id} "
                f"({', '.join(names)} differ); name another folder, or replace them with --overwrite"
            )
        again = {case.id for case, _ in other}
        return [case for case in cases if case.id in left or case.id in again]


def read_settings(path: Path) -> dict | None:
    """The settings in a `<id>.json`; None where there is none that can be read."""
    try:
        return json.loads(path.read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def generate_cases(pipe: PhantomPipeline, cases: Sequence[Case], job: Job, strict: bool = False) -> list[Case]:
    """Generate each case; returns those that failed.

    Args:
        pipe: the pipeline, on its device.
        cases: of this group of ranks.
        job: what they have in common.
        strict: raise what is no mistake of a case's input, instead of recording it (other ranks would wait for ever).

    Raises:
        SetupError: a mistake that all cases would meet.
    """
    job.output.mkdir(parents=True, exist_ok=True)
    failed = []
    for number, case in enumerate(cases, start=1):
        started = time.monotonic()
        try:
            generate_case(pipe, case, job)
        except SetupError:
            raise  # every other case would fail alike
        except Exception as error:
            if strict and not isinstance(error, UserError):
                raise
            failed.append(case)
            record_failure(job, case, error)
            job.report(f"[{number}/{len(cases)}] {case.id}: failed: {_first_line(error)}")
            continue
        seconds = time.monotonic() - started
        job.report(f"[{number}/{len(cases)}] {case.id}: {seconds:.1f} s, {job.output / case.id}.mp4")
    return failed


def generate_case(pipe: PhantomPipeline, case: Case, job: Job) -> None:
    """Generate and write one case."""
    started = time.monotonic()
    seed = job.seed if case.seed is None else case.seed
    rephrased = job.rephrase(case) if job.rephrase else Rephrased(case.prompt)
    if rephrased.warning:
        job.report(f"{case.id}: {rephrased.warning}")
    frames = pipe(
        rephrased.prompt, list(case.images), height=job.height, width=job.width, num_frames=job.num_frames,
        generator=torch.Generator("cpu").manual_seed(seed), output_type="np" if job.leads else "latent", **job.sampling,
    ).frames[0]  # fmt: skip
    if not job.leads:
        return
    frames = (frames * 255).round().astype(np.uint8)
    about = f"{job.width}x{job.height}   {job.num_frames} frames at {job.fps:.4g}/s   seed {seed}"
    card = video_card(case.id, about, rephrased.prompt, case.images, frames, case.labels)
    with whole_file(job.output / f"{case.id}.png") as path:
        card.save(path, format="PNG")
    write_mp4(frames, job.output / f"{case.id}.mp4", job.fps)
    made = {"settings": settings_of(case, job.common()), "prompt": rephrased.prompt, "seed": seed}
    if job.rephrase:
        made["rephrased"] = dataclasses.asdict(rephrased)
    made["seconds"] = round(time.monotonic() - started, 2)
    with whole_file(job.output / f"{case.id}.json") as path:
        path.write_text(json.dumps(made, indent=1))
    (job.output / f"{case.id}.error.json").unlink(missing_ok=True)


def record_failure(job: Job, case: Case, error: Exception) -> None:
    """Write why a case failed."""
    if not job.leads:
        return
    known = isinstance(error, UserError)
    described = {"error": _first_line(error), "settings": settings_of(case, job.common())}
    if not known:
        described["traceback"] = "".join(traceback.format_exception(error))
    with whole_file(job.output / f"{case.id}.error.json") as path:
        path.write_text(json.dumps(described, indent=1))


def draw_sheet(cases: Sequence[Case], output: Path) -> Path | None:
    """Draw the cards of finished cases into one picture; the last of several processes leaves the whole one."""
    cards = []
    for case in cases:
        path = output / f"{case.id}.png"
        if path.is_file() and (output / f"{case.id}.json").is_file():
            with Image.open(path) as card:
                cards.append(card.convert("RGB"))
    if not cards:
        return None
    title = f"{len(cards)} of {len(cases)} videos" if len(cards) < len(cases) else f"{len(cards)} videos"
    legend = "left: reference images   right: the generated video, its prompt"
    drawn = sheet(cards, title, legend, columns=1 if len(cards) < 4 else 2)
    with whole_file(output / SHEET) as path:
        drawn.save(path, format="PNG")
    return output / SHEET


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
