"""Draw a contact sheet of a data set: references beside frames of each clip, captions under them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.data.contact_sheet import contact_sheet
from phantom_mega.data.index import TripletIndex
from phantom_mega.errors import UserError

EXAMPLES = """examples:
  python tools/contact_sheet.py --data data/samples --output samples.png
  python tools/contact_sheet.py --data set_a set_b --output sheet.png --limit 60 --columns 3 --frames 5
"""


def main() -> None:
    """Parse arguments, draw, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, help="index.parquet files, or folders that hold one")
    parser.add_argument("--output", type=Path, required=True, help="image to write (.png or .jpg)")
    parser.add_argument("--limit", type=int, default=24, help="samples to draw (default: 24)")
    parser.add_argument("--columns", type=int, default=2, help="samples side by side (default: 2)")
    parser.add_argument("--frames", type=int, default=4, help="frames of each clip (default: 4)")
    args = parser.parse_args()
    if args.output.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--output {args.output}: name a .png or .jpg file")
    index = TripletIndex.open(args.data)
    sheet = contact_sheet(index, limit=args.limit, columns=args.columns, frames=args.frames)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.output)
    print(f"wrote {args.output} ({sheet.width}x{sheet.height}, {min(args.limit, len(index))} samples)")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"contact_sheet: {error}")
