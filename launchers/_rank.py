"""One rank of `launchers/run.sh`: runs a script; exit code 75 ("stopped early, checkpoint written") becomes a file.

torchrun takes every exit code but 0 for a failure: it would kill the other ranks while they still say goodbye, print a
traceback, and itself exit 1. So 75 becomes 0 here, and the file $STOPPED_FILE tells run.sh, which exits 75 in the end.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

EX_TEMPFAIL = 75


def main() -> None:
    """Run the script named by the first argument as `__main__`, with the remaining arguments as its own."""
    sys.argv = sys.argv[1:]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        if stop.code != EX_TEMPFAIL:
            raise
        stopped = Path(os.environ["STOPPED_FILE"])
        stopped.parent.mkdir(parents=True, exist_ok=True)
        stopped.touch()
    finally:
        # While it shuts down, Python gives signals back their deadly default; run.sh may well send another one then.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    main()
