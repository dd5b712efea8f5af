"""The frozen text encoder: Qwen2.5, or any encoder that AutoModel loads. Features are its last hidden states.

l: tokens of a caption, special tokens included. Captions are encoded as they are, without a chat template: the index
counts their tokens without loading a model, and a template's fixed words would only repeat in every sample.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from phantom_mega.conditioning.sources import check_complete, explain_missing, resolve_source
from phantom_mega.errors import UserError

if TYPE_CHECKING:  # an export carries this module without the run's configuration
    from phantom_mega.config import ConditioningConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Tokens, with padding, of one forward pass: bounds memory when a pack holds many captions.
BATCH_TOKENS = 16384


def load_tokenizer(name: str):
    """The tokenizer of `conditioning.text_encoder`, padding on the right.

    Raises:
        UserError: it cannot be loaded, or has neither a padding nor an end token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_source(name), trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # transformers raises nearly anything on files that are not what their names say
        raise explain_missing("the tokenizer of", name, error) from None
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer of {name} has neither a pad_token nor an eos_token; name one of them in it")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def token_ids(tokenizer, caption: str) -> list[int]:
    """Token ids of a caption, uncut; at least one, since a sample's text stream is never empty."""
    return tokenizer(caption, verbose=False)["input_ids"] or [tokenizer.pad_token_id]


class FrozenTextEncoder:
    """A language model in eval mode without gradients.

    Args:
        model: a transformers model whose output has `last_hidden_state`.
        tokenizer: from `load_tokenizer`.
        name: as the recipe names it, for messages.

    Attributes:
        dim: width of the features.
        max_positions: tokens that it can read at most, or None.
        calls: captions encoded so far.
    """

    def __init__(self, model: torch.nn.Module, tokenizer, name: str):
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        self.model = model.eval().requires_grad_(False)
        self.model.config.use_cache = False  # nothing is generated: keys and values would only fill memory
        self.tokenizer, self.name = tokenizer, name
        sizes = model.config.get_text_config()
        self.dim: int = sizes.hidden_size
        self.max_positions: int | None = getattr(sizes, "max_position_embeddings", None)
        self.calls = 0

    def count_tokens(self, caption: str) -> int:
        """l of a caption, uncut."""
        return len(token_ids(self.tokenizer, caption))

    @torch.no_grad()
    def encode(
        self, captions: list[str], lengths: list[int] | None = None, max_tokens: int | None = None
    ) -> list[torch.Tensor]:
        """Features [l, dim], float32, of each caption; they do not depend on the other captions.

        Args:
            captions: the prompts.
            lengths: tokens that the plan counts for each; None checks nothing.
            max_tokens: longer captions are cut to it (`data.max_text_tokens`); None cuts to what the model can read.

        Raises:
            UserError: a caption has another number of tokens than planned: another tokenizer counted the index.
        """
        limit = min((value for value in (max_tokens, self.max_positions) if value), default=None)
        ids = [token_ids(self.tokenizer, caption)[:limit] for caption in captions]
        for caption, row, length in zip(captions, ids, lengths or map(len, ids), strict=True):
            if len(row) != length:
                raise UserError(
                    f"the caption {caption[:60]!r} has {len(row)} tokens for {self.name}, its index says {length}: it "
                    f"was counted otherwise; run python tools/build_index.py DIR --recount-text {self.name}"
                )
        self.calls += len(captions)
        features: list[torch.Tensor | None] = [None] * len(ids)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # near lengths together: little padding
        while order:
            longest = len(ids[order[-1]])
            batch = [order.pop() for _ in range(min(len(order), max(1, BATCH_TOKENS // longest)))]
            for i, feature in zip(batch, self._forward([ids[i] for i in batch], longest)):
                features[i] = feature[: len(ids[i])].float()
        return features

    def _forward(self, ids: list[list[int]], longest: int) -> torch.Tensor:
        """[batch, longest, dim] of token ids padded on the right."""
        pad, device = self.tokenizer.pad_token_id, self.model.device
        padded = torch.tensor([row + [pad] * (longest - len(row)) for row in ids], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=device)
        return self.model(input_ids=padded, attention_mask=mask).last_hidden_state

    def empty(self) -> torch.Tensor:
        """Features [l0, dim] of the empty prompt, which text dropout and guidance use."""
        return self.encode([""])[0]


@contextlib.contextmanager
def quiet_loading():
    """No progress bar where nobody looks on: a log file would get one from every rank."""
    if sys.stderr.isatty() or not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def load_text_encoder(config: ConditioningConfig, device: torch.device | str) -> FrozenTextEncoder:
    """Load the text encoder that the recipe names; in float32 on a CPU, where bfloat16 would only be slower.

    Raises:
        UserError: it cannot be found, or `text_encoder_dtype` is unknown.
    """
    name, dtype = config.text_encoder, config.text_encoder_dtype
    if dtype not in DTYPES:
        raise UserError(f"conditioning.text_encoder_dtype={dtype!r} is unknown; use {' or '.join(DTYPES)}")
    tokenizer = load_tokenizer(name)
    torch_dtype = DTYPES[dtype] if torch.device(device).type == "cuda" else torch.float32
    try:
        with quiet_loading():
            model, loaded = AutoModel.from_pretrained(
                resolve_source(name), dtype=torch_dtype, trust_remote_code=False, output_loading_info=True
            )
        unused = ("pooler.", "decoder.") if model.config.is_encoder_decoder else ("pooler.",)
        check_complete("the text encoder", name, (key for key in loaded["missing_keys"] if not key.startswith(unused)))
    except UserError:
        raise
    except Exception as error:  # as above
        raise explain_missing("the text encoder", name, error) from None
    return FrozenTextEncoder(model.to(device), tokenizer, name)
