"""What several metrics want to know of the same video is found once: masks, faces."""

from __future__ import annotations

from collections.abc import Callable

from phantom_mega.evaluation.metric import Item


class Remembered[T]:
    """A function of an item and an option, whose answers for the last item are kept.

    Args:
        function: of the item and the option.
    """

    def __init__(self, function: Callable[[Item, object], T]):
        self.function = function
        self._item: Item | None = None
        self._answers: dict[object, T] = {}

    def __call__(self, item: Item, option: object) -> T:
        if item is not self._item:
            self._item, self._answers = item, {}
        if option not in self._answers:
            self._answers[option] = self.function(item, option)
        return self._answers[option]
