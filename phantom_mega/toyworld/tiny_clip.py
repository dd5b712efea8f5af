"""A tiny CLIP of the toy world in open_clip's own form: reference images against captions that name what they show.

`conditioning.vision_encoder=FOLDER` loads it. The model reads patch tokens, not the pooled embedding; the image side
is pooled by their mean, so that every patch token learns what captions name.
n: images, c: patch tokens of an image, d: width of the features.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from phantom_mega.conditioning.vision import FrozenVisionTower
from phantom_mega.hf.vision_tower import PhantomVisionTower
from phantom_mega.toyworld.captions import phrase
from phantom_mega.toyworld.samples import make_sample
from phantom_mega.toyworld.spoiling import bfloat16_is_fast, fit
from phantom_mega.toyworld.subjects import HUES, PARTS, SHAPES, TEXTURES, Subject, colour_name, draw_subject

MODEL_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": 32, "patch_size": 16, "width": 96, "layers": 3, "head_width": 32, "mlp_ratio": 3.0,
        "pool_type": "avg",
    },
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}  # fmt: skip
PREPROCESS_CONFIG = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
STEPS = 2000
BATCH = 128
POOL = 8000  # reference images that are trained on
LEARNING_RATE = 2e-3
COLOURLESS_SHARE = 0.5  # of captions; those that name colours alone tell nearly all images of a batch apart
SCENE_ACTORS = 4  # of the samples that references are taken from
# What is told apart by captions, and its values.
CLASSES: dict[str, tuple[Sequence[str], Callable[[Subject], str]]] = {
    "colour": (tuple(HUES), lambda subject: colour_name(subject.body)),
    "shape": (SHAPES, lambda subject: subject.shape),
    "texture": (TEXTURES, lambda subject: subject.texture),
    "part": (PARTS, lambda subject: subject.part),
}
PROMPTS = 40  # captions that stand for one class
RIDGE = 1e-1  # of the linear probe, relative to the features' variance


@dataclass(frozen=True)
class TinyClip:
    """The model and what its images go through.

    Attributes:
        model: of open_clip.
        tower: its vision tower as training reads it.
    """

    model: torch.nn.Module
    tower: FrozenVisionTower

    @classmethod
    def of(cls, model: torch.nn.Module) -> TinyClip:
        """Wrap an open_clip model of `MODEL_CONFIG`; the tower shares its weights."""
        with torch.device("meta"):
            tower = PhantomVisionTower(
                MODEL_CONFIG["vision_cfg"], MODEL_CONFIG["embed_dim"], False,
                (MODEL_CONFIG["vision_cfg"]["image_size"],) * 2,
                tuple(PREPROCESS_CONFIG["mean"]), tuple(PREPROCESS_CONFIG["std"]),
            )  # fmt: skip
        tower.tower = model.visual
        return cls(model, FrozenVisionTower(tower, "the toy world's CLIP"))

    def write(self, folder: Path) -> None:
        """Write into a folder what open_clip's `push_to_hf_hub` writes."""
        config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
        (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
        state = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")

    @torch.no_grad()
    def embed_images(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Unit embeddings [n, 64] of uint8 images [h, w, 3]."""
        pixels = torch.stack([self.tower.preprocess(image) for image in images])
        return self.model.encode_image(pixels, normalize=True)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit embeddings [n, 64]."""
        return self.model.encode_text(tokenizer()(list(texts)), normalize=True)


@functools.cache
def tokenizer() -> open_clip.SimpleTokenizer:
    """open_clip's own, of the tiny model's context length."""
    return open_clip.SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])


def reference_pool(count: int, seed: int, split: str) -> tuple[list[np.ndarray], list[Subject]]:
    """Reference images uint8 [h, w, 3] as samples have them, and whom they show."""
    images, subjects = [], []
    while len(images) < count:
        sample = make_sample(seed, len(images), split=split, actors=SCENE_ACTORS)
        images += [reference.image for reference in sample.references]
        subjects += [reference.subject for reference in sample.references]
    return images[:count], subjects[:count]


