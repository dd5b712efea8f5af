"""Write an evaluation set as the paper's (4.1) from a folder of labelled reference images.

Three tracks: 50 references x 3 prompts x 3 seeds (450 cases), 50 groups of references, 50 portraits. Each is a file in
OpenS2V-Eval's schema that launchers/generate.py --cases reads; manifest.json says what each case is.

References are a folder <category>/<label>/*.png (or .jpg), for instance animal/corgi/1.png, or a folder with a
references.json: {"corgi.png": {"category": "animal", "label": "corgi"}, "ann.png": {"category": "human", "label":
"woman", "portrait": true}}. Categories: CATEGORIES_LIST, and portrait
(faces; without any, the portraits are those of humans). Labels become words of the prompts. Running again writes the
same set.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.data.schema import CATEGORIES
from phantom_mega.errors import UserError
from phantom_mega.evaluation.benchmark_set import (
    TRACKS,
    SetSettings,
    plan_cases,
    read_references,
    read_templates,
    write_set,
)

EXAMPLES = """examples:
  python tools/make_benchmark.py --references /data/references --output benchmark
  python tools/make_benchmark.py --references refs --output small --subjects 5 --tracks single multi
  python launchers/generate.py --checkpoint runs/s2 --cases benchmark/single.json --output videos/single
"""


def main() -> None:
    """Parse arguments, write."""
    parser = argparse.ArgumentParser(
        description=__doc__.replace("CATEGORIES_LIST", ", ".join(CATEGORIES)), epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add, default = parser.add_argument, SetSettings()
    add("--references", type=Path, required=True, help="folder of labelled images")
    add("--output", type=Path, required=True, help="folder of the set: new, or that of a set")
    add("--subjects", type=int, default=default.subjects, help="references, groups and portraits (default: 50)")
    add("--prompts", type=int, default=default.prompts, help="prompts of a reference of the single track (default: 3)")
    add("--seeds", type=int, default=default.seeds, help="seeds of a prompt of the single track (default: 3)")
    add("--seed", type=int, default=default.seed, help="of the choice of references and prompts (default: 0)")
    add("--tracks", nargs="+", choices=TRACKS, default=TRACKS, help="default: all")
    add("--templates", type=Path, help="prompt templates; default: phantom_mega/evaluation/prompts.json")
    add("--overwrite", action="store_true", help="replace another set")
    args = parser.parse_args()
    tracks = tuple(track for track in TRACKS if track in args.tracks)
    settings = SetSettings(args.subjects, args.prompts, args.seeds, args.seed, tracks)
    cases = plan_cases(read_references(args.references), read_templates(args.templates), settings)
    write_set(cases, args.references, args.output, settings, args.overwrite)
    counts = Counter(case.track for case in cases)
    print(f"wrote {args.output}: " + ", ".join(f"{track}.json ({counts[track]} cases)" for track in tracks))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"make_benchmark: {error}")
