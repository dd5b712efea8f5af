"""Encode a data set once and keep the features: training then needs neither encoders nor decoders.

Examples:
  python tools/cache_features.py --config tiny_stage1 --output runs/features --index-path [runs/quickstart/data]
  torchrun --nproc-per-node 8 tools/cache_features.py --config stage1_256p --output /data/features --index-path [/data]
  sbatch --array 0-63 --wrap 'python tools/cache_features.py ... --part $SLURM_ARRAY_TASK_ID --parts 64'

Then train with the same recipe and settings, and
  conditioning.cached_features=FOLDER data.augment_per_epoch=false

Processes share the work out without talking to each other; the last to finish publishes the cache. Run it again after
an interruption, with any number of processes, or after adding data: what is there is kept. One start frame, size and
choice of references is kept for each clip (epoch 0's), so long clips lose variety.
"""

import argparse
import dataclasses
import os
import signal
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.conditioning.cache import FeatureWriter, identity, scan, write_index
from phantom_mega.conditioning.head import InputHead
from phantom_mega.config import RunConfig
from phantom_mega.config_io import RUN, load_run_config
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.loader import PackLoader
from phantom_mega.data.plan import Pack, PackPlan
from phantom_mega.data.shards import ShardReader
from phantom_mega.errors import UserError


class Remaining:
    """The packs of a plan's first epoch that are one process's part, without the samples that are done.

    Stands in for the plan in `PackLoader`; past the end its packs are empty.

    Args:
        plan: of the whole data set.
        done: names (`identity`) of samples to leave out.
        part, parts: this process's part; packs are about equal in size, so parts are too.

    Attributes:
        samples: how many there are.
    """

    def __init__(self, plan: PackPlan, done: set[str], part: int, parts: int):
        self.plan, self.done, self.index = plan, done, plan.index
        counts = {number: len(self._todo(number)) for number in range(part, len(plan), parts)}
        self._numbers = [number for number, count in counts.items() if count]
        self.samples = sum(counts.values())

    def __len__(self) -> int:
        return len(self._numbers)

    def _todo(self, number: int) -> Pack:
        return tuple(sample for sample in self.plan.locate(number)[1] if identity(sample) not in self.done)

    def locate(self, position: int) -> tuple[int, Pack]:
        """(0, pack) of a position in this part."""
        return 0, self._todo(self._numbers[position]) if position < len(self) else ()


def fill_cache(config: RunConfig, folder: Path, part: int, parts: int, device: torch.device, retry_bad: bool) -> str:
    """Encode this process's part of what the cache lacks; publish the index when nothing is lacking.

    Args:
        config: the recipe.
        folder: of the cache.
        part, parts: this process's part.
        device: of encoders and decoders.
        retry_bad: read samples again that could not be read before.

    Returns:
        What was done, in words.

    Raises:
        UserError: wrong settings, a folder of other encoders, or more than `data.max_bad_samples` unreadable samples.
    """
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, augment_per_epoch=False))
    head = InputHead(config, device)
    empty_text = head.text.empty()
    writer = FeatureWriter(folder, config, empty_text)
    good, bad = scan(folder)
    done = set(good) if retry_bad else {*good, *bad}
    clip_tokens, seed = config.conditioning.clip_tokens, config.train.seed
    plan = PackPlan(TripletIndex.open(config.data.index_path), config.data, config.model, clip_tokens, seed,
                    len(empty_text))  # fmt: skip
    remaining = Remaining(plan, done, part, parts)
    unreadable = _encode(remaining, head, writer, config)
    good, bad = scan(folder)
    lacking = Remaining(plan, {*good, *bad}, 0, 1).samples
    report = f"encoded {remaining.samples - unreadable} samples, {unreadable} could not be read"
    if lacking:
        return f"{report}; {lacking} are still with other processes, the last of them publishes {folder}"
    return f"{report}; {folder} holds {write_index(folder)} samples, {len(bad)} of them unreadable"


def _encode(remaining: Remaining, head: InputHead, writer: FeatureWriter, config: RunConfig) -> int:
    """Read, decode, encode and write; returns the number of unreadable samples."""
    unreadable = 0
    loader = PackLoader(remaining, ShardReader(remaining.index), config.data, device=head.device)
    bar = tqdm(total=remaining.samples, unit="sample", desc="encode", disable=None if remaining.samples else True)
    try:
        for _ in range(len(remaining)):
            ((pack, decoded),) = next(loader)
            for sample, item, features in zip(pack, decoded, head.encode_many(decoded), strict=True):
                writer.add(sample, features, item.error)
                if item.error:
                    unreadable += 1
                    bar.write(f"bad sample, left out: {item.error}", file=sys.stderr)
            bar.update(len(pack))
            if unreadable > config.data.max_bad_samples:
                raise UserError(
                    f"{unreadable} unreadable samples, more than data.max_bad_samples={config.data.max_bad_samples}; "
                    "mend the shards named above or raise the limit"
                )
    finally:
        loader.close()
        writer.flush()  # what is encoded stays encoded, whatever happened
        bar.close()
    return unreadable


def main() -> int:
    """Parse, encode; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help=f"a recipe ({', '.join(RUN.names())}) or a path to one")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="of the cache; made if missing")
    parser.add_argument("--part", type=int, default=int(os.environ.get("RANK", 0)), help="this process's [RANK, or 0]")
    parser.add_argument("--parts", type=int, default=int(os.environ.get("WORLD_SIZE", 1)), help="[WORLD_SIZE, or 1]")
    parser.add_argument("--retry-bad", action="store_true", help="read unreadable samples again, after mending them")
    arguments, overrides = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # leave by `finally`: nothing is lost
    try:
        if not 0 <= arguments.part < arguments.parts:
            raise UserError(f"--part {arguments.part} is not one of 0 to {arguments.parts - 1} (--parts)")
        config = load_run_config(arguments.config, overrides)
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        report = fill_cache(config, arguments.output, arguments.part, arguments.parts, device, arguments.retry_bad)
        print(report)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
