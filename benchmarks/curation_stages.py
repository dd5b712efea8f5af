"""How fast each stage of the curation is, and how that grows from one core to two: the same input twice, in one run.

Examples:
  python tools/fetch_samples.py --output samples
  python benchmarks/curation_stages.py --input samples --annotations samples/annotations.jsonl
  python benchmarks/curation_stages.py --input films --cpus 1 2 4 8 --config default shots.shot_detector=transnet

`rows/s` is what a user sees: rows of the stage's input by the time from its start to its end, the start of workers and
the loading of models included. `rows per core second` leaves out the start of workers. Stages that see all rows at once
run on one core and are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))


def measure(args, cpus: int, folder: Path, overrides: list[str]) -> dict[str, dict]:
    """Stage -> rows, seconds and worker seconds of a whole run on `cpus` cores."""
    from phantom_mega.curation.pipeline import run
    from phantom_mega.curation.sources import SOURCES, annotated

    source = SOURCES["videos"]
    if args.annotations:
        overrides = annotated(args.annotations) + overrides
    config = source.recipes.load(args.config, [f"engine.num_cpus={cpus}", *overrides])
    results = run(args.input, folder, source, config, say=lambda line: print(f"[{cpus} cores] {line}", flush=True))
    return {one.stage: {"rows": one.made, "seconds": one.seconds, "busy": one.busy} for one in results if one.busy > 0}


def table(found: dict[int, dict[str, dict]]) -> str:
    """Markdown: a line for each stage."""
    cpus = sorted(found)
    titles = [f"rows/s on {count}" for count in cpus] + [f"{count} over {cpus[0]}" for count in cpus[1:]]
    lines = [f"| stage | input rows | {' | '.join(titles)} | rows per core second |", "|---" * (len(titles) + 3) + "|"]
    for stage in found[cpus[0]]:
        rates = [found[count][stage]["rows"] / found[count][stage]["seconds"] for count in cpus]
        first = found[cpus[0]][stage]
        cells = [f"{rate:.3g}" for rate in rates] + [f"{rate / rates[0]:.2f}" for rate in rates[1:]]
        cells = [stage, str(first["rows"]), *cells, f"{first['rows'] / first['busy']:.3g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="as of launchers/curate.py")
    parser.add_argument("--annotations", help="as of launchers/curate.py")
    parser.add_argument("--config", default="sample", help="recipe (default: sample)")
    parser.add_argument("--cpus", type=int, nargs="+", default=[1, 2], help="cores of each run (default: 1 2)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args, overrides = parser.parse_known_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker has one core
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for cpus in args.cpus:
            found[cpus] = measure(args, cpus, Path(folder) / str(cpus), overrides)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    print(f"\n{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPU cores, recipe {args.config}\n\n{table(found)}")


if __name__ == "__main__":
    main()
