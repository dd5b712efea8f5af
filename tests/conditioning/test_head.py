"""The input head: planned sizes, batches equal to single samples, unreadable samples, clear refusals."""

import dataclasses

import pytest
import torch

from phantom_mega.conditioning import head as head_module
from phantom_mega.conditioning.head import InputHead, SampleFeatures
from phantom_mega.errors import UserError
from tests.conditioning.helpers import decoded, mixed_pack, planned, save_tiny_qwen, tiny_run_config


@pytest.fixture(scope="module")
def head():
    return InputHead(tiny_run_config(), "cpu")


@pytest.fixture(scope="module")
def pack(head):
    return mixed_pack(head.text.count_tokens)


def sizes(features):
    return tuple(tuple(tensor.shape) for tensor in features.tensors())


def test_features_have_the_planned_sizes(head, pack):
    for sample, features in zip(pack, head.encode_many(pack), strict=True):
        assert sizes(features) == head.dims.sizes(sample.sample.shape)
        assert all(tensor.dtype == torch.float32 for tensor in features.tensors())


@pytest.mark.parametrize("batch_pixels", [1, 2 * 32 * 48, 1 << 30])
def test_a_batch_gives_what_single_samples_give_in_the_same_order(head, pack, batch_pixels, monkeypatch):
    monkeypatch.setattr(head_module, "BATCH_PIXELS", batch_pixels)
    for sample, features in zip(pack, head.encode_many(pack), strict=True):
        alone = head.encode(sample)
        assert alone.valid == features.valid == (sample.error is None)
        for one, other in zip(alone.tensors(), features.tensors()):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_each_feature_comes_from_its_own_encoder(head, pack):
    sample = pack[2]
    features = head.encode(sample)
    torch.testing.assert_close(features.latents, head.vae.encode(sample.video[None])[0])
    for i, reference in enumerate(sample.references):
        torch.testing.assert_close(features.reference_latents[i], head.vae.encode(reference[None, :, None])[0, :, 0])
    torch.testing.assert_close(features.clip, head.vision.encode(sample.crops))
    torch.testing.assert_close(features.text, head.text.encode([sample.caption], max_tokens=12)[0])


def test_an_unreadable_sample_is_zeros_and_costs_no_encoding(head):
    sample = decoded(planned("bad", references=2), "", "shard, sample bad: truncated")
    before = head.vae.calls, head.text.calls, head.vision.calls
    features = head.encode(sample)
    assert (head.vae.calls, head.text.calls, head.vision.calls) == before
    assert not features.valid and not any(tensor.any() for tensor in features.tensors())
    assert sizes(features) == head.dims.sizes(sample.sample.shape)
    expected = SampleFeatures.zeros(sample.sample.shape, head.dims)
    assert sizes(expected) == sizes(features) and not expected.valid


def test_a_caption_that_the_index_counted_otherwise_is_refused(head, pack):
    sample = dataclasses.replace(pack[0], sample=dataclasses.replace(pack[0].sample, text_tokens=3))
    with pytest.raises(UserError, match=r"build_index\.py"):
        head.encode(sample)


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"model": {"latent_channels": 16}}, "set model.latent_channels=48"),
        ({"model": {"text_dim": 2048}}, "set model.text_dim=384"),
        ({"model": {"clip_dim": 1152}}, "set model.clip_dim=64"),
        ({"conditioning": {"clip_tokens": 729}}, "set conditioning.clip_tokens=16"),
        ({"data": {"max_text_tokens": 1024}}, "set data.max_text_tokens=512"),
    ],
)
def test_a_size_that_does_not_fit_names_the_right_value(sections, message):
    with pytest.raises(UserError, match=message):
        InputHead(tiny_run_config(**sections), "cpu")


def test_a_qwen_fits_in_the_same_place(tmp_path):
    folder = save_tiny_qwen(tmp_path)
    head = InputHead(tiny_run_config(model={"text_dim": 32}, conditioning={"text_encoder": folder}), "cpu")
    pack = mixed_pack(head.text.count_tokens)
    assert all(
        sizes(features) == head.dims.sizes(sample.sample.shape)
        for sample, features in zip(pack, head.encode_many(pack), strict=True)
    )
