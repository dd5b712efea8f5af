"""A model that sees images and answers in text, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image


class TransientError(RuntimeError):
    """The model could not be asked this time: a time-out, an overloaded server, an answer that broke off."""


@dataclass
class Turn:
    """One message to the model.

    Attributes:
        role: `system`, `user` or `assistant`.
        text: what is said.
        images: that come before the text.
    """

    role: str
    text: str
    images: Sequence[Image.Image] = field(default_factory=tuple)


class VisionModel(ABC):
    """Asked by messages; subclasses say how."""

    @abstractmethod
    def ask(self, turns: Sequence[Turn]) -> str:
        """The model's next message.

        Raises:
            TransientError: it cannot be had now.
            SetupError: it can never be had so: wrong key, unknown model.
        """
