"""The check at the end of an export sees what a stranger would stumble over, and runs where there is memory for it."""

import json
import shutil
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from phantom_mega.errors import UserError
from phantom_mega.release import verify as module
from phantom_mega.release.export import Options, open_source
from phantom_mega.release.verify import free_memory, make_inputs, needed_memory, verify
from tests.release.helpers import MODEL

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def source(pristine):
    return open_source(pristine, Options())


@pytest.fixture
def copy(exported, tmp_path):
    """An export to damage, without its encoders."""
    target = shutil.copytree(exported, tmp_path / "copy")
    index = json.loads((target / "model_index.json").read_text())
    for name in ("vae", "text_encoder", "tokenizer", "image_encoder"):
        shutil.rmtree(target / name)
        index[name] = [None, None]
    (target / "model_index.json").write_text(json.dumps(index))
    return target


def test_an_export_opens_without_the_project_and_computes_what_megatron_computes(source, exported):
    found = verify(source, exported)
    assert found.pipeline and found.scale > 0.05 and found.difference <= 1e-5 * found.scale
    assert found.tensors["transformer"] == len(source.split.tensor_to_filename)
    assert found.tensors["vae"] == 3 and set(found.tensors) == {"transformer", "vae", "image_encoder", "text_encoder"}


def change(folder, edit):
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def swap(state):
    a, b = (f"blocks.1.visual.to_{part}.weight" for part in "qk")
    state[a], state[b] = state[b], state[a]


CASES = {
    "q and k exchanged": (swap, r"something else than the model that was trained: velocities of up to .* differ"),
    "a tensor missing": (lambda state: state.pop("blocks.2.visual.mlp.fc1.bias"), r"blocks\.2\.visual\.mlp\.fc1\.bias"),
    "a tensor left over": (
        lambda state: state.update(extra=torch.zeros(1)),
        r"the model has no extra, which is in diffusion_pytorch_model\.safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_wrong_weights_are_refused(source, copy, case):
    edit, message = CASES[case]
    change(copy, edit)
    with pytest.raises(UserError, match=message):
        verify(source, copy)


def test_code_that_needs_the_project_is_refused(source, copy):
    with open(copy / "pipeline.py", "a") as file:
        file.write("\nfrom phantom_mega.errors import UserError\n")
    with pytest.raises(UserError, match=r"does not open: .*phantom_mega is not there for those who open"):
        verify(source, copy)


@pytest.mark.parametrize("injection, frames", [("displace", 2), ("displace", 9), ("append", 1), ("append", 0)])
def test_inputs_fit_every_kind_of_window(tmp_path, injection, frames):
    fields = {**vars(MODEL), "window_frames": frames, "reference_injection": injection, "max_references": 4}
    make_inputs(SimpleNamespace(**fields), tmp_path / "pack")
    most = 1 if (injection, frames) == ("displace", 2) else 4
    pack = load_file(tmp_path / "pack")
    assert len(pack["clip"]) == 3 * (most + 1) and len(pack["timestep"]) == 3


def test_memory_grows_with_the_model_in_float32_and_with_its_encoders(source, exported, tmp_path):
    alone = needed_memory(source, tmp_path)
    parameters = sum(param.numel() for param in source.model.parameters())
    assert 4 * parameters < alone - module.BASE_MEMORY < 5 * parameters
    encoders = (exported / "text_encoder/model.safetensors").stat().st_size
    assert needed_memory(source, exported) - alone > 2 * encoders
    assert 0 < free_memory() <= psutil.virtual_memory().total
