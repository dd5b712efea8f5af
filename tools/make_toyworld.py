"""Make a toy data set: drawn creatures whose identity, motion, light and background are known exactly."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.errors import UserError
from phantom_mega.toyworld.captions import STYLES
from phantom_mega.toyworld.dataset import ToySettings, write_toyworld
from phantom_mega.toyworld.samples import KINDS
from phantom_mega.toyworld.truth import TRUTH_NAME

EXAMPLES = """examples:
  python tools/make_toyworld.py --output data/toy --samples 20000 --validation-samples 500
  python tools/make_toyworld.py --output data/toy_in --samples 20000 --kind in            # cut out of the clips
  python tools/make_toyworld.py --output data/toy_mix --samples 20000 --cross-share 0.5   # half of each kind
  python tools/make_toyworld.py --output data/toy_two --samples 5000 --actors 1 2 --style distinct

Both splits are data sets of their own: train on OUTPUT/train, measure on OUTPUT/validation, whose subjects no training
split of any seed shows. The same arguments write the same bytes: what is there already stays. Other arguments replace
what this tool wrote before; anything else in the folder is refused.
"""


def main() -> None:
    """Parse arguments, write, tell."""
    usual = ToySettings()
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder for train/ and validation/")
    add("--samples", type=int, default=usual.samples, help="training samples (default: %(default)s)")
    add("--validation-samples", type=int, default=usual.validation_samples, help="0 writes none (default: %(default)s)")
    add("--height", type=int, default=usual.height, help="pixels (default: %(default)s)")
    add("--width", type=int, default=usual.width, help="pixels (default: %(default)s)")
    add("--frames", type=int, default=usual.frames, help="of a clip, 4k+1 (default: %(default)s)")
    add("--actors", type=int, nargs="+", default=list(usual.actors), help="numbers of subjects, 1 to 4 (default: 1)")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--kind", choices=KINDS, default="cross", help="of references (default: %(default)s)")
    kinds.add_argument("--cross-share", type=float, help="share of samples with cross references, the others get in")
    add("--style", choices=STYLES, default=usual.style, help="of captions (default: %(default)s)")
    add("--seed", type=int, default=usual.seed, help="of everything (default: %(default)s)")
    args = parser.parse_args()
    share = float(args.kind == "cross") if args.cross_share is None else args.cross_share
    settings = ToySettings(
        args.samples, args.validation_samples, args.height, args.width, args.frames, tuple(args.actors), share,
        args.style, args.seed,
    )  # fmt: skip
    for split, count in write_toyworld(args.output, settings).items():
        print(f"{args.output / split}: {count} samples, their truth in {TRUTH_NAME}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"make_toyworld: {error}")
