"""A pack as the model sees it: which tokens belong to which sample, where text and CLIP tokens stand, all windows.

Everything here follows from the shapes of the samples; features and noise are data and come separately.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from phantom_mega.attention import Windows
from phantom_mega.geometry import SampleShape
from phantom_mega.windows import WindowPlan, WindowSpec, pack_offsets, plan_windows


@dataclass(frozen=True)
class PackLayout:
    """Index tensors of one pack of B samples, padded to S visual and L text-stream tokens.

    Attributes:
        shapes: the samples.
        visual_sample: int64 [S], sample of every visual token (padding points at sample 0 and is never read back).
        text_sample: int64 [L], the same for the text stream.
        video_mask: bool [S], True on video tokens, the ones that carry noise and loss.
        text_index: int64 [Lt], place in the text stream of every caption token, sample after sample.
        clip_index: int64 [Lc], place in the text stream of every CLIP token.
        windows: the plain and the shifted grid; layer i uses `windows[i % 2]`.
    """

    shapes: tuple[SampleShape, ...]
    visual_sample: torch.Tensor
    text_sample: torch.Tensor
    video_mask: torch.Tensor
    text_index: torch.Tensor
    clip_index: torch.Tensor
    windows: tuple[Windows, Windows]

    @property
    def seq_length(self) -> int:
        """S, visual tokens with padding."""
        return len(self.visual_sample)

    @property
    def text_seq_length(self) -> int:
        """L, text-stream tokens with padding."""
        return len(self.text_sample)

    @classmethod
    def build(
        cls,
        shapes: list[SampleShape],
        spec: WindowSpec,
        axes_dim: list[int],
        theta: float,
        seq_length: int | None = None,
        text_seq_length: int | None = None,
        device: torch.device | str = "cpu",
    ) -> PackLayout:
        """Lay out the samples one after another; without lengths, the pack is not padded.

        Raises:
            UserError: the samples do not fit into the given lengths.
        """
        shapes = tuple(shapes)
        visual_at, text_at = pack_offsets(list(shapes))
        S = visual_at[-1] if seq_length is None else seq_length
        L = text_at[-1] if text_seq_length is None else text_seq_length
        even, odd = _plans(shapes, spec, S, L)
        plain = Windows.from_plan(even, axes_dim, theta, device)
        shifted = plain if odd is even else Windows.from_plan(odd, axes_dim, theta, device)
        tensors = [torch.from_numpy(array).to(device) for array in _token_arrays(shapes, visual_at, text_at, S, L)]
        return cls(shapes, *tensors, windows=(plain, shifted))


@dataclass(frozen=True)
class PackInputs:
    """What the model reads of one pack, beside its layout.

    Attributes:
        visual: [S, 4 * latent_channels], noisy video tokens and clean reference tokens.
        timestep: float32 [B] in [0, 1].
        text: [Lt, text_dim], caption features, sample after sample.
        clip: [Lc, clip_dim], vision features of all references, sample after sample.
        layout: the pack's index tensors.
    """

    visual: torch.Tensor
    timestep: torch.Tensor
    text: torch.Tensor
    clip: torch.Tensor
    layout: PackLayout


@functools.lru_cache(maxsize=256)
def _plans(shapes: tuple[SampleShape, ...], spec: WindowSpec, S: int, L: int) -> tuple[WindowPlan, WindowPlan]:
    even = plan_windows(list(shapes), spec, False, S, L)
    return even, plan_windows(list(shapes), spec, True, S, L) if spec.is_shifted(1) else even


def _token_arrays(
    shapes: tuple[SampleShape, ...], visual_at: list[int], text_at: list[int], S: int, L: int
) -> tuple[np.ndarray, ...]:
    """visual_sample, text_sample, video_mask, text_index, clip_index of `PackLayout`."""
    visual_sample, text_sample = np.zeros(S, dtype=np.int64), np.zeros(L, dtype=np.int64)
    video_mask = np.zeros(S, dtype=bool)
    text_index, clip_index = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for i, (shape, visual, text) in enumerate(zip(shapes, visual_at, text_at)):
        visual_sample[visual : visual_at[i + 1]] = i
        text_sample[text : text_at[i + 1]] = i
        video_mask[visual : visual + shape.video_tokens] = True
        text_index.append(np.arange(text, text + shape.text_tokens))
        clip_index.append(np.arange(text + shape.text_tokens, text_at[i + 1]))
    return visual_sample, text_sample, video_mask, np.concatenate(text_index), np.concatenate(clip_index)
