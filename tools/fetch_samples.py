"""Fetch the sample data: a film and two short clips with annotations by hand, for launchers/curate.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.data.packages import cache_folder
from phantom_mega.data.samples import ANNOTATIONS_NAME, fetch_samples
from phantom_mega.errors import UserError

EXAMPLES = """examples:
  python tools/fetch_samples.py --output runs/samples
  python launchers/curate.py --input runs/samples --output runs/curated --config sample \\
      --annotations runs/samples/annotations.jsonl
  PHANTOM_MEGA_CACHE=/scratch/cache python tools/fetch_samples.py --output runs/samples

The film is Big Buck Bunny (Blender Foundation, CC BY 3.0).
"""


def main() -> None:
    """Parse arguments, fetch, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help=f"folder for the videos and {ANNOTATIONS_NAME}")
    parser.add_argument(
        "--cache", type=Path, help=f"folder for downloads, 61 MB (default: {cache_folder()}, or PHANTOM_MEGA_CACHE)"
    )
    args = parser.parse_args()
    paths = fetch_samples(args.output, args.cache)
    print(f"{args.output} holds {', '.join(path.name for path in paths)}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"fetch_samples: {error}")
