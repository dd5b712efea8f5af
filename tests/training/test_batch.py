"""From features to a microbatch: what is noised, what is dropped, what has loss."""

import pytest
import torch

from phantom_mega.conditioning.head import FeatureDims, SampleFeatures
from phantom_mega.config import DataConfig, FlowConfig, ModelConfig, RunConfig
from phantom_mega.data.plan import PlannedSample
from phantom_mega.flow import interpolate, velocity
from phantom_mega.geometry import SampleShape, patchify
from phantom_mega.training.batch import build_batch
from phantom_mega.training.draws import draw_sample

NO_DROPOUT = FlowConfig(text_dropout=0.0, image_dropout=0.0, vae_reference_dropout=0.0)
ALL_DROPPED = FlowConfig(text_dropout=1.0, image_dropout=1.0)
ONLY_LATENTS = FlowConfig(text_dropout=0.0, image_dropout=0.0, vae_reference_dropout=1.0)
DIMS = FeatureDims(4, 8, 6)
EMPTY = torch.full((1, 8), 9.0)


def run_config(flow):
    model = ModelConfig(latent_channels=4, text_dim=8, clip_dim=6)
    return RunConfig(model=model, flow=flow, data=DataConfig(seq_length=64, text_seq_length=32))


def planned(key, frames, references):
    shape = SampleShape((frames + 3) // 4, 2, 3, references, 5, 2)
    return PlannedSample(0, key, 32, 48, frames, tuple(range(frames)), tuple(range(references)), 5, 0, shape)


@pytest.fixture
def pack():
    return planned("a", 9, 2), planned("b", 1, 0)


def features_of(pack):
    torch.manual_seed(0)
    return [SampleFeatures(*(torch.randn(size) + 3 for size in DIMS.sizes(sample.shape))) for sample in pack]


def batch_of(pack, flow=NO_DROPOUT, features=None):
    return build_batch(pack, features or features_of(pack), EMPTY, run_config(flow), "cpu", torch.float32)


def test_video_tokens_are_noised_and_references_stay_clean(pack):
    features, batch = features_of(pack), batch_of(pack)
    draws = draw_sample(1234, 0, "a", tuple(features[0].latents.shape), 32 * 48 * 9, NO_DROPOUT)
    noisy = patchify(interpolate(features[0].latents, draws.noise, draws.timestep))
    torch.testing.assert_close(batch.inputs.visual[:18], noisy)
    torch.testing.assert_close(batch.target[:18], patchify(velocity(features[0].latents, draws.noise)))
    torch.testing.assert_close(batch.inputs.visual[18:30], patchify(features[0].reference_latents.transpose(0, 1)))
    assert batch.inputs.timestep[0] == pytest.approx(draws.timestep)


def test_loss_counts_video_tokens_of_readable_samples_only(pack):
    features = features_of(pack)
    assert batch_of(pack).weight.nonzero().flatten().tolist() == [*range(18), *range(30, 36)]
    features[0] = SampleFeatures.zeros(pack[0].shape, DIMS)
    bad = batch_of(pack, features=features)
    assert bad.weight.nonzero().flatten().tolist() == list(range(30, 36))
    good = batch_of(pack)
    assert torch.equal(good.inputs.visual[30:36], bad.inputs.visual[30:36]), "the other sample moved"


def test_a_dropped_text_is_the_empty_prompt(pack):
    batch = batch_of(pack, ALL_DROPPED)
    assert torch.equal(batch.inputs.text, EMPTY.expand(2, 8))
    assert [shape.text_tokens for shape in batch.inputs.layout.shapes] == [1, 1]


def test_dropped_images_are_zeros_in_both_forms(pack):
    batch = batch_of(pack, ALL_DROPPED)
    assert batch.inputs.visual[18:30].abs().max() == 0 and batch.inputs.clip.abs().max() == 0


def test_vae_references_can_be_dropped_while_clip_stays(pack):
    batch = batch_of(pack, ONLY_LATENTS)
    assert batch.inputs.visual[18:30].abs().max() == 0 and batch.inputs.clip.abs().max() > 0
    assert len(batch.inputs.text) == 10


def test_padding_is_zero_and_has_no_loss(pack):
    batch = batch_of(pack)
    assert batch.inputs.visual.shape == (64, 16) and batch.inputs.visual[36:].abs().max() == 0
    assert batch.weight[36:].sum() == 0
