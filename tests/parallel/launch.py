"""Starts a Python module on several gloo ranks by torchrun, with a timeout and the first failing rank's traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def launch(module: str, ranks: int, folder: Path, *args: str, timeout: float = 600.0) -> None:
    """Run the module's `main(folder, args)` on `ranks` processes.

    Raises:
        AssertionError: a rank failed or time ran out; the message holds the traceback of the rank that failed first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(REPOSITORY))
    command = [sys.executable, "-m", "tests.parallel.torchrun", str(ranks), module, str(folder), *args]
    with open(folder / "output.txt", "w") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = f"timeout after {timeout:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code != 0:
        failures = sorted(folder.glob("failed_*.txt"), key=lambda path: path.name)
        report = failures[0].read_text() if failures else (folder / "output.txt").read_text()[-4000:]
        raise AssertionError(f"{module} on {ranks} ranks: {code}\n{report}")


def run_rank(main: Callable[[Path, list[str]], None]) -> None:
    """Call `main(folder, arguments)` on this rank; a failure is written down with its time, then raised."""
    folder = Path(sys.argv[1])
    try:
        main(folder, sys.argv[2:])
    except BaseException:
        rank = os.environ["RANK"]
        (folder / f"failed_{time.time():.3f}_rank{rank}.txt").write_text(f"rank {rank}\n{traceback.format_exc()}")
        raise
