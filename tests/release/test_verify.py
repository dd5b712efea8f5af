"""The proof of an export: it passes for what was exported, and for nothing else."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from phantom_mega.errors import UserError
from phantom_mega.release import verify

pytestmark = pytest.mark.slow
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(release, tmp_path):
    return shutil.copytree(release[0], tmp_path / "copy"), release[1]


def test_a_faithful_export_passes(release):
    assert verify.verify(*release, "ema", torch.float32) < 1e-5


def test_other_weights_are_found_out(copy):
    with pytest.raises(UserError, match="computes something else than the trained model"):
        verify.verify(*copy, "raw", torch.float32)


def test_a_missing_tensor_is_found_out(copy):
    tensors = load_file(copy[0] / WEIGHTS)
    tensors["blocks.0.visual.extra.weight"] = tensors.pop("blocks.0.visual.to_q.weight")
    save_file(tensors, copy[0] / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"does not load strictly.*to_q\.weight"):
        verify.verify(*copy, "ema", torch.float32)


def test_code_that_needs_this_project_is_found_out(copy):
    path = copy[0] / "transformer/transformer_phantom.py"
    path.write_text(path.read_text().replace("import torch\n", "import torch\nimport phantom_mega\n", 1))
    with pytest.raises(UserError, match=r"opening the export without this project failed: .*phantom_mega"):
        verify.verify(*copy, "ema", torch.float32)


def test_the_check_is_left_out_where_memory_would_not_do(monkeypatch):
    assert verify.fits(1 << 20) and not verify.fits(1 << 50)
