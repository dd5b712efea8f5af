"""The proof of an export: it passes for what was exported, and for nothing else."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from phantom_mega.config import ModelConfig, RunConfig
from phantom_mega.errors import UserError
from phantom_mega.geometry import SampleShape
from phantom_mega.packs import PackLayout
from phantom_mega.release import verify
from phantom_mega.windows import WindowSpec

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


def test_an_encoder_that_lacks_a_tensor_is_found_out(copy):
    path = copy[0] / "text_encoder/model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.layer.3.attention.self.query.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"does not load strictly: .*text_encoder missing_keys.*layer\.3.*query"):
        verify.verify(*copy, "ema", torch.float32)


def test_a_pipeline_that_makes_no_video_is_found_out(copy):
    path = copy[0] / "pipeline.py"
    path.write_text(path.read_text().replace("def decode(self, latents", "def decode_(self, latents", 1))
    with pytest.raises(UserError, match=r"opening the export without this project failed: .*has no attribute 'decode'"):
        verify.verify(*copy, "ema", torch.float32)


@pytest.mark.parametrize("injection, frames, most", [("displace", 2, 1), ("displace", 9, 2), ("append", 1, 2)])
def test_the_inputs_fit_every_kind_of_window(injection, frames, most):
    model = ModelConfig(window_frames=frames, reference_injection=injection)
    given = verify.make_inputs(RunConfig(model=model))
    assert [shape[3] for shape in given["shapes"]] == [most, 0]
    shapes, spec = [SampleShape(*shape) for shape in given["shapes"]], WindowSpec(frames, reference_injection=injection)
    layout = PackLayout.build(shapes, spec, model.rope_axes_dim, model.rope_theta)
    assert (layout.seq_length, len(layout.clip_index)) == (len(given["visual"]), len(given["clip"]))


def test_the_check_is_left_out_where_memory_would_not_do(release, tmp_path):
    assert verify.fits(1 << 20, tmp_path) and not verify.fits(1 << 50, tmp_path)
    encoder = (release[0] / "text_encoder/model.safetensors").stat().st_size
    more = verify.memory_needed(0, release[0]) - verify.memory_needed(0, tmp_path)
    assert 2 * encoder < more < 3 * encoder, "a language model beside it is loaded as well"
