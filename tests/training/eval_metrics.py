"""Metrics of sample videos that tests name as `module:function`."""

import os
import signal

from phantom_mega.evaluation.metric import Item, Measured

ITEMS: list[Item] = []
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


def broken(config, device):
    """Cannot be loaded."""
    raise OSError("no weights here")


def no_metric(config, device):
    return 3


NOT_A_FUNCTION = 1
remembering_too = remembering
