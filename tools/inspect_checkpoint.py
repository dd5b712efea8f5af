"""Look into a training checkpoint: tensors and files, one tensor's values, differences from another, damage."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.checkpoint import describe, integrity, safe
from phantom_mega.checkpoint.compare import compare
from phantom_mega.checkpoint.folder import find_checkpoint
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.errors import UserError

EXAMPLES = """examples:
  python tools/inspect_checkpoint.py runs/stage1                                      # summary and all tensors
  python tools/inspect_checkpoint.py runs/stage1 --keys 'blocks.0.*'                  # some of them
  python tools/inspect_checkpoint.py runs/stage1 --shards blocks.0.visual.linear_qkv.weight
  python tools/inspect_checkpoint.py runs/stage1 --print final_proj.bias
  python tools/inspect_checkpoint.py runs/stage1 --compare runs/stage1_tp4            # exit code 1 if they differ
  python tools/inspect_checkpoint.py runs/stage1/checkpoints/iter_0050000 --check     # exit code 1 if it is damaged

One CPU process; nothing is written, and no more than two tensors are in memory at a time.
"""


def locate(path: Path) -> Path:
    """The `iter_...` folder that a path names.

    Raises:
        UserError: there is none.
    """
    found = find_checkpoint(path)
    if found is None:
        raise UserError(f"{path} holds no checkpoint; name a run's folder or an iter_... folder")
    return found


def check(folder: Path) -> int:
    """Print every problem of a checkpoint; returns the exit code."""
    problems = integrity.verify(folder)
    try:
        safe.check(folder)
        CheckpointReader(folder)
    except UserError as error:
        problems.append(str(error))
    for problem in problems:
        print(f"bad: {problem}")
    if not problems:
        files = [path for path in folder.iterdir() if path.is_file()]
        nbytes = sum(path.stat().st_size for path in files)
        print(f"good: {folder}: {len(files)} files, {describe.size(nbytes)}; digests agree, nothing but data in it")
    return 1 if problems else 0


def show_differences(one: Path, two: Path) -> int:
    """Print what differs between two checkpoints; returns the exit code."""
    readers = CheckpointReader(one), CheckpointReader(two)
    keys = len(set(readers[0].tensors) | set(readers[1].tensors))
    with tqdm(total=keys, desc="compare", unit=" tensors", mininterval=0.5) as bar:
        found = list(compare(*readers, progress=bar.update))
    for key, what in found:
        print(f"{key}: {what}")
    print(f"{len(found)} of {keys} tensors differ" if found else f"equal: {keys} tensors, to the bit")
    return 1 if found else 0


def main() -> int:
    """Parse arguments and look; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a run's folder (its latest checkpoint) or an iter_... folder")
    parser.add_argument("--keys", default="*", metavar="PATTERN", help="list tensors whose keys match (shell pattern)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shards", metavar="KEY", help="where a tensor's parts lie")
    what.add_argument("--print", dest="values", metavar="KEY", help="statistics and corner values of a tensor")
    what.add_argument("--compare", type=Path, metavar="OTHER", help="compare with another checkpoint, tensor by tensor")
    what.add_argument("--check", action="store_true", help="digests, safe content, and every part inside of its file")
    args = parser.parse_args()
    folder = locate(args.checkpoint)
    if args.check:
        return check(folder)
    if args.compare:
        return show_differences(folder, locate(args.compare))
    reader = CheckpointReader(folder)
    if args.shards:
        print(describe.shards(reader, args.shards))
    elif args.values:
        print(describe.values(args.values, reader.read(args.values)))
    else:
        print(describe.summary(reader))
        keys = [key for key in reader.tensors if fnmatch.fnmatchcase(key, args.keys)]
        if not keys:
            raise UserError(f"no key matches {args.keys!r}; the first key is {next(iter(reader.tensors), None)!r}")
        print(describe.table(reader, keys))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"inspect_checkpoint: {error}")
    except BrokenPipeError:  # piped into head
        sys.stderr.close()
