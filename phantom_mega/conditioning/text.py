"""The frozen text encoder: Qwen2.5, or any encoder that AutoModel loads. Features are its last hidden states."""

from __future__ import annotations

import torch
from transformers import AutoModel, AutoTokenizer

from phantom_mega.conditioning.sources import explain_missing, resolve_source
from phantom_mega.config import ConditioningConfig
from phantom_mega.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class FrozenTextEncoder:
    """A language model in eval mode without gradients.

    Captions are encoded as they are (no chat template). l: tokens of a caption, special tokens included.

    Args:
        model: a transformers model with `last_hidden_state`.
        tokenizer: its tokenizer.
        name: as the recipe names it, for messages.

    Attributes:
        dim: width of the features.
        calls: captions encoded so far.
    """

    def __init__(self, model: torch.nn.Module, tokenizer, name: str):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.tokenizer.padding_side = "right"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.name = name
        self.dim: int = model.config.hidden_size
        self.calls = 0

    def token_ids(self, caption: str) -> list[int]:
        """Token ids; at least one, since a sample's text stream is never empty."""
        ids = self.tokenizer(caption, verbose=False)["input_ids"]
        return ids or [self.tokenizer.pad_token_id]

    def count_tokens(self, caption: str) -> int:
        """l of a caption, uncut."""
        return len(self.token_ids(caption))

    @torch.no_grad()
    def encode(self, captions: list[str], lengths: list[int | None] | None = None) -> list[torch.Tensor]:
        """Features [l, dim], float32, of each caption.

        Args:
            captions: the prompts.
            lengths: tokens that the plan keeps of each; a longer caption is cut to it. None keeps all.

        Raises:
            UserError: a caption has fewer tokens than planned: the index was counted with another tokenizer.
        """
        if not captions:
            return []
        ids = [self.token_ids(caption) for caption in captions]
        for i, length in enumerate(lengths or [None] * len(captions)):
            if length is None:
                continue
            if len(ids[i]) < length:
                raise UserError(
                    f"{captions[i][:60]!r} has {len(ids[i])} tokens for {self.name}, the index says {length}; recount "
                    f"it: python tools/build_index.py DATA_FOLDER --recount-text {self.name}"
                )
            ids[i] = ids[i][:length]
        self.calls += len(captions)
        width, device = max(map(len, ids)), self.model.device
        padded = torch.tensor([row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in ids], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=device)
        hidden = self.model(input_ids=padded, attention_mask=mask).last_hidden_state
        return [features[: len(row)].float() for features, row in zip(hidden, ids)]

    def empty(self) -> torch.Tensor:
        """Features [l0, dim] of the empty prompt, which text dropout and guidance use."""
        return self.encode([""])[0]


def load_tokenizer(name: str):
    """The tokenizer of `conditioning.text_encoder`.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(resolve_source(name))
    except (OSError, ValueError) as error:
        raise explain_missing("the tokenizer of", name, error) from None


def load_text_encoder(config: ConditioningConfig, device: torch.device | str) -> FrozenTextEncoder:
    """Load the text encoder that the recipe names.

    Raises:
        UserError: it cannot be found, or `text_encoder_dtype` is unknown.
    """
    if config.text_encoder_dtype not in DTYPES:
        raise UserError(
            f"conditioning.text_encoder_dtype={config.text_encoder_dtype!r} is unknown; use {' or '.join(DTYPES)}"
        )
    tokenizer = load_tokenizer(config.text_encoder)
    try:
        model = AutoModel.from_pretrained(resolve_source(config.text_encoder), dtype=DTYPES[config.text_encoder_dtype])
    except (OSError, ValueError) as error:
        raise explain_missing("the text encoder", config.text_encoder, error) from None
    return FrozenTextEncoder(model.to(device), tokenizer, config.text_encoder)