def train_tiny_clip(seed: int = 0, steps: int = STEPS, pool: int = POOL, progress: bool = True) -> TinyClip:
    """Train contrastively (CLIP, Radford et al. 2021, by open_clip's `ClipLoss`) on training subjects alone.

    Args:
        seed: of weights, images and captions.
        steps: each of `BATCH` pairs.
        pool: reference images to draw from; mirrored and shifted in colour at random.
        progress: show a bar on stderr.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(
            MODEL_CONFIG["embed_dim"], MODEL_CONFIG["vision_cfg"], MODEL_CONFIG["text_cfg"], output_dict=True
        )
    clip = TinyClip.of(model)
    model.train().requires_grad_(True)
    images, subjects = reference_pool(pool, seed, "train")
    pixels = torch.stack([clip.tower.preprocess(image) for image in images])
    full = tokenizer()([phrase(subject, "distinct") for subject in subjects])
    without = tokenizer()([phrase(subject, "distinct", colours=False) for subject in subjects])
    decayed = [weight for weight in model.parameters() if weight.ndim >= 2]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    rng, loss_of = np.random.default_rng(seed), ClipLoss()

    def loss_at(step: int) -> torch.Tensor:
        rows = rng.choice(pool, min(BATCH, pool), replace=False)
        colourless = torch.from_numpy(rng.random(len(rows)) < COLOURLESS_SHARE)[:, None]
        texts = torch.where(colourless, without[rows], full[rows])
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_fast(torch.device("cpu"))):
            told = model(augment(pixels[rows], rng), texts)
        return loss_of(**{name: value.float() for name, value in told.items()})

    def keep_scale() -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))  # as CLIP was trained

    # Of sequences of 5 and 32 tokens the CPU's flash attention takes several times as long backward as plain products.
    with sdpa_kernel(SDPBackend.MATH):
        fit(model, optimizer, steps, loss_at, "train CLIP", progress, max_norm=1.0, after_step=keep_scale)
    return TinyClip.of(model.eval().requires_grad_(False))


def augment(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mirror and shift each image [n, 3, H, W] at random by up to 2 pixels, and change its brightness and contrast."""
    out = []
    for image in pixels:
        image = image.flip(2) if rng.random() < 0.5 else image
        dx, dy = (int(shift) for shift in rng.integers(-2, 3, 2))
        padded = F.pad(image[None], (2, 2, 2, 2), mode="replicate")[0]
        image = padded[:, 2 + dy : 2 + dy + image.shape[1], 2 + dx : 2 + dx + image.shape[2]]
        out.append(image * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(-0.1, 0.1)))
    return torch.stack(out)


def zero_shot_accuracy(clip: TinyClip, count: int = 400, seed: int = 1) -> dict[str, float]:
    """Accuracy of each of `CLASSES` on reference images of held-out subjects.

    A class is the mean embedding of `PROMPTS` captions of training subjects that belong to it.
    """
    images, subjects = reference_pool(count, seed, "validation")
    shown = clip.embed_images(images)
    rng = np.random.default_rng(seed)
    cast = [draw_subject(rng, from_held_out=False) for _ in range(PROMPTS * 2 * len(HUES))]
    written = clip.embed_texts([phrase(subject, "distinct") for subject in cast])
    accuracy = {}
    for name, (known, value_of) in CLASSES.items():
        values = np.array([value_of(subject) for subject in cast])
        prototypes = torch.stack([written[values == value][:PROMPTS].mean(0) for value in known])
        told = (shown @ F.normalize(prototypes, dim=-1).T).argmax(1).tolist()
        accuracy[name] = float(np.mean([known[index] == value_of(subject) for index, subject in zip(told, subjects)]))
    return accuracy


def probe_accuracy(tower: FrozenVisionTower, fit: int = 1500, count: int = 400, seed: int = 2) -> dict[str, dict]:
    """What can be read linearly from a tower's patch tokens: ridge regression on one-hot classes.

    Args:
        tower: any that training takes.
        fit: reference images of training subjects that the probe is fitted on.
        count: of held-out subjects that it is measured on.
        seed: of the images.

    Returns:
        Accuracy of each of `CLASSES` from the `mean` of an image's tokens, and from `all` of them side by side.
    """
    sets = [reference_pool(fit, seed, "train"), reference_pool(count, seed, "validation")]
    tokens = [tower.encode(images).double().cpu() for images, _ in sets]
    result: dict[str, dict] = {}
    for way, inputs in (("mean", [x.mean(1) for x in tokens]), ("all", [x.flatten(1) for x in tokens])):
        result[way] = {}
        for name, (known, value_of) in CLASSES.items():
            labels = [torch.tensor([known.index(value_of(subject)) for subject in subjects]) for _, subjects in sets]
            told = ridge_classes(inputs[0], labels[0], inputs[1], len(known))
            result[way][name] = float((told == labels[1]).double().mean())
    return result


def ridge_classes(x: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, classes: int) -> torch.Tensor:
    """Classes [m] of queries [m, d] by ridge regression of one-hot labels [n] on standardized features [n, d]."""
    mean, spread = x.mean(0), x.std(0).clamp(min=1e-6)
    x, queries = (torch.cat([(v - mean) / spread, torch.ones(len(v), 1).to(v)], 1) for v in (x, queries))
    gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1]).to(x)
    return (queries @ torch.linalg.solve(gram, x.T @ F.one_hot(labels, classes).to(x))).argmax(1)
