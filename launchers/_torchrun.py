"""torchrun for `launchers/run.sh`: a failure ends in one line and the failed rank's own exit code.

torchrun itself closes with a traceback of its own code, which hides what the rank said, and always exits 1.
"""

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run


def main() -> int:
    """Run torchrun with the command line's arguments; returns the exit code of the rank that failed first."""
    try:
        run(parse_args(None))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        reason = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        print(f"run.sh: rank {rank} failed first ({reason}); its own message stands above", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
