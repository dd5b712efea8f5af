"""The frozen encoders of a release: copied into it, or only named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModel

from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.conditioning.sources import explain_missing, resolve_source
from phantom_mega.conditioning.text import load_tokenizer
from phantom_mega.conditioning.vae import load_vae
from phantom_mega.conditioning.vision import load_vision_tower
from phantom_mega.config import ConditioningConfig, ModelConfig
from phantom_mega.errors import UserError
from phantom_mega.release.bundle import bundle

CHOICES = ("auto", "copy", "reference")
ABSENT = [None, None]
# What the pipeline must know of an encoder that it loads itself.
FIELDS = {
    "vae": ("vae", "vae_subfolder"),
    "text_encoder": ("text_encoder", "text_encoder_dtype"),
    "image_encoder": ("vision_encoder", "vision_pretrained"),
}
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_STEM = "model.safetensors"


def write_components(conditioning: ConditioningConfig, target: Path, choice: str) -> dict:
    """Write or name each encoder.

    Args:
        conditioning: where the run took its encoders from.
        target: the export's folder.
        choice: `auto` copies what is shipped or lies in a folder and names what is on the hub.

    Returns:
        Entries of `model_index.json`: [library, class], or [None, None] for an encoder that the pipeline loads at the
        first use; `conditioning` says where those are, and nothing of this machine's folders.

    Raises:
        UserError: an encoder cannot be found; or something that is local is to be named alone.
    """
    if choice not in CHOICES:
        raise UserError(f"components={choice!r} is unknown; use one of {', '.join(CHOICES)}")
    parts: tuple[tuple[str, str, str, Callable], ...] = (
        ("conditioning.vae", conditioning.vae, "vae", _write_vae),
        ("conditioning.text_encoder", conditioning.text_encoder, "text_encoder", _write_text),
        ("conditioning.vision_encoder", conditioning.vision_encoder, "image_encoder", _write_vision),
    )
    index: dict = {"conditioning": {}}
    for field, name, place, write in parts:
        local = is_local(name) or (place == "image_encoder" and _is_file(conditioning.vision_pretrained))
        if choice == "reference" and local:
            raise UserError(f"{field}={name} lies on this machine alone: nobody else could load it by name; copy it")
        if choice == "copy" or local:
            index |= write(conditioning, target)
        else:
            index |= {place: ABSENT} | ({"tokenizer": ABSENT} if place == "text_encoder" else {})
            index["conditioning"] |= {name: getattr(conditioning, name) for name in FIELDS[place]}
    return index


def check_widths(target: Path, model: ModelConfig) -> None:
    """Refuse encoders whose features are not as wide as those that the model was trained on.

    Raises:
        UserError: names both widths.
    """
    found = {}
    if (target / "vae").is_dir():
        found["latent_channels"] = json.loads((target / "vae/config.json").read_text()).get("latent_channels")
    if (target / "text_encoder").is_dir():
        config = AutoConfig.from_pretrained(target / "text_encoder", trust_remote_code=False)
        found["text_dim"] = config.get_text_config().hidden_size
    for field, width in found.items():
        if width != getattr(model, field):
            raise UserError(
                f"model.{field} is {getattr(model, field)}, but the encoder gives {width}: it is not that of training"
            )


def is_local(name: str) -> bool:
    """Whether an encoder is shipped with this project or a package, or is a folder, rather than a name on the hub."""
    return name in ("linear", "tiny") or name.startswith("package:") or Path(name).is_dir()


def _is_file(path: str | None) -> bool:
    return path is not None and Path(path).is_file()


def _write_vae(conditioning: ConditioningConfig, target: Path) -> dict[str, list]:
    if conditioning.vae == "linear":
        LinearVideoVAE.shipped().save_pretrained(target / "vae")
        (target / "vae/linear_vae.py").write_text(bundle("phantom_mega.conditioning.linear_vae"))
        return {"vae": ["linear_vae", "LinearVideoVAE"]}
    vae = load_vae(conditioning, "cpu", torch.float32).model
    vae.save_pretrained(target / "vae")
    return {"vae": ["diffusers", type(vae).__name__]}


def _write_text(conditioning: ConditioningConfig, target: Path) -> dict[str, list]:
    tokenizer = load_tokenizer(conditioning.text_encoder)
    tokenizer.save_pretrained(target / "tokenizer")
    source = _folder_of(conditioning.text_encoder)
    (target / "text_encoder").mkdir()
    # File by file: a language model may be larger than memory.
    for name in ("config.json", *_weight_files(source)):
        shutil.copyfile(source / name, target / "text_encoder" / name)
    name = AutoModel._model_mapping[type(AutoConfig.from_pretrained(source))].__name__
    return {"text_encoder": ["transformers", name], "tokenizer": ["transformers", type(tokenizer).__name__]}


def _folder_of(name: str) -> Path:
    """The folder of a text encoder, downloaded if it is on the hub.

    Raises:
        UserError: it cannot be found.
    """
    folder = Path(resolve_source(name))
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, allow_patterns=["*.json", *_WEIGHTS]))
        except Exception as error:  # the hub's client raises nearly anything
            raise explain_missing("the text encoder", name, error) from None
    return folder


def _weight_files(source: Path) -> list[str]:
    """Files of weights that transformers reads in a folder; others may lie beside them, in formats of their own.

    Raises:
        UserError: there are none, or the index names one that is not there.
    """
    index = source / f"{_STEM}.index.json"
    if not index.is_file():
        names = [_STEM]
    else:
        try:
            names = [index.name, *sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is damaged ({type(error).__name__}: {error})") from None
    for name in names:
        if Path(name).name != name or not (source / name).is_file():
            raise UserError(f"{source} has no {name}; load the text encoder and save it again with save_pretrained")
    return names


def _write_vision(conditioning: ConditioningConfig, target: Path) -> dict[str, list]:
    load_vision_tower(conditioning, "cpu").model.save_pretrained(target / "image_encoder")
    (target / "image_encoder/vision_tower.py").write_text(bundle("phantom_mega.hf.vision_tower"))
    return {"image_encoder": ["vision_tower", "PhantomVisionTower"]}
