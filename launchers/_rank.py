"""One rank of `launchers/run.sh`: runs a script; what its exit code means for the whole job becomes a file.

torchrun takes every exit code but 0 for a failure: it would kill the other ranks while they still say goodbye, print a
traceback, and itself exit 1. So 75 ("stopped early, checkpoint written") becomes 0 here, and the file $STOPPED_FILE
tells run.sh, which exits 75 in the end. Exit code 2 (bad input, the same at every start) is noted in the file
$REFUSED_FILE: srun gives the code of any rank, also of one that was killed because another one refused.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

EX_TEMPFAIL = 75
EX_USAGE = 2


def mark(variable: str) -> None:
    """Create the file that an environment variable names."""
    path = Path(os.environ[variable])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def main() -> None:
    """Run the script named by the first argument as `__main__`, with the remaining arguments as its own."""
    sys.argv = sys.argv[1:]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        if stop.code == EX_USAGE:
            mark("REFUSED_FILE")
        if stop.code != EX_TEMPFAIL:
            raise
        mark("STOPPED_FILE")
    finally:
        # While it shuts down, Python gives signals back their deadly default; run.sh may well send another one then.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    main()
