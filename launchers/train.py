"""Train: one process per GPU (torchrun or launchers/run.sh), or alone on one GPU or the CPU.

Examples:
  python launchers/train.py --config tiny_stage1 \\
      data.index_path=[runs/quickstart/curated/shards/train] train.save=runs/try
  launchers/run.sh launchers/train.py --config stage1_256p --index-path [/data/triplets] --save runs/s1 --lr 5e-5
  python launchers/train.py --config stage2_720p data.index_path=[/data/triplets] --dry-run
  python launchers/train.py --help-fields

Settings are `section.field=value` or Megatron's spelling `--field-name value`; see --help-fields. A run that finds its
own checkpoint in train.save goes on from it. SIGTERM and SIGUSR1 mean: save and exit with code 75.
"""

import argparse
import faulthandler
import logging
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.config_io import RUN, load_run_config
from phantom_mega.errors import EXIT_HUNG, DataWorkerError, UserError
from phantom_mega.processes import keep_memory_flat


def main() -> int:
    """Parse, build, train; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help=f"a recipe ({', '.join(RUN.names())}) or a path to one")
    parser.add_argument(
        "--dry-run", action="store_true", help="build, check shapes and memory on one batch, print the plan"
    )
    parser.add_argument("--help-fields", action="store_true", help="print every setting with its meaning")
    arguments, overrides = parser.parse_known_args()
    if arguments.help_fields:
        print(RUN.help_fields())
        return 0
    if arguments.config is None:
        parser.error("--config is needed, e.g. --config tiny_stage1")
    try:
        config = load_run_config(arguments.config, overrides)
        # megatron-core warns once per module and rank that it runs without Transformer Engine: --dry-run says so once.
        warnings.filterwarnings("ignore", module="megatron")
        warnings.filterwarnings("ignore", module="torch.distributed.checkpoint")
        logging.getLogger("megatron").setLevel(logging.ERROR)
        # Imported late: --help and typing errors answer at once.
        import torch.distributed as dist

        from phantom_mega.training.dry_run import dry_run
        from phantom_mega.training.trainer import Trainer, prepare

        config = prepare(config, write=not arguments.dry_run)
        trainer = Trainer(config)
        code = dry_run(trainer) if arguments.dry_run else trainer.train()
        dist.barrier()
        dist.destroy_process_group()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except DataWorkerError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(EXIT_HUNG)  # an ordinary end would wait for the thread that hangs


if __name__ == "__main__":
    faulthandler.enable()
    keep_memory_flat()
    sys.exit(main())
