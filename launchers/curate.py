"""Curate: long videos to tables of clips that are worth training on; stages that are done are left alone.

Examples:
  python launchers/curate.py --input films/ --output curated
  python launchers/curate.py --input list.txt --output curated shots.detector=transnet --max-clip 8
  python launchers/curate.py --input films/ --output curated --stages selected selection.min_sharpness=30
  python launchers/curate.py --input films/ --output curated --retry-failed
  RAY_ADDRESS=head:6379 python launchers/curate.py --input /data/films --output /data/curated    # on a Ray cluster
  python launchers/curate.py --help-fields

Each stage is a table in OUTPUT/tables/STAGE/*.parquet; rejected rows are kept with the reason and what was measured, so
that thresholds can be tuned without computing anything again. Settings are `section.field=value` or `--field value`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.errors import UserError


def main() -> int:
    """Parse, run, report; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", help="folder of videos, one video, or a text file with a path on each line")
    parser.add_argument("--output", type=Path, help="folder of all that is made")
    parser.add_argument("--config", default="default", help="recipe: default, tiny, or a path; default: default")
    parser.add_argument("--stages", nargs="+", metavar="STAGE", help="run these alone (those before them have run)")
    parser.add_argument("--retry-failed", action="store_true", help="make rows again that failed or crashed a worker")
    parser.add_argument("--help-fields", action="store_true", help="print every setting with its meaning")
    args, overrides = parser.parse_known_args()
    if args.stages:  # settings may follow the names of stages
        overrides += [word for word in args.stages if "=" in word]
        args.stages = [word for word in args.stages if "=" not in word]
    from phantom_mega.curation.config import CURATION
    from phantom_mega.curation.pipeline import funnel, run

    if args.help_fields:
        print(CURATION.help_fields())
        return 0
    if not args.input or not args.output:
        parser.error("--input and --output are needed")
    config = CURATION.load(args.config, overrides)
    run(args.input, args.output, config, args.stages, args.retry_failed, lambda line: print(line, flush=True))
    print("\nstage       accepted  rejected")
    for stage, accepted, reasons in funnel(args.output, config, args.input):
        why = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
        print(f"{stage:<10}{accepted:>10,}{sum(reasons.values()):>10,}  {why}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what is left", file=sys.stderr)
        sys.exit(130)
