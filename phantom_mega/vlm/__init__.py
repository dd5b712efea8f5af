"""Vision language models: any OpenAI-compatible endpoint, or a model of transformers in this process."""

from __future__ import annotations

import os
from dataclasses import dataclass

from phantom_mega.errors import UserError
from phantom_mega.vlm.base import TransientError, Turn, VisionModel

__all__ = ["BACKENDS", "Options", "TransientError", "Turn", "VisionModel", "open_model"]
BACKENDS = ("none", "openai", "transformers")


@dataclass(frozen=True)
class Options:
    """Which model, and where.

    Attributes:
        backend: one of `BACKENDS`.
        model: its name at the endpoint, or name or folder of a model of transformers.
        endpoint: address of `openai`, as `http://localhost:8000/v1`.
        key_env: environment variable that holds the key.
        timeout: seconds for an answer.
    """

    backend: str = "none"
    model: str | None = None
    endpoint: str | None = None
    key_env: str = "OPENAI_API_KEY"
    timeout: float = 120.0


def open_model(options: Options, what: str, device="cpu", dtype=None) -> VisionModel | None:
    """The model that the options name; None for `none`.

    Args:
        options: the user's.
        what: the option of the backend, for messages; the others are named after it (`--rephrase`, `--rephrase-model`).
        device, dtype: of a model in this process.

    Raises:
        UserError: something is missing or of no use.
    """
    join = "-" if what.startswith("--") else "_"
    if options.backend not in BACKENDS:
        raise UserError(f"{what} {options.backend} is unknown; use one of {', '.join(BACKENDS)}")
    if options.backend == "none":
        return None
    if not options.model:
        raise UserError(f"{what} {options.backend} needs {what}{join}model")
    if options.backend == "openai":
        if not (options.endpoint or "").startswith(("http://", "https://")):
            raise UserError(f"{what} openai needs {what}{join}endpoint, as http://localhost:8000/v1")
        from phantom_mega.vlm.endpoint import Endpoint

        key = os.environ.get(options.key_env)
        told = f"the key in ${options.key_env}" if key else f"requests without a key (${options.key_env} is not set)"
        return Endpoint(options.endpoint, options.model, key, told, timeout=options.timeout)
    from phantom_mega.vlm.local import LocalModel

    return LocalModel(options.model, device, **({} if dtype is None else {"dtype": dtype}))
