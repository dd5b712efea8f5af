"""Write generation cases from a data set of triplets: its reference images, and cases.json in OpenS2V-Eval's schema.

A held-out split gives cases whose subjects training has not seen; launchers/generate.py --cases reads them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.data.index import TripletIndex
from phantom_mega.data.shards import ShardReader
from phantom_mega.errors import BadSampleError, UserError
from phantom_mega.files import whole_file
from phantom_mega.images import open_image

EXAMPLES = """examples:
  python tools/make_cases.py --data runs/quickstart/curated/shards/validation --output runs/quickstart/cases
  python tools/make_cases.py --data /data/phantom/validation --output cases --limit 50
  python launchers/generate.py --checkpoint runs/s2 --cases cases/cases.json --output videos
"""


def make_cases(data: list[str], output: Path, limit: int, max_references: int) -> dict:
    """Write `images/<key>_<n>.png` and `cases.json`; returns the cases.

    Raises:
        UserError: the data set cannot be read, or `limit` is below 1.
    """
    if limit < 1:
        raise UserError(f"--limit {limit}: at least 1")
    index = TripletIndex.open(data)
    reader, cases = ShardReader(index), {}
    (output / "images").mkdir(parents=True, exist_ok=True)
    for row in range(min(limit, len(index))):
        raw = reader.read(row)
        key, paths = raw.triplet.key, []
        for number, (image, mask) in enumerate(zip(raw.references[:max_references], raw.masks)):
            try:
                pixels = open_image(image, mask)
            except ValueError as error:
                raise BadSampleError(key, raw.shard, f"reference {number}: {error}") from None
            paths.append(f"images/{key}_{number + 1}.png")
            Image.fromarray(pixels).save(output / paths[-1])
        labels = [reference.phrase for reference in raw.triplet.references[:max_references]]
        cases[key] = {"img_paths": paths, "prompt": raw.triplet.caption, "class_label": labels}
    with whole_file(output / "cases.json") as path:
        path.write_text(json.dumps(cases, indent=1, ensure_ascii=False))
    return cases


def main() -> None:
    """Parse arguments, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, help="index.parquet files, or folders that hold one")
    parser.add_argument("--output", type=Path, required=True, help="folder of cases.json and images/")
    parser.add_argument("--limit", type=int, default=50, help="samples to take, from the first on (default: 50)")
    parser.add_argument("--max-references", type=int, default=4, help="images of a case (default: 4)")
    args = parser.parse_args()
    cases = make_cases(args.data, args.output, args.limit, args.max_references)
    print(f"wrote {args.output / 'cases.json'} ({len(cases)} cases)")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"make_cases: {error}")
