"""The loader: the same items from any position, each sample decoded by one rank, ahead of time, bad ones in place."""

import dataclasses
import gc
import os
import threading
import time

import pytest
import torch

from phantom_mega.config import DataConfig, ModelConfig, ResolutionConfig
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.loader import PackLoader
from phantom_mega.data.plan import PackPlan
from phantom_mega.data.schema import Reference, ReferenceSource, Triplet
from phantom_mega.data.shards import ShardReader, ShardWriter
from phantom_mega.errors import BadSampleError, UserError
from tests.data.clips import FRAMES, HEIGHT, WIDTH, reference_image, textured_frames
from tests.media import CODECS, encode_clip, encode_image

SAMPLES = 12


def settings(**overrides):
    resolutions = {"tiny": ResolutionConfig(48 * 64, [1, 5, 9], 1.0), "small": ResolutionConfig(64 * 96, [1, 5], 1.0)}
    return DataConfig(
        **{"seq_length": 200, "text_seq_length": 64, "resolutions": resolutions, "aspect_ratios": ["16:9", "4:3"],
           "decode_threads": 2} | overrides
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips of all codecs and stills with one or two references."""
    folder = tmp_path_factory.mktemp("set")
    with ShardWriter(folder, max_samples_per_shard=5, tokenizer="tok") as writer:
        for i in range(SAMPLES):
            codec = [*CODECS, "jpeg"][i % 5]
            frames = textured_frames(1 if codec == "jpeg" else FRAMES, seed=i)
            source = ReferenceSource("other", i, (0, 0, 30, 40))
            described = tuple(Reference("a square", "others", "cross", source, 40, 30) for _ in range(1 + i % 2))
            triplet = Triplet(f"clip_{i:02d}", f"caption {i}", f"video_{i}", len(frames), 24.0 * (len(frames) > 1),
                              HEIGHT, WIDTH, codec, described, 4)  # fmt: skip
            clip = encode_image(frames[0]) if codec == "jpeg" else encode_clip(frames, codec)
            ext = "jpg" if codec == "jpeg" else CODECS[codec][1]
            writer.write(triplet, clip, ext, [(reference_image(seed=i + j), "jpg") for j in range(len(described))])
    return folder


@pytest.fixture(scope="module")
def index(folder):
    return TripletIndex.open(folder)


@pytest.fixture
def make_loader(index):
    """Builds loaders and closes them at the end."""
    opened = []

    def build(position=0, data=None, the_index=index, reader=None, **ranks):
        data = data or settings()
        plan = PackPlan(the_index, data, ModelConfig(), clip_tokens=4, seed=7)
        loader = PackLoader(plan, reader or ShardReader(the_index), data, start_position=position, **ranks)
        opened.append(loader)
        return loader

    yield build
    for loader in opened:
        loader.close()


def equal(first, second):
    """Whether two decoded samples are the same, or both None."""
    if first is None or second is None:
        return first is second
    same = first.sample == second.sample and first.caption == second.caption and first.error == second.error
    return same and torch.equal(first.video, second.video) and torch.equal(first.references, second.references)


def same_iteration(first, second):
    return all(
        pack == other and all(map(equal, share, twin))
        for (pack, share), (other, twin) in zip(first, second, strict=True)
    )


def test_items_are_the_planned_packs_decoded(make_loader):
    loader = make_loader(global_batch_size=2)
    first = next(loader)
    assert loader.wait_seconds > 0  # nothing can have been ready
    assert [pack for pack, _ in first] == [loader.plan.locate(position)[1] for position in (0, 1)]
    for pack, share in first:
        assert [item.sample for item in share] == list(pack)
        for item in share:
            assert item.error is None
            assert item.video.shape == (3, item.sample.num_frames, item.sample.height, item.sample.width)
            assert len(item.references) == len(item.crops) == len(item.sample.references)
    assert loader.position == 2 and loader.errors == []


def test_a_restart_at_any_position_gives_the_same_items(make_loader):
    straight = make_loader(global_batch_size=2)
    wanted = [next(straight) for _ in range(7)]  # into the second epoch
    assert wanted[-1][0][0][0].epoch >= 1
    for skipped in (1, 4, 6):
        resumed = make_loader(2 * skipped, global_batch_size=2, data=settings(prefetch_packs=1 + skipped))
        assert same_iteration(next(resumed), wanted[skipped]) and resumed.position == 2 * skipped + 2


def test_data_parallel_ranks_share_an_iteration_without_gap_or_overlap(make_loader):
    whole = make_loader(global_batch_size=4)
    ranks = [make_loader(global_batch_size=4, data_parallel_rank=r, data_parallel_size=2) for r in range(2)]
    for _ in range(2):
        expected, parts = next(whole), [next(rank) for rank in ranks]
        assert same_iteration(expected, [parts[i % 2][i // 2] for i in range(4)])


def test_model_parallel_ranks_decode_disjoint_and_complete_shares(make_loader):
    whole = make_loader()
    ranks = [make_loader(model_parallel_rank=r, model_parallel_size=3) for r in range(3)]
    for _ in range(3):
        [(pack, expected)], parts = next(whole), [next(rank)[0] for rank in ranks]
        assert len(pack) >= 2 and all(part[0] == pack for part in parts)
        for j, item in enumerate(expected):
            held = [rank for rank, (_, share) in enumerate(parts) if share[j] is not None]
            assert held == [j % 3] and equal(parts[held[0]][1][j], item)


class CountingReader(ShardReader):
    """A reader that counts and can be told to fail."""

    reads = 0
    failure = None

    def read(self, row):
        self.reads += 1
        if self.failure and self.reads > 3:
            raise self.failure
        return super().read(row)


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.01)


def test_packs_are_decoded_before_they_are_asked_for_and_not_without_bound(index, make_loader):
    loader = make_loader(data=settings(prefetch_packs=3), reader=CountingReader(index))
    wait_until(loader._prefetcher._ready.full)
    ahead = [loader.plan.locate(position)[1] for position in range(4)]
    wait_until(lambda: loader.reader.reads == sum(map(len, ahead)))  # three wait, one is in the thread's hand
    time.sleep(0.3)
    assert loader.reader.reads == sum(map(len, ahead)) and loader.wait_seconds == 0
    reads = loader.reader.reads
    next(loader)
    wait_until(lambda: loader.reader.reads > reads)  # the next is read without being asked for


def test_an_error_in_the_thread_reaches_the_consumer_at_every_later_call(index, make_loader):
    reader = CountingReader(index)
    reader.failure = OSError("the file system is gone")
    loader = make_loader(reader=reader)
    with pytest.raises(OSError, match="file system is gone"):
        for _ in range(9):
            next(loader)
    with pytest.raises(OSError, match="file system is gone"):
        next(loader)
    assert not loader._prefetcher._thread.is_alive()


def test_close_ends_the_thread_and_leaves_no_file_open(make_loader):
    gc.collect()
    files = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for _ in range(3):
        with make_loader() as loader:
            next(loader)
        loader.close()
        assert not loader._prefetcher._thread.is_alive()
        with pytest.raises(StopIteration):
            next(loader)
    assert not [thread for thread in threading.enumerate() if thread.name == "data worker"]
    gc.collect()
    assert not files or len(os.listdir("/proc/self/fd")) <= len(files) + 2


def test_bad_samples_stand_in_their_places_and_are_counted(folder, index, make_loader, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage = {"clip_01": b".json", "clip_03": b".mp4", "clip_06": b".ref0.jpg"}
    for key, member in damage.items():
        row = list(index.column("key")).index(key)
        shard = tmp_path / os.path.basename(index.value("shard", row))
        data = bytearray(shard.read_bytes())
        at = data.index(key.encode() + member, index.value("offset", row))
        data[at + 512 : at + 1024] = b"#" * 512  # the content after the tar header
        shard.write_bytes(bytes(data))
    whole, broken = make_loader(), make_loader(the_index=TripletIndex.open(tmp_path))
    errors = []
    for _ in range(len(broken.plan.packs(0))):
        [(pack, expected)], [(same_pack, share)] = next(whole), next(broken)
        assert [s.key for s in pack] == [s.key for s in same_pack]
        for good, item in zip(expected, share, strict=True):
            if item.sample.key in damage:
                assert item.error.startswith(str(tmp_path)) and f"sample {item.sample.key}: " in item.error
                assert item.video.shape == good.video.shape and not item.video.any()
            else:
                assert equal(good, item)
        assert broken.errors == [item.error for item in share if item.error]
        errors += broken.errors
    assert len(errors) == 3
    assert sum("bad JSON" in error for error in errors) == 1
    assert sum("reference 0: the image cannot be read" in error for error in errors) == 1


def test_a_huge_clip_is_refused_unread(index, make_loader):
    reader = CountingReader(index)
    loader = make_loader(data=settings(max_clip_bytes=10), reader=reader)
    [(pack, share)] = next(loader)
    assert all("more than data.max_clip_bytes=10" in item.error for item in share) and reader.reads == 0
    assert len(loader.errors) == len(pack)


def test_a_sample_with_fewer_references_than_indexed_is_named(index, make_loader):
    class Poorer(ShardReader):
        def read(self, row):
            raw = super().read(row)
            triplet = dataclasses.replace(raw.triplet, references=())
            return dataclasses.replace(raw, triplet=triplet, references=[], masks=[])

    [(_, share)] = next(make_loader(reader=Poorer(index)))
    assert all("0 references, fewer than the index says" in item.error for item in share)


def test_a_global_batch_that_does_not_divide_is_an_error(make_loader):
    with pytest.raises(UserError, match="global_batch_size=3 is not a multiple"):
        make_loader(global_batch_size=3, data_parallel_size=2)


def test_bad_sample_errors_carry_shard_key_and_reason():
    error = BadSampleError("k", "s.tar", "why")
    assert (error.key, error.shard, error.reason, str(error)) == ("k", "s.tar", "why", "s.tar, sample k: why")
