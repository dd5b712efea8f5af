"""The frozen encoders of an export: copied into it, or referred to by the name under which training found them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from diffusers import AutoencoderKLCogVideoX
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModel

from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.conditioning.sources import explain_missing, resolve_source
from phantom_mega.conditioning.text import load_tokenizer
from phantom_mega.conditioning.vae import CLASSES
from phantom_mega.conditioning.vision import load_vision_tower
from phantom_mega.config import ConditioningConfig, RunConfig
from phantom_mega.errors import UserError
from phantom_mega.generation.load import pipeline_settings
from phantom_mega.release.bundle import bundle

MODES = ("copy", "reference")
ABSENT = [None, None]
_SAMPLES = ("a man rides a red bicycle", "", "Two women in blue coats; 3 dogs!")


def write_components(folder: Path, config: RunConfig, mode: str | None) -> tuple[dict[str, list], dict]:
    """Write the encoders' folders.

    Args:
        folder: of the export.
        config: of the run; names the encoders and the widths that the model reads.
        mode: `copy` all (hub names are downloaded), `reference` all that have a name others can use, or None: copy
            what is local (folders, files, `package:NAME/PATH`) or part of this project, refer to names on the hub.

    Returns:
        Entries of `model_index.json` by component, and its `conditioning`: where the pipeline loads those components
        that are not there, without this machine's paths of those that are.

    Raises:
        UserError: an encoder cannot be found, is not whole, or has another width than the model reads.
    """
    if mode not in (None, *MODES):
        raise UserError(f"components={mode!r} is unknown; use one of {', '.join(MODES)}")
    source = config.conditioning
    entries = {"vae": ABSENT, "text_encoder": ABSENT, "tokenizer": ABSENT, "image_encoder": ABSENT}
    conditioning = pipeline_settings(config)["conditioning"]
    if source.vae == "linear" or _is_copied(source.vae, mode):
        entries["vae"] = _write_vae(folder / "vae", source, config.model.latent_channels)
        _hide_paths(conditioning, "vae")
    if _is_copied(source.text_encoder, mode):
        entries["text_encoder"] = _write_text_encoder(folder / "text_encoder", source, config.model.text_dim)
        entries["tokenizer"] = _write_tokenizer(folder / "tokenizer", source.text_encoder)
        _hide_paths(conditioning, "text_encoder")
    files = [name for name in (source.vision_encoder, source.vision_pretrained) if name]
    if source.vision_encoder == "tiny" or any(_is_copied(name, mode) for name in files):
        entries["image_encoder"] = _write_vision_tower(folder / "image_encoder", source, config.model.clip_dim)
        _hide_paths(conditioning, "vision_encoder", "vision_pretrained")
    return entries, conditioning


def referred(entries: dict[str, list]) -> list[str]:
    """Components that an export does not hold."""
    return [name for name, entry in entries.items() if entry == ABSENT]


def _is_local(name: str) -> bool:
    return name.startswith("package:") or Path(name).exists()


def _is_copied(name: str, mode: str | None) -> bool:
    return mode == "copy" or (mode is None and _is_local(name))


def _hide_paths(conditioning: dict, *fields: str) -> None:
    """Names of this machine's files tell nobody anything, and may tell too much."""
    for field in fields:
        if conditioning[field] and Path(conditioning[field]).exists():
            conditioning[field] = None


def _local_folder(what: str, name: str, subfolder: str | None, patterns: Iterable[str]) -> Path:
    """The folder of a source, downloaded where it is a hub name."""
    resolved = resolve_source(name)
    if not Path(resolved).is_dir():
        below = f"{subfolder}/" if subfolder else ""
        try:
            resolved = snapshot_download(resolved, allow_patterns=[below + pattern for pattern in patterns])
        except Exception as error:  # the hub's client raises nearly anything
            raise explain_missing(what, name, error) from None
    found = Path(resolved, subfolder or "")
    if not (found / "config.json").is_file():
        raise UserError(f"{what} {name!r} has no {found.name}/config.json")
    return found


