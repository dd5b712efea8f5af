"""Encodes the packs of the next iteration while this one trains: in a thread, on a GPU on a stream of its own.

An encoder's work is then in the gaps that communication and the pipeline leave; no step waits for it unless encoding
takes longer than the step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist

from phantom_mega.conditioning.head import InputHead, SampleFeatures
from phantom_mega.conditioning.share import encode_share
from phantom_mega.data.loader import PackLoader
from phantom_mega.data.plan import Pack
from phantom_mega.data.prefetch import Prefetcher, side_stream, used_here


@dataclass(frozen=True)
class EncodedShare:
    """A pack, encoded as far as it is this rank's.

    Attributes:
        pack: the planned samples.
        own: position in the pack -> features, of this rank's samples.
        errors: one message for each of them that could not be read.
    """

    pack: Pack
    own: dict[int, SampleFeatures]
    errors: list[str]


def encode_next(loader: PackLoader, head: InputHead, group: dist.ProcessGroup | None) -> EncodedShare:
    """Take this rank's next pack from the loader and encode its share, now.

    Raises: as `PackLoader.take`.
    """
    pack, share = loader.take()
    own = [item for item in share if item is not None]
    for item in own:
        used_here((item.video, item.references))
    errors = [item.error for item in own if item.error]
    return EncodedShare(pack, encode_share(share, head, group), errors)


class EncodeAhead:
    """This rank's packs in order, encoded before they are asked for.

    Args:
        loader: of decoded packs; closed with this.
        head: the encoders.
        group: the model-parallel group, or None.
        packs: so many are kept encoded.

    Attributes:
        wait_seconds: time that `take` waited so far.
    """

    def __init__(self, loader: PackLoader, head: InputHead, group: dist.ProcessGroup | None, packs: int):
        self.loader, self.device = loader, head.device
        work = functools.partial(self._work, functools.partial(encode_next, loader, head, group))
        self._prefetcher = Prefetcher(work, packs, "encoder's thread")

    def _work(self, encode: Callable[[], EncodedShare], put: Callable[[EncodedShare], bool]) -> None:
        wanted = True
        while wanted:
            try:
                with side_stream(self.device):
                    encoded = encode()
            except StopIteration:  # the loader was closed
                return
            wanted = put(encoded)

    def take(self) -> EncodedShare:
        """The next pack.

        Raises:
            StopIteration: after `close`.
            Exception: what stopped the loader or the encoders.
        """
        encoded = self._prefetcher.take()
        for features in encoded.own.values():
            used_here(features.tensors())
        return encoded

    @property
    def wait_seconds(self) -> float:
        """Time that `take` waited so far."""
        return self._prefetcher.wait_seconds

    def close(self) -> None:
        """Stop the threads."""
        self.loader.close()
        self._prefetcher.close()
