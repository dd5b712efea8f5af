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
    script: str, *words: object, env: Mapping[str, str] | None = None, timeout: float = 300.0
) -> subprocess.CompletedProcess:
    """What `python SCRIPT WORDS...` prints and its exit code; it runs in the repository's root.

    Args:
        script: its path from the root.
        words: its arguments.
        env: the environment, that of this process if None; what libraries read at import, they have read before.
        timeout: seconds.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    command = [script, *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]
        process = context.Process(target=_run, args=(command, dict(os.environ if env is None else env), printed))
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
