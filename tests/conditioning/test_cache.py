"""Cached features: exact, found by what they depend on, refused when they would be wrong, filled in any order."""

import dataclasses
import importlib.util
import io
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from phantom_mega.conditioning import cache as cache_module
from phantom_mega.conditioning.cache import CachedFeatures, FeatureWriter, identity, scan, write_index
from phantom_mega.conditioning.head import FeatureDims, InputHead, SampleFeatures
from phantom_mega.data.decode import make_decoder
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.plan import PackPlan
from phantom_mega.data.schema import Reference, ReferenceSource, Triplet
from phantom_mega.data.shards import ShardReader, ShardWriter
from phantom_mega.errors import UserError
from tests.conditioning.helpers import MINILM, planned, tiny_run_config

CONFIG = tiny_run_config()
DIMS = FeatureDims(48, 384, 64)
EMPTY = torch.arange(768.0).view(2, 384)
REPOSITORY = Path(__file__).resolve().parents[2]


def features_of(sample, dtype=torch.float32):
    rng = torch.Generator().manual_seed(len(sample.key))
    return SampleFeatures(*(torch.randn(s, generator=rng).to(dtype).float() for s in DIMS.sizes(sample.shape)))


def make_cache(folder, samples, **writer):
    cache = FeatureWriter(folder, CONFIG, EMPTY, **writer)
    for sample in samples:
        cache.add(sample, features_of(sample))
    cache.flush()
    write_index(folder)


SAMPLES = [planned("a"), planned("bb", references=0), planned("ccc", frames=1, references=4), planned("a", height=48)]


def test_others_may_read_a_cache_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        make_cache(tmp_path, SAMPLES)
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()} == {"0o644"}


@pytest.mark.parametrize("shard_bytes", [1, 1 << 30])
def test_what_is_read_is_bit_for_bit_what_was_written(tmp_path, shard_bytes):
    make_cache(tmp_path, SAMPLES, shard_bytes=shard_bytes)
    assert len(list(tmp_path.glob("features-*"))) == (len(SAMPLES) if shard_bytes == 1 else 1)
    cache = CachedFeatures(tmp_path, CONFIG)
    assert len(cache) == len(SAMPLES) and torch.equal(cache.empty_text, EMPTY)
    for sample in SAMPLES:
        found = cache.get(sample)
        assert found.valid and all(tensor.dtype == torch.float32 for tensor in found.tensors())
        assert all(torch.equal(a, b) for a, b in zip(found.tensors(), features_of(sample).tensors()))


def test_features_of_bfloat16_encoders_take_half_the_space_and_lose_nothing(tmp_path):
    sample = planned()
    writer = FeatureWriter(tmp_path, CONFIG, EMPTY)
    features = dataclasses.replace(features_of(sample, torch.bfloat16), latents=features_of(sample).latents)
    writer.add(sample, features)
    writer.flush()
    write_index(tmp_path)
    stored = load_file(next(tmp_path.glob("features-*")))
    assert {name.rpartition(".")[2]: tensor.dtype for name, tensor in stored.items()} == {
        "latents": torch.float32,
        "reference_latents": torch.bfloat16,
        "text": torch.bfloat16,
        "clip": torch.bfloat16,
    }
    found = CachedFeatures(tmp_path, CONFIG).get(sample)
    assert all(torch.equal(a, b) for a, b in zip(found.tensors(), features.tensors()))


@pytest.mark.parametrize(
    "change",
    [
        {"key": "b"},
        {"height": 64},
        {"width": 64},
        {"num_frames": 9},
        {"frame_indices": (1, 2, 3, 4, 5)},
        {"references": (1,)},
        {"text_tokens": 6},
    ],
)
def test_a_sample_is_found_by_all_that_its_features_depend_on(tmp_path, change):
    sample = planned()
    make_cache(tmp_path, [sample])
    cache = CachedFeatures(tmp_path, CONFIG)
    assert cache.get(dataclasses.replace(sample, row=7, epoch=3)).valid
    with pytest.raises(UserError, match="does not hold"):
        cache.get(dataclasses.replace(sample, **change))


