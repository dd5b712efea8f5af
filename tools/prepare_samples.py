"""Prepare the sample data: real clips, fetched once, cut into captioned triplets with references, as VP9 shards."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.data.packages import cache_folder
from phantom_mega.data.samples import SHORT_SIDE, SPLITS, prepare_samples
from phantom_mega.errors import UserError

EXAMPLES = """examples:
  python tools/prepare_samples.py --output data/samples
  PHANTOM_MEGA_CACHE=/scratch/cache python tools/prepare_samples.py --output data/samples
  python tools/prepare_samples.py --output data/samples_256 --height 256
  python tools/contact_sheet.py --data data/samples --output samples.png    # look at what was made
"""


def main() -> None:
    """Parse arguments, prepare, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the data set; gets heldout/ too")
    parser.add_argument("--cache", type=Path, help=f"folder of downloads (default: {cache_folder()})")
    parser.add_argument(
        "--height", type=int, default=SHORT_SIDE, help=f"pixels of the clips' shorter side (default: {SHORT_SIDE})"
    )
    args = parser.parse_args()
    start = time.monotonic()
    counts = prepare_samples(args.output, args.cache, short_side=args.height)
    for split, folder in SPLITS.items():
        print(f"{split}: {counts[split]} samples in {args.output / folder}")
    print(f"ready after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"prepare_samples: {error}")
