"""A vision language model in this process: Qwen2.5-VL, or any that AutoModelForImageTextToText loads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from phantom_mega.conditioning.sources import explain_missing, resolve_source
from phantom_mega.vlm.base import TransientError, Turn, VisionModel
from phantom_mega.vlm.endpoint import MAX_SIDE

MAX_NEW_TOKENS = 1024


class LocalModel(VisionModel):
    """Asks a model by its chat template.

    Args:
        model: name on the hub, or folder.
        device: where it runs.
        dtype: of its weights.
        max_new_tokens: length of an answer.

    Raises:
        UserError: it cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ):
        self.max_new_tokens = max_new_tokens
        try:
            source = resolve_source(model)
            self.processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
            loaded = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, trust_remote_code=False)
        except Exception as error:  # transformers raises nearly anything on what is no such model
            raise explain_missing("the vision language model", model, error) from None
        self.model = loaded.to(device).eval()

    @torch.no_grad()
    def ask(self, turns: Sequence[Turn]) -> str:
        """See `VisionModel.ask`."""
        try:
            inputs = self.processor.apply_chat_template(
                [self._message(turn) for turn in turns], add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors="pt",
            ).to(self.model.device)  # fmt: skip
        except ValueError as error:  # longer than the model reads
            raise TransientError(f"the vision language model cannot take the prompt ({error})") from None
        try:
            ids = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        except torch.OutOfMemoryError:
            raise TransientError("the vision language model ran out of memory") from None
        answer = ids[0, inputs["input_ids"].shape[1] :]
        return self.processor.decode(answer, skip_special_tokens=True)

    def _message(self, turn: Turn) -> dict:
        images = []
        for image in turn.images:
            small = image.convert("RGB")
            small.thumbnail((MAX_SIDE, MAX_SIDE))
            images.append({"type": "image", "image": small})
        return {"role": turn.role, "content": [*images, {"type": "text", "text": turn.text}]}