def test_identities_do_not_depend_on_the_kind_of_integer():
    sample = planned()
    other = dataclasses.replace(
        sample, height=np.int32(32), frame_indices=tuple(np.arange(5)), references=(np.int64(0),)
    )
    assert identity(sample) == identity(other)


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"conditioning": {"text_encoder": "Qwen/Qwen2.5-3B"}}, f"conditioning.text_encoder was '{MINILM}', is 'Qwen/"),
        ({"conditioning": {"vision_encoder": "ViT-B-32"}}, "conditioning.vision_encoder was 'tiny', is 'ViT-B-32'"),
        ({"model": {"latent_channels": 16}}, "model.latent_channels was 48, is 16"),
        ({"data": {"augment_per_epoch": True}}, "set data.augment_per_epoch=false"),
    ],
)
def test_another_recipe_is_refused_by_naming_what_differs(tmp_path, sections, message):
    make_cache(tmp_path, SAMPLES)
    config = tiny_run_config(**sections)
    with pytest.raises(UserError, match=message):
        CachedFeatures(tmp_path, config)
    if "data" not in sections:
        with pytest.raises(UserError, match=message):
            FeatureWriter(tmp_path, config, EMPTY)


def test_a_refitted_linear_vae_makes_a_cache_stale(tmp_path, monkeypatch):
    make_cache(tmp_path / "cache", SAMPLES)
    (tmp_path / "basis").write_bytes(b"another basis")
    monkeypatch.setattr(cache_module, "SHIPPED", tmp_path / "basis")
    with pytest.raises(UserError, match="the shipped linear VAE was"):
        CachedFeatures(tmp_path / "cache", CONFIG)


def test_folders_that_are_no_finished_cache_are_refused(tmp_path):
    with pytest.raises(UserError, match="is no feature cache"):
        CachedFeatures(tmp_path / "nowhere", CONFIG)
    FeatureWriter(tmp_path, CONFIG, EMPTY)
    with pytest.raises(UserError, match="is not finished"):
        CachedFeatures(tmp_path, CONFIG)


