"""Models of real classes with few and random weights, as folders that transformers loads."""

import json

import torch
from transformers import (
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    OwlViTProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
    SwinConfig,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from phantom_mega.conditioning.text import load_tokenizer
from tests.media import TEXT_ENCODER

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}\n{% endfor %}assistant:"
)


def write_qwen(folder):
    """A folder with a tiny Qwen2.5-VL with a real tokenizer and image processor."""
    tokenizer = load_tokenizer(TEXT_ENCODER)
    special = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    pad, video, start, end = tokenizer.convert_tokens_to_ids(special)
    tokenizer.model_max_length = 100_000
    images = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    processor = Qwen2_5_VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=TEMPLATE)
    config = Qwen2_5_VLConfig(
        text_config=dict(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.cls_token_id,
            rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
            eos_token_id=tokenizer.sep_token_id,
        ),
        vision_config=dict(depth=1, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=32,
                           fullatt_block_indexes=[0]),
        image_token_id=pad, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    # That encoder reads 128 tokens and their types; Qwen's does not.
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"max_length": None, "model_input_names": ["input_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_owl(folder):
    """A folder with a tiny OWL-ViT whose tokenizer spells."""
    characters = [char + end for char in "abcdefghijklmnopqrstuvwxyz0123456789,-'" for end in ("", "</w>")]
    vocabulary = {word: i for i, word in enumerate(["!", "<|startoftext|>", "<|endoftext|>", *characters])}
    tokens = dict(bos_token_id=1, eos_token_id=2, pad_token_id=2, vocab_size=len(vocabulary))
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    config = OwlViTConfig(
        text_config=dict(max_position_embeddings=16, **tokens, **shape),
        vision_config=dict(image_size=64, patch_size=16, **shape), projection_dim=32,
    )  # fmt: skip
    torch.manual_seed(0)
    OwlViTForObjectDetection(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)
    OwlViTProcessor(OwlViTImageProcessor(size=size, crop_size=size), tokenizer).save_pretrained(folder)
    return folder


def write_grounding_dino(folder):
    """A folder with a tiny Grounding DINO with a real tokenizer; its boxes are spread over the picture."""
    tokenizer = load_tokenizer(TEXT_ENCODER)
    backbone = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=dict(model_type="bert", vocab_size=len(tokenizer), **text), d_model=32,
        encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, num_queries=12, num_feature_levels=3, max_text_len=64,
    )  # fmt: skip
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


SAM_HEADS = {
    "prompt_encoder_config": dict(hidden_size=32, image_size=64, patch_size=16, mask_input_channels=4),
    "mask_decoder_config": dict(
        hidden_size=32, mlp_dim=64, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=32
    ),
}


def write_sam(folder):
    """A folder with a tiny SAM."""
    shape = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = SamConfig(
        vision_config=dict(
            image_size=64, patch_size=16, output_channels=32, global_attn_indexes=[0], window_size=0, mlp_ratio=2.0,
            num_pos_feats=16, **shape,
        ),
        **SAM_HEADS,
    )  # fmt: skip
    torch.manual_seed(0)
    SamModel(config).save_pretrained(folder)
    sizes = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    SamProcessor(SamImageProcessor(**sizes, mask_pad_size={"height": 16, "width": 16})).save_pretrained(folder)
    return folder


def write_sam2(folder):
    """A folder with a tiny SAM 2."""
    backbone = dict(
        model_type="sam2_hiera_det_model", image_size=[64, 64], hidden_size=8, num_attention_heads=1,
        blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 2, 2], global_attention_blocks=[3],
    )  # fmt: skip
    config = Sam2Config(
        vision_config=dict(
            backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=32,
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        ),
        **SAM_HEADS,
    )  # fmt: skip
    torch.manual_seed(0)
    Sam2Model(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    Sam2Processor(Sam2ImageProcessor(size=size, mask_size={"height": 16, "width": 16})).save_pretrained(folder)
    return folder
