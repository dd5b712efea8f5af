"""Evaluate: the paper's tables of a folder of videos, with intervals, a report to look at, and comparisons of folders.

Examples:
  python launchers/evaluate.py --videos videos --cases cases.json --config tiny          # needs no model
  python launchers/evaluate.py --videos videos --cases cases.json --metrics clip_i,dino_i,copy_paste
  python launchers/evaluate.py --videos videos --cases cases.json --skip-missing viclip_t.weights=ViCLIP.pth
  python launchers/evaluate.py --videos ours theirs --cases cases.json --output compared # side by side, with p-values
  torchrun --nproc-per-node 8 launchers/evaluate.py --videos videos --cases cases.json   # also under srun
  python launchers/evaluate.py --help-fields                                             # every setting

--cases is the file that launchers/generate.py read, --videos holds its <id>.mp4 (or webm, avi...). A video that is not
there counts with the worst value. Settings are `metric.field=value`; docs/evaluation.md explains metrics, models and
files. OUTPUT gets results.json, table.md, per_case.csv, report.html, radar.png and grid.png. The same command again
measures what is new or changed, and nothing else. Exit code: 0 all measured, 1 videos are missing or some failed, 2 bad
input.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """All options; settings of metrics are words of their own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--videos", nargs="+", type=Path, help="folders of videos; the first is compared with each other one")
    add("--cases", type=Path, help="JSON file in OpenS2V-Eval's input schema")
    add("--image-root", type=Path, help="folder of the cases' images; default: the JSON file's")
    add("--output", type=Path, help="folder of all that is made; default: VIDEOS/evaluation, if there is one folder")
    add("--names", nargs="+", default=[], help="of the folders, in tables; default: their own")
    add("--config", default="default", help="recipe: default, tiny, or a path; default: default")
    add("--metrics", help="names, separated by commas, instead of the recipe's")
    add("--skip-missing", action="store_true", help="leave out metrics whose models are not there; the report says so")
    add("--workers", type=int, help="processes on this machine; default: one for each GPU, one without")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--split", default="Open-Domain", help="of OpenS2V-Eval's total: Open-Domain, Human-Domain or Single-Domain")
    add("--opens2v", nargs="+", type=Path, help="for each folder of videos, one with results of OpenS2V-Eval's scripts")
    add("--help-fields", action="store_true", help="print every setting with its meaning")
    return parser


def stay_offline_without_network() -> None:
    """Where the hub cannot be reached, look for models on this machine alone: each would be asked for half a minute.

    Call it before anything imports huggingface_hub, which reads its settings then.
    """
    if "HF_HUB_OFFLINE" in os.environ:
        return
    import httpx

    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        httpx.head(address, timeout=5)
    except httpx.HTTPError:
        print(f"{address} cannot be reached: models are looked for on this machine alone", file=sys.stderr)
        os.environ["HF_HUB_OFFLINE"] = "1"


def settings_of(args: argparse.Namespace, overrides: list[str]):
    """The configuration that the command line asks for."""
    from phantom_mega.evaluation.config import load_config

    for words in (args.videos, args.names, args.opens2v or []):  # settings may follow a list of folders
        overrides = [str(word) for word in words if "=" in str(word) and not Path(word).exists()] + overrides
        words[:] = [word for word in words if "=" not in str(word) or Path(word).exists()]
    if args.metrics is not None:
        names = [name.strip() for name in args.metrics.split(",") if name.strip()]
        overrides = [f"evaluation.metrics=[{','.join(names)}]", *overrides]
    return load_config(args.config, overrides)


def find_methods(args: argparse.Namespace, cases: list) -> tuple[list, dict]:
    """(methods, results of OpenS2V-Eval's scripts by method).

    Raises:
        UserError: a folder cannot be used.
    """
    from phantom_mega.evaluation.opens2v import read_results, weights
    from phantom_mega.evaluation.videos import find_videos, name_methods

    weights(args.split)
    names = name_methods(args.videos, args.names)
    methods = [find_videos(folder, cases, name) for folder, name in zip(args.videos, names, strict=True)]
    published = {}
    if args.opens2v:
        if len(args.opens2v) != len(methods):
            raise UserError(f"--opens2v names {len(args.opens2v)} folders for {len(methods)} of --videos")
        published = {name: read_results(folder) for name, folder in zip(names, args.opens2v, strict=True)}
    return methods, published


