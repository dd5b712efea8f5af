"""Open an export as a stranger does, strictly, and run it. A script of its own that needs no part of this project.

    python -I open_release.py EXPORT INPUTS OUTPUTS
`verify` starts it. INPUTS: safetensors with visual, timestep, text and clip of one pack, its samples in the metadata;
OUTPUTS: the velocity. What was checked is printed as one line of JSON.
"""

# ruff: noqa: E402 (the project must be hidden before anything is imported)
import importlib.abc
import json
import sys
from pathlib import Path


class NoProject(importlib.abc.MetaPathFinder):
    """Makes this project's packages, installed or not, impossible to import."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("phantom_mega", "megatron"):
            raise ImportError(f"{name} is not there for those who open an export")


sys.meta_path.insert(0, NoProject())

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from safetensors import safe_open
from safetensors.torch import save_file

# Weights that no part of the pipeline reads.
UNUSED = ("pooler.", "decoder.")


def check_tensors(name: str, model: torch.nn.Module, folder: Path) -> int:
    """Refuse a model that lacks a tensor of the files, has one that is in none, or differs from them in a value."""
    state, count = model.state_dict(), 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (not a dict)
                if key not in state:
                    sys.exit(f"{name}: the model has no {key}, which is in {file.name}")
                if not torch.equal(state.pop(key), opened.get_tensor(key).to(model.dtype)):
                    sys.exit(f"{name}: {key} is not what {file.name} holds")
                count += 1
    if state:
        sys.exit(f"{name}: {len(state)} tensors are in no file, the first is {min(state)}")
    return count


def check_text_encoder(model: torch.nn.Module, folder: Path) -> None:
    """Refuse a text encoder that transformers would leave random in part; loads it once more."""
    _, found = type(model).from_pretrained(folder, output_loading_info=True)
    missing = sorted(key for key in found["missing_keys"] if not key.startswith(UNUSED))
    if missing:
        sys.exit(f"text_encoder: {len(missing)} tensors are in no file, the first is {missing[0]}")


def forward(transformer: torch.nn.Module, inputs: str, outputs: str) -> None:
    """The velocity of one pack, with the release's own code for its layout."""
    code = sys.modules[type(transformer).__module__]
    with safe_open(inputs, "pt") as file:
        shapes = [code.SampleShape(*shape) for shape in json.loads(file.metadata()["shapes"])]
        pack = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    with torch.no_grad():
        velocity = transformer(
            hidden_states=pack["visual"],
            timestep=pack["timestep"],
            encoder_hidden_states=pack["text"],
            image_embeds=pack["clip"],
            layout=transformer.layout(shapes),
        ).sample
    save_file({"velocity": velocity.contiguous()}, outputs)


def main() -> None:
    """Load everything, check every tensor, run the transformer, and the pipeline if it is whole."""
    folder, inputs, outputs = sys.argv[1:]
    logging.disable_progress_bar()
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    checked = {}
    for name in ("transformer", "vae", "image_encoder"):
        if getattr(pipe, name) is not None:
            checked[name] = check_tensors(name, getattr(pipe, name), Path(folder, name))
    forward(pipe.transformer.eval(), inputs, outputs)
    whole = None not in (pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.image_encoder)
    if whole:
        # The least that there is: one frame of one token in one step.
        reference = torch.full((16, 16, 3), 128, dtype=torch.uint8).numpy()
        size = dict(height=16, width=16, num_frames=1, num_inference_steps=1)
        video = pipe("a test", [reference], generator=torch.Generator().manual_seed(0), output_type="pt", **size).frames
        if tuple(video.shape) != (1, 1, 3, 16, 16) or not video.isfinite().all():
            sys.exit(f"the pipeline made {tuple(video.shape)} of finite={bool(video.isfinite().all())} values")
    if pipe.text_encoder is not None:
        encoder, pipe.text_encoder = pipe.text_encoder, None
        check_text_encoder(encoder, Path(folder, "text_encoder"))
        checked["text_encoder"] = len(encoder.state_dict())
    if "phantom_mega" in sys.modules:
        sys.exit("this project's own package was imported")
    print(json.dumps({"tensors": checked, "pipeline": whole}))


if __name__ == "__main__":
    main()
