"""Runs the project's scripts as a user does, in processes forked from one that has imported the libraries.

A start of Python that imports megatron-core, transformers and diffusers takes some 15 seconds of a core.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
IMPORTED = ["phantom_mega.training.trainer", "phantom_mega.generation.run", "phantom_mega.release.verify"]


def run_script(
    script: str, *words: object, env: Mapping[str, str] | None = None, ranks: int = 1, fresh: bool = False,
    timeout: float = 300.0,
) -> subprocess.CompletedProcess:  # fmt: skip
    """What `python SCRIPT WORDS...` prints and its exit code; it runs in the repository's root.

    Args:
        script: its path from the root.
        words: its arguments.
        env: the environment, that of this process if None.
        ranks: more than one are started by torchrun.
        fresh: start a Python of its own, for variables that libraries read when they are imported.
        timeout: seconds.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed.
    """
    command, env = [script, *map(str, words)], dict(os.environ if env is None else env)
    if fresh or ranks > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        return subprocess.run(
            [sys.executable, *torchrun, *command], cwd=REPOSITORY, env=env, capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]
        process = context.Process(target=_run, args=(command, env, printed))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout, *(path.read_text() for path in printed))
        return subprocess.CompletedProcess(command, process.exitcode, *(path.read_text() for path in printed))


def _run(command: list[str], env: dict[str, str], printed: list[Path]) -> None:
    """Be the script."""
    for number, path in enumerate(printed, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(REPOSITORY)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