def check_models(args: argparse.Namespace, config, todo: list) -> dict[str, str]:
    """Metrics to leave out, and why. Those that were measured before need no model.

    Raises:
        UserError: models are not there, and metrics are not to be left out.
    """
    from phantom_mega.evaluation.run import explain_unavailable, unavailable

    needed = [name for name in config.evaluation.metrics if any(name in task.digests for task in todo)]
    absent = unavailable(config, needed)
    if absent and (not args.skip_missing or len(absent) == len(config.evaluation.metrics)):
        raise UserError(explain_unavailable(absent, config.evaluation.metrics))
    return absent


def run(args: argparse.Namespace, config) -> int:
    """Measure what is left, report; returns the exit code."""
    from phantom_mega.evaluation.records import RecordWriter, read_records
    from phantom_mega.evaluation.registry import METRICS
    from phantom_mega.evaluation.results import collect
    from phantom_mega.evaluation.run import (
        WorkerError,
        find_devices,
        left,
        measure_on_workers,
        measure_share,
        plan,
    )
    from phantom_mega.generation.cases import read_cases
    from phantom_mega.generation.placement import Placement

    placement = Placement.from_environment()
    device = placement.device(args.device)
    devices = find_devices(device, args.workers)
    cases = read_cases(args.cases, args.image_root)
    methods, published = find_methods(args, cases)
    output = args.output or args.videos[0] / "evaluation"
    folder = output / "measured"
    tasks = plan(methods, cases, config)
    share = tasks[placement.rank :: placement.world]  # before looking at what is done, as others may have started
    todo = left(share, read_records(folder))
    skipped = check_models(args, config, todo)
    todo = [task.without(skipped) for task in todo]
    count, total = (sum(len(task.digests) for task in some) for some in (todo, share))
    if placement.rank == 0:
        for name, why in skipped.items():
            print(f"{METRICS[name].title} is left out: {why}", flush=True)
        print(
            f"{len(cases)} case(s), {total} value(s) for this process, {total - count} of them done before", flush=True
        )
    try:
        if placement.world > 1:
            measure_share(todo, config, device, RecordWriter(folder, placement.rank), placement.rank == 0)
        else:
            measure_on_workers(todo, config, devices, folder)
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    results = collect(methods, cases, config, tasks, read_records(folder), skipped)
    if results is None:
        print(f"process {placement.rank} is done; the last one writes the report", flush=True)
        return 0
    return report(results, config, args.split, published, output)


def report(results, config, split: str, published: dict, output: Path) -> int:
    """Write the reports, print the tables; returns the exit code."""
    from phantom_mega.evaluation.report import write_reports
    from phantom_mega.evaluation.results import tables_of

    write_reports(tables_of(results, config, split, published), config, output)
    print((output / "table.md").read_text(encoding="utf-8"))
    print(f"report: {output / 'report.html'}", flush=True)
    return 1 if results.incomplete() else 0


def main() -> int:
    """Parse, measure, report; returns the exit code."""
    parser = build_parser()
    args, overrides = parser.parse_known_args()
    if args.help_fields:
        from phantom_mega.evaluation.config import EVALUATION

        print(EVALUATION.help_fields())
        return 0
    if not args.videos or not args.cases:
        parser.error("--videos and --cases are needed")
    if args.config != "tiny" or args.metrics:
        stay_offline_without_network()
    config = settings_of(args, overrides)
    if not args.videos:
        parser.error("--videos needs a folder")
    if len(args.videos) > 1 and args.output is None:
        raise UserError("--output is needed where --videos names several folders")
    return run(args, config)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what is left", file=sys.stderr)
        sys.exit(130)
