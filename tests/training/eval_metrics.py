"""Metrics of sample videos that tests name as `module:function`."""

import os
import signal
from pathlib import Path

import numpy as np
import torch

from phantom_mega.checkpoint.folder import checkpoint_root
from phantom_mega.evaluation.metric import Item, Measured

ITEMS: list[Item] = []
SEEN: list[list[str]] = []
ARGUMENTS: list[tuple] = []


class Called:
    """A metric that a function makes."""

    higher_is_better = True

    def __init__(self, name, function):
        self.name, self.title, self.measure = name, name, function


def remembering(config, device):
    """Keeps every item."""
    ARGUMENTS.append((config, device))

    def measure(item):
        ITEMS.append(item)
        return Measured(float(len(item.references)), "a reason" if len(item.references) == 1 else "")

    return Called("references", measure)


def signalling(config, device):
    """Sends SIGTERM to its process when it first measures."""
    sent = []

    def measure(item):
        if not sent:
            sent.append(item)
            os.kill(os.getpid(), signal.SIGTERM)
        return Measured(1.0)

    return Called("signalling", measure)


def failing(config, device):
    """Cannot measure anything."""

    def measure(item):
        raise RuntimeError("no such luck\nat all")

    return Called("failing", measure)


def bare_number(config, device):
    """Forgets the `Measured` around its value."""
    return Called("bare_number", lambda item: 0.5)


def tensors(config, device):
    """Measures in tensors and NumPy's numbers, as people's code does."""
    return Called("tensors", lambda item: Measured(torch.tensor(0.5), detail={"one": np.float32(0.25)}))


def looking(config, device):
    """Keeps the names of the checkpoints that are there while it measures."""

    def measure(item):
        SEEN.append(sorted(path.name for path in checkpoint_root(Path(config.train.save)).glob("iter_*")))
        return Measured(1.0)

    return Called("looking", measure)


def obstructing(config, device):
    """Puts something in the way of the videos' record."""

    def measure(item):
        for folder in Path(config.train.save).glob("samples/.iter_*"):
            (folder / "samples.json").mkdir(exist_ok=True)
        return Measured(1.0)

    return Called("obstructing", measure)


def broken(config, device):
    """Cannot be loaded."""
    raise OSError("no weights here")


def no_metric(config, device):
    return 3


NOT_A_FUNCTION = 1
remembering_too = remembering
