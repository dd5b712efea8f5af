"""Prepare the sample data: real clips, fetched once, cut into captioned triplets with references, as VP9 shards."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from phantom_mega.data.samples import SPLITS, cache_folder, prepare_samples
from phantom_mega.errors import UserError

EXAMPLES = """examples:
  python tools/prepare_samples.py --output data/samples
  PHANTOM_MEGA_CACHE=/scratch/cache python tools/prepare_samples.py --output data/samples
  python tools/contact_sheet.py --data data/samples/train --output samples.png    # look at what was made
"""


def main() -> None:
    """Parse arguments, prepare, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder that gets train/ and heldout/")
    parser.add_argument("--cache", type=Path, help=f"folder of downloads (default: {cache_folder()})")
    args = parser.parse_args()
    start = time.monotonic()
    counts = prepare_samples(args.output, args.cache)
    for split in SPLITS:
        print(f"{args.output / split / 'index.parquet'}: {counts[split]} samples")
    print(f"ready after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"prepare_samples: {error}")