def test_a_damaged_file_is_named(tmp_path):
    make_cache(tmp_path, SAMPLES)
    shard = next(tmp_path.glob("features-*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{shard.name} is damaged .* remove it"):
        CachedFeatures(tmp_path, CONFIG).get(SAMPLES[0])


def test_an_interrupted_write_leaves_no_file_and_can_be_repeated(tmp_path, monkeypatch):
    writer = FeatureWriter(tmp_path, CONFIG, EMPTY)
    before = set(tmp_path.iterdir())
    writer.add(SAMPLES[0], features_of(SAMPLES[0]))

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(cache_module.os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space"):
            writer.flush()
    assert set(tmp_path.iterdir()) == before
    writer.flush()
    assert set(scan(tmp_path)[0]) == {identity(SAMPLES[0])}


def test_an_unreadable_sample_is_zeros_until_it_was_read(tmp_path):
    sample = planned()
    writer = FeatureWriter(tmp_path, CONFIG, EMPTY)
    writer.add(sample, SampleFeatures.zeros(sample.shape, DIMS), "shard 7, sample a: truncated")
    writer.flush()
    write_index(tmp_path)
    cache = CachedFeatures(tmp_path, CONFIG)
    found = cache.get(sample)
    assert not found.valid and [t.shape for t in found.tensors()] == [t.shape for t in features_of(sample).tensors()]
    assert cache.error(sample) == "shard 7, sample a: truncated" and cache.error(planned("other")) is None
    make_cache(tmp_path, [sample])
    assert CachedFeatures(tmp_path, CONFIG).get(sample).valid


# -- tools/cache_features.py on a real data set


def load_tool():
    spec = importlib.util.spec_from_file_location("cache_features", REPOSITORY / "tools" / "cache_features.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def png(rng, height=72, width=72):
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(out, "png")
    return out.getvalue()


def webm(rng, frames=6, size=72):
    out = io.BytesIO()
    with av.open(out, "w", format="webm") as container:
        stream = container.add_stream(
            "libvpx-vp9", rate=Fraction(24), options={"cpu-used": "8", "deadline": "realtime"}
        )
        stream.width = stream.height = size
        for image in rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    return out.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two images, three clips, one of them damaged."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    head = InputHead(CONFIG, "cpu")
    source = ReferenceSource("v", 0, (0.0, 0.0, 40.0, 30.0))
    with ShardWriter(folder, tokenizer=MINILM) as writer:
        for i in range(5):
            clip, caption = i > 1, f"a subject, number {i}"
            references = tuple(Reference("a subject", "others", "cross", source, 30, 40) for _ in range(i % 3))
            triplet = Triplet(
                f"s{i}", caption, f"v{i}", 6 if clip else 1, 24.0 if clip else 0.0, 72, 72, "vp9" if clip else "png",
                references, head.text.count_tokens(caption),
            )  # fmt: skip
            media = b"no video" if i == 4 else webm(rng) if clip else png(rng)
            writer.write(triplet, media, "webm" if clip else "png", [(png(rng, 30, 40), "png") for _ in references])
    return tiny_run_config(data={"index_path": [str(folder)]}), head


def fill(dataset, folder, part=0, parts=1, retry_bad=False, **data):
    config = dataclasses.replace(dataset[0], data=dataclasses.replace(dataset[0].data, **data))
    return load_tool().fill_cache(config, folder, part, parts, torch.device("cpu"), retry_bad)


def plan_of(dataset):
    config, head = dataset
    index = TripletIndex.open(config.data.index_path)
    return PackPlan(index, config.data, config.model, 16, config.train.seed, len(head.text.empty()))


def test_two_processes_fill_a_cache_that_equals_encoding_and_the_last_publishes_it(dataset, tmp_path):
    config, head = dataset
    plan = plan_of(dataset)
    assert len(plan) > 1 and plan.report().samples == 5
    first = fill(dataset, tmp_path, part=1, parts=2)
    assert "still with other processes" in first and not (tmp_path / "index.parquet").exists()
    assert "holds 5 samples, 1 of them unreadable" in fill(dataset, tmp_path, part=0, parts=2)
    cache, reader, decoder = CachedFeatures(tmp_path, config), ShardReader(plan.index), make_decoder(config.data)
    cache.check_plan(plan)
    assert torch.equal(cache.empty_text, head.text.empty())
    for epoch in (0, 1):
        for sample in (sample for pack in plan.packs(epoch) for sample in pack):
            decoded = decoder.decode([(sample, reader.read(sample.row))])[0]
            expected, found = head.encode(decoded), cache.get(sample)
            assert found.valid == expected.valid == (sample.key != "s4")
            for one, other in zip(found.tensors(), expected.tensors(), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_second_run_encodes_nothing_and_one_after_a_loss_only_what_is_lost(dataset, tmp_path):
    fill(dataset, tmp_path)
    files = sorted(tmp_path.glob("features-*"))
    assert fill(dataset, tmp_path).startswith("encoded 0 samples, 0 could not be read")
    assert sorted(tmp_path.glob("features-*")) == files
    for file in files:
        file.unlink()
    assert fill(dataset, tmp_path).startswith("encoded 4 samples, 1 could not be read")


def test_unreadable_samples_are_read_again_on_demand_and_too_many_stop_the_run(dataset, tmp_path):
    with pytest.raises(UserError, match=r"unreadable samples, more than data\.max_bad_samples=0"):
        fill(dataset, tmp_path, max_clip_bytes=1, max_bad_samples=0)
    assert "5 of them unreadable" in fill(dataset, tmp_path, max_clip_bytes=1)
    assert fill(dataset, tmp_path).startswith("encoded 0 samples")
    assert fill(dataset, tmp_path, retry_bad=True).startswith("encoded 4 samples, 1 could not be read")
    assert [len(part) for part in scan(tmp_path)] == [4, 1]


def test_a_plan_that_the_cache_was_not_written_for_is_refused_before_training(dataset, tmp_path):
    fill(dataset, tmp_path)
    config = dataclasses.replace(dataset[0], train=dataclasses.replace(dataset[0].train, seed=99))
    index = TripletIndex.open(config.data.index_path)
    resolutions = {"48p": dataclasses.replace(next(iter(config.data.resolutions.values())), pixels=48 * 48)}
    data = dataclasses.replace(config.data, resolutions=resolutions)
    with pytest.raises(UserError, match="lacks 5 of the plan's 5 samples"):
        CachedFeatures(tmp_path, config).check_plan(PackPlan(index, data, config.model, 16, 99, 2))
