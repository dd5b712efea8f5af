"""Encoders of real classes with few and random weights, and MobileNet with ImageNet's."""

import json

import open_clip
import torch
from torchvision import models
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from phantom_mega.data.packages import MOBILENET, MOBILENET_FILE, extracted
from phantom_mega.evaluation.encoders import EncoderSettings, ImageEncoder

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_clip(folder, context_length=77):
    """(name, checkpoint, model) of a tiny CLIP with OpenAI's vocabulary and activation."""
    name = f"tiny-evaluation-{context_length}"
    config = {
        "embed_dim": 32, "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "head_width": 64, "patch_size": 8},
        "text_cfg": {"context_length": context_length, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    with torch.no_grad():  # a fresh CLIP's biases are zero, which would hide one that is not loaded
        for weight in model.parameters():
            weight += 0.02 * torch.randn_like(weight)
    torch.save(model.state_dict(), folder / f"{name}.pt")
    return name, folder / f"{name}.pt", model


def write_dino(folder):
    """A folder with a tiny DINOv2, and the model."""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28)
    model = Dinov2Model(config).eval()
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessor(**size, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder)
    return folder, model


def mobilenet(**settings):
    """Features of MobileNetV2 with ImageNet's weights, at 160 pixels."""
    model = models.mobilenet_v2()
    model.load_state_dict(torch.load(extracted(MOBILENET, MOBILENET_FILE), weights_only=True))
    model.classifier = torch.nn.Identity()
    return ImageEncoder(model.eval(), 160, *IMAGENET, EncoderSettings(**settings), "cpu")


def viclip_weights(clip, frames=8):
    """Weights of a ViCLIP made of a CLIP of open_clip, as a checkpoint names them; positions in time are zero."""
    weights = {"temp": torch.tensor(0.01)}
    for name, value in clip.state_dict().items():
        part = (
            f"vision_encoder.{name.removeprefix('visual.')}" if name.startswith("visual.") else f"text_encoder.{name}"
        )
        if name not in ("logit_scale", "attn_mask"):
            weights[part] = value.clone()
    weights["vision_encoder.conv1.weight"] = weights["vision_encoder.conv1.weight"][:, :, None]
    width = len(weights["vision_encoder.class_embedding"])
    weights["vision_encoder.temporal_positional_embedding"] = torch.zeros(1, frames, width)
    return weights
