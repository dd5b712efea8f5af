"""Curate: long videos to training shards of captioned clips with references from other shots.

Examples:
  python launchers/curate.py --input films/ --output curated captions.caption_backend=openai \\
      captions.caption_endpoint=http://localhost:8000/v1 captions.caption_model=Qwen/Qwen2.5-VL-7B-Instruct
  python launchers/curate.py --input films/ --output curated --annotations annotations.jsonl     # made by hand
  python launchers/curate.py --input films/ --output curated                 # without captions: up to selected clips
  python launchers/curate.py --input films/ --output curated --stages pairs samples encoded shards report \\
      pairs.min_similarity=0.6                                               # another cut; no frame is read again
  python launchers/curate.py --input films/ --output curated --retry-failed
  python launchers/curate.py --source phantom_data --input clips/ --output pd \\
      phantom_data.annotations=koala36M_multi_ref_filtered.parquet
  RAY_ADDRESS=head:6379 python launchers/curate.py --input /data/films --output /data/curated    # on a Ray cluster
  python launchers/curate.py --help-fields                                   # every setting; also with --source

Each stage is a table in OUTPUT/tables/STAGE/*.parquet; rejected rows are kept with the reason and what was measured, so
that thresholds can be tuned without computing anything again. What is done is left alone. The last steps write
OUTPUT/shards/{train,validation}, which training reads, and OUTPUT/report.html. Settings are `section.field=value` or
`--field value`. docs/curation.md explains every stage.
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
    parser.add_argument("--source", default="videos", help="videos (default), phantom_data, opens2v, or image_pairs")
    parser.add_argument("--input", help="for videos: a folder, one video, or a text file with a path on each line")
    parser.add_argument("--output", type=Path, help="folder of all that is made")
    parser.add_argument(
        "--config", default="default", help="recipe: default, sample, tiny, or a path; default: default"
    )
    parser.add_argument("--annotations", help="JSON lines with captions, subjects and boxes, instead of models")
    parser.add_argument("--stages", nargs="+", metavar="STAGE", help="run these alone (those before them have run)")
    parser.add_argument("--retry-failed", action="store_true", help="make rows again that failed or crashed a worker")
    parser.add_argument("--help-fields", action="store_true", help="print every setting with its meaning")
    args, overrides = parser.parse_known_args()
    if args.stages:  # settings may follow the names of stages
        overrides += [word for word in args.stages if "=" in word]
        args.stages = [word for word in args.stages if "=" not in word]
    from phantom_mega.curation.pipeline import run
    from phantom_mega.curation.sources import annotated, find_source

    source = find_source(args.source)
    if args.help_fields:
        print(source.recipes.help_fields())
        return 0
    if not args.input or not args.output:
        parser.error(f"--input ({source.about}) and --output are needed")
    if args.annotations:
        overrides = annotated(args.annotations) + overrides
    config = source.recipes.load(args.config, overrides)
    run(args.input, args.output, source, config, args.stages, args.retry_failed, lambda line: print(line, flush=True))
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