def _copy_weights(source: Path, target: Path, stem: str) -> bool:
    """Copy config.json and safetensors under the libraries' names; False where there are no safetensors.

    Raises:
        UserError: the index names a file that is not in the folder.
    """
    index = source / f"{stem}.safetensors.index.json"
    names = [f"{stem}.safetensors"]
    if index.is_file():
        try:
            names = [index.name, *sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is damaged ({type(error).__name__}: {error})") from None
    elif not (source / names[0]).is_file():
        return False
    target.mkdir()
    for name in ["config.json", *names]:
        if Path(name).name != name or not (source / name).is_file():
            raise UserError(f"{source} has no file {name!r}, which its weights need")
        shutil.copyfile(source / name, target / name)  # hub caches hold links
    return True


def _check_width(field: str, wanted: int, found: int, name: str) -> None:
    if wanted != found:
        raise UserError(f"{field} is {wanted}, but {name} gives {found}; the checkpoint was trained with another one")


def _write_vae(folder: Path, source: ConditioningConfig, channels: int) -> list[str]:
    if source.vae == "linear":
        vae = LinearVideoVAE.shipped()
        _check_width("model.latent_channels", channels, vae.config.latent_channels, source.vae)
        vae.save_pretrained(folder)
        name = LinearVideoVAE.__name__
    else:
        patterns = ("config.json", "*.safetensors", "*.safetensors.index.json")
        found = _local_folder("the VAE", source.vae, source.vae_subfolder, patterns)
        config = AutoencoderKLCogVideoX.load_config(found)
        name = config.get("_class_name")
        if name not in CLASSES:
            hint = "; set conditioning.vae_subfolder=vae" if (found / "vae/config.json").is_file() else ""
            raise UserError(f"{source.vae} is a {name}; the VAE must be one of {', '.join(CLASSES)}{hint}")
        _check_width("model.latent_channels", channels, config.get("latent_channels"), source.vae)
        if not _copy_weights(found, folder, "diffusion_pytorch_model"):
            CLASSES[name].from_pretrained(found).save_pretrained(folder)
    if name != LinearVideoVAE.__name__:
        return ["diffusers", name]
    (folder / "linear_vae.py").write_text(
        bundle("phantom_mega.conditioning.linear_vae", "The VAE that config.json beside it describes.")
    )
    return ["linear_vae", name]


def _write_text_encoder(folder: Path, source: ConditioningConfig, width: int) -> list[str]:
    name = source.text_encoder
    found = _local_folder("the text encoder", name, None, ("*.json", "*.safetensors", "*.txt", "*.model"))
    try:
        config = AutoConfig.from_pretrained(found, trust_remote_code=False)
        with torch.device("meta"):  # the class alone
            kind = type(AutoModel.from_config(config, trust_remote_code=False)).__name__
        _check_width("model.text_dim", width, config.get_text_config().hidden_size, name)
        if not _copy_weights(found, folder, "model"):
            AutoModel.from_pretrained(found, dtype="auto", trust_remote_code=False).save_pretrained(folder)
    except (UserError, OSError) as error:
        if isinstance(error, UserError) or error.errno is not None:
            raise
        raise explain_missing("the text encoder", name, error) from None
    except Exception as error:  # transformers raises nearly anything on files that are not what their names say
        raise explain_missing("the text encoder", name, error) from None
    return ["transformers", kind]


def _write_tokenizer(folder: Path, name: str) -> list[str]:
    """Saved as it was used, with its padding token: the pipeline takes it as diffusers loads it."""
    tokenizer = load_tokenizer(name)
    tokenizer.save_pretrained(folder)
    kind = type(tokenizer).__name__
    loaded = getattr(transformers, kind).from_pretrained(folder)
    for text in _SAMPLES:
        if loaded(text)["input_ids"] != tokenizer(text)["input_ids"]:
            raise UserError(f"the tokenizer of {name} reads {text!r} otherwise once it is saved; use another folder")
    if loaded.pad_token_id is None:
        raise UserError(f"the tokenizer of {name} loses its padding token when it is saved; name one in its files")
    return ["transformers", kind]


def _write_vision_tower(folder: Path, source: ConditioningConfig, width: int) -> list[str]:
    tower = load_vision_tower(source, "cpu")
    _check_width("model.clip_dim", width, tower.dim, source.vision_encoder)
    _check_width("conditioning.clip_tokens", source.clip_tokens, tower.tokens, source.vision_encoder)
    tower.model.save_pretrained(folder)
    (folder / "vision_tower.py").write_text(
        bundle("phantom_mega.hf.vision_tower", "The vision tower that config.json beside it describes.")
    )
    return ["vision_tower", type(tower.model).__name__]
