"""A study's report: a table of means with intervals, a verdict for each claim, and pictures of the first cases."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from phantom_mega.files import whole_file
from phantom_mega.metrics import read_metrics
from phantom_mega.pictures import font
from phantom_mega.reproduction.assets import Workplace
from phantom_mega.reproduction.cases import FRAMES, make_cases
from phantom_mega.reproduction.compare import AGREES, DISAGREES, Estimate, estimate, verdict
from phantom_mega.reproduction.run import arms_of, contact_videos, read_values
from phantom_mega.reproduction.score import METRICS
from phantom_mega.reproduction.studies import Study
from phantom_mega.toyworld.render import render

SHOWN_CASES, SHOWN_FRAMES = 8, (0, 8, 16)
SCALE = 3  # of pixels in pictures
WORDS = {AGREES: "agrees", DISAGREES: "**disagrees**"}


def write_report(study: Study, place: Workplace, command: str, device_name: str) -> Path:
    """Write `reports/STUDY.md` and `reports/STUDY.png`; returns the former."""
    values = {condition.name: read_values(condition, place) for condition in study.conditions}
    folder = place.root / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{study.name}.png"
    with whole_file(picture) as temporary:
        draw_grid(study, place).save(temporary, "PNG")
    text = render_report(study, values, place, command, device_name, picture.name)
    with whole_file(folder / f"{study.name}.md") as temporary:
        temporary.write_text(text)
    return folder / f"{study.name}.md"


def render_report(
    study: Study, values: dict[str, dict[str, np.ndarray]], place: Workplace, command: str, device_name: str,
    picture: str,
) -> str:  # fmt: skip
    """The report as Markdown."""
    scale = place.scale
    about = (
        f"`{command}`, {device_name}, {time.strftime('%Y-%m-%d')}: {scale.seeds} seeds, {scale.cases} held-out cases "
        f"each, {scale.steps} Euler steps. Means over seeds and cases; in brackets 95% bootstrap intervals over cases."
    )
    lines = [f"## {study.title}", "", study.about, "", about, "", _table(study, values), ""]
    lines += ["| claim | source | difference | seeds | here |", "|---|---|---|---|---|"]
    for claim in study.claims:
        decided, found = verdict(values[claim.first][claim.metric], values[claim.second][claim.metric], claim.sign)
        seeds = " ".join(f"{seed:+.3f}" for seed in found.seeds)
        lines.append(
            f"| {claim.text} (`{METRICS[claim.metric].title}`) | {claim.source or 'a check of ours'} | "
            f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] | {seeds} | {WORDS.get(decided, decided)} |"
        )
    columns = "; ".join(f"{METRICS[name].title}: {METRICS[name].about}" for name in study.metrics)
    lines += ["", f"Paper: {study.paper}", "", f"Columns: {columns}.", "", training_table(study, place), ""]
    lines += [judge_table(place), ""]
    lines += [f"![{study.title}]({picture})", ""]
    return "\n".join(lines)


def _table(study: Study, values: dict[str, dict[str, np.ndarray]]) -> str:
    arrow = {True: " ↓", False: " ↑"}
    titles = [METRICS[name].title + arrow[METRICS[name].lower_is_better] for name in study.metrics]
    lines = [f"| | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    for condition in study.conditions:
        cells = [_cell(estimate(values[condition.name][name])) for name in study.metrics]
        lines.append(f"| {condition.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: Estimate) -> str:
    return "–" if np.isnan(found.mean) else f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


READ = ("shape", "texture", "part", "retrieval", "motion", "background", "light", "camera", "count", "binding")
CONDITIONS = {"sharp": "renders", "vae": "after the VAE", "blurred": "blurred"}


def training_table(study: Study, place: Workplace) -> str:
    """What every arm was trained for, from the logs of its runs: the mean over seeds."""
    lines = ["| trained | iterations | loss of the last tenth | minutes a run |", "|---|---|---|---|"]
    for arm in arms_of([study]):
        runs = [read_metrics(place.run(arm.name, seed)) for seed in range(place.scale.seeds)]
        losses = [np.mean([row["loss"] for row in rows[-max(1, len(rows) // 10) :]]) for rows in runs]
        minutes = [sum(row["elapsed"] for row in rows) / 60 for rows in runs]
        cells = (arm.title, len(runs[0]), f"{np.mean(losses):.4f}", f"{np.mean(minutes):.1f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([f"{place.scale.processes} runs at a time:", "", *lines])


def judge_table(place: Workplace) -> str:
    """How often the judge is right on renders of held-out subjects, from the report of tools/make_toy_models.py."""
    judged = json.loads((place.models / "report.json").read_text())["judge"]
    lines = [
        "The judge's own accuracy on renders of held-out subjects (`models/report.json` has intervals):", "",
        f"| | {' | '.join(READ)} |", "|---|" + "---|" * len(READ),
    ]  # fmt: skip
    for actors, measured in judged.items():
        for name, words in CONDITIONS.items():
            told = measured.get(name, {})
            cells = [f"{told[read]['accuracy']:.2f}" if read in told else "–" for read in READ]
            lines.append(f"| {actors}, {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_grid(study: Study, place: Workplace) -> Image.Image:
    """References and wanted video of the first cases, and what every condition made of them, seed 0."""
    shown = study.conditions
    cases = {condition.name: make_cases(condition, place.scale.cases)[:SHOWN_CASES] for condition in shown}
    videos = {condition.name: contact_videos(condition, place)[:SHOWN_CASES] for condition in shown}
    height, width = videos[shown[0].name].shape[2:4]
    first = cases[shown[0].name]
    cell = SCALE * width * len(SHOWN_FRAMES) + 12
    label, caption = 22, 18
    left = SCALE * height * max(len(case.given) for case in first) + 16
    picture = Image.new(
        "RGB", (left + cell * (1 + len(shown)), label + len(first) * (SCALE * height + caption)), "white"
    )
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(["wanted", *(condition.title for condition in shown)]):
        draw.text((left + cell * column, 4), title[: cell // 7], fill="black", font=font(12, True))
    for row, case in enumerate(first):
        top = label + row * (SCALE * height + caption)
        for number, reference in enumerate(case.sample.references):
            side = SCALE * height - 4
            tile = Image.fromarray(reference.image).resize((side, side), Image.Resampling.NEAREST)
            picture.paste(tile, (number * (side + 4), top))
        wanted = render(case.sample.scene, FRAMES, height, width)
        for column, video in enumerate([wanted, *(videos[condition.name][row] for condition in shown)]):
            picture.paste(_strip(video), (left + cell * column, top))
        draw.text((left, top + SCALE * height + 1), case.sample.caption, fill="#444444", font=font(11))
    return picture


def _strip(video: np.ndarray) -> Image.Image:
    frames = np.concatenate([video[number] for number in SHOWN_FRAMES], axis=1)
    image = Image.fromarray(frames)
    return image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.NEAREST)
