"""Models that stages ask, at an endpoint or in this process: how they are opened, asked, and given CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from phantom_mega.conditioning.sources import check_complete, explain_missing, resolve_source
from phantom_mega.curation.engine.part import UNAVAILABLE
from phantom_mega.curation.engine.stage import Rejection
from phantom_mega.errors import UserError
from phantom_mega.vlm import Options, TransientError, Turn, VisionModel, open_model
from phantom_mega.vlm.asking import UnusableAnswerError, ask_until_usable

ASKED = ("openai", "transformers")  # backends of `open_asked`


def open_asked(what: str, options: Options, attempts: int) -> VisionModel:
    """The language model of a stage, on a GPU if there is one.

    Args:
        what: the setting that names the backend, for messages (`captions.caption`).
        options: the user's; the backend is one of `ASKED`.
        attempts: the user's; how often the model is asked at most.

    Raises:
        UserError: something is missing or of no use.
    """
    if attempts < 1:
        raise UserError(f"{what}_attempts={attempts}; a model is asked 1 time at least")
    if options.backend == "openai":
        return open_model(options, what)
    import torch

    device, dtype = ("cuda", torch.bfloat16) if has_gpu() else ("cpu", torch.float32)
    return open_model(options, what, device, dtype)


def ask_or_reject[T](
    model: VisionModel, turns: Sequence[Turn], read: Callable[[str], T], attempts: int, reason: str
) -> T:
    """What `read` makes of an answer (`vlm.asking.ask_until_usable`).

    Args:
        model, turns, read, attempts: see there.
        reason: of the rejection where no answer could be used.

    Raises:
        Rejection: the model is not available, or no answer could be used.
        SetupError: every other row would fail alike.
    """
    try:
        return ask_until_usable(model, turns, read, attempts)
    except TransientError as error:
        raise Rejection(UNAVAILABLE, None, str(error)) from None
    except UnusableAnswerError as error:
        raise Rejection(reason, None, str(error)) from None


def open_pretrained(what: str, name: str, kind: str, device: Any = None) -> tuple[Any, Any]:
    """(processor, model) of transformers in this process.

    Args:
        what: the setting that names it, for messages.
        name: on the hub, or a folder.
        kind: class of transformers that picks the model's own.
        device: where it computes; a GPU if there is one.

    Raises:
        UserError: it cannot be loaded, or misses weights.
    """
    import transformers

    try:
        source = resolve_source(name)
        processor = transformers.AutoProcessor.from_pretrained(source, trust_remote_code=False)
        model, info = getattr(transformers, kind).from_pretrained(
            source, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # transformers raises nearly anything on what is no such model
        raise explain_missing(what, name, error) from None
    check_complete(what, name, info["missing_keys"])
    return processor, model.to(device or ("cuda" if has_gpu() else "cpu")).eval()


def resources(backend: str, concurrency: int | None = None, local: Sequence[str] = ("transformers",)) -> dict[str, Any]:
    """Fields of a `Stage`: many workers without a CPU for an endpoint, a GPU each for models in this process.

    Args:
        backend: of the stage.
        concurrency: requests at once, to an endpoint.
        local: backends that run a model in this process.
    """
    if backend == "openai":
        return {"num_cpus": 0.1, "concurrency": concurrency}
    return {"num_gpus": 1.0 if backend in local and has_gpu() else 0.0}


def has_gpu() -> bool:
    """Whether a model in this process finds a GPU."""
    import torch

    return torch.cuda.is_available()
