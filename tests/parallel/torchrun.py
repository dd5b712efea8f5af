"""torchrun whose ranks are forked from one process that has imported the worker: megatron's imports are paid once.

python -m tests.parallel.torchrun RANKS MODULE FOLDER [ARGUMENTS]
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.parallel.launch import run_rank


def rank(module: str, arguments: list[str]) -> None:
    """Run the module's `main` as this rank."""
    sys.argv = [module, *arguments]
    run_rank(importlib.import_module(module).main)


def main() -> None:
    """Start the ranks and wait for them; raises torchrun's error if one fails."""
    ranks, module, *arguments = sys.argv[1:]
    multiprocessing.set_forkserver_preload([module])
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(ranks),
        run_id="tests",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # c10d on port 0 chooses a free port
        max_restarts=0,
        start_method="forkserver",
    )
    elastic_launch(config, rank)(module, arguments)


if __name__ == "__main__":
    main()
