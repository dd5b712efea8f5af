"""Encoding shared over model-parallel ranks: everyone gets everything, nothing is encoded twice."""

import dataclasses
import datetime
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from phantom_mega.conditioning.head import FeatureDims, InputHead, SampleFeatures
from phantom_mega.conditioning.share import encode_share, exchange, flatten, owner, unflatten
from tests.conditioning.helpers import mixed_pack, planned, tiny_run_config

DIMS = FeatureDims(4, 8, 6)


def features_of(sample):
    return SampleFeatures(*(torch.randn(size) for size in DIMS.sizes(sample.shape)))


def exchanged(decoded, share, head, group):
    pack = tuple(item.sample for item in decoded)
    return exchange(pack, encode_share(share, head, group), head.dims, group)


def encode_in_groups(rank, store):
    """A rank of four: encodes whole and short packs in the group of all and in a group of two."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=4, timeout=timeout)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    head = InputHead(tiny_run_config(), "cpu")
    pack = mixed_pack(head.text.count_tokens)
    for group, size in ((dist.group.WORLD, 4), (pairs[rank // 2], 2)):
        for decoded in (pack, pack[:3], pack[:1]):
            alone = head.encode_many(decoded)
            share = [item if owner(i, size) == dist.get_rank(group) else None for i, item in enumerate(decoded)]
            before = head.vae.calls, head.text.calls, head.vision.calls
            found = exchanged(decoded, share, head, group)
            own = [item for item in share if item is not None and item.error is None]
            crops = sum(len(item.crops) for item in own)
            calls = head.vae.calls - before[0], head.text.calls - before[1], head.vision.calls - before[2]
            assert calls == (len(own) + crops, len(own), crops)
            check_same_everywhere(found, alone, group)
    dist.destroy_process_group()


def check_same_everywhere(found, alone, group):
    """This rank has what one process has, and bit for bit what the group's first rank has."""
    assert [features.valid for features in found] == [features.valid for features in alone]
    for mine, expected in zip(found, alone, strict=True):
        for one, other in zip(mine.tensors(), expected.tensors()):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    flat = torch.cat([tensor.flatten() for features in found for tensor in features.tensors()])
    theirs = flat.clone()
    dist.broadcast(theirs, group=group, group_src=0)
    assert torch.equal(flat, theirs)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_ranks_of_groups_of_2_and_4_have_what_one_process_has_and_encode_each_sample_once(tmp_path):
    # Forked, as the workers of torch's data loaders are: four ranks share this process's slow imports.
    ranks = mp.start_processes(encode_in_groups, args=(tmp_path / "store",), nprocs=4, join=False, start_method="fork")
    try:
        deadline = time.monotonic() + 120
        while not ranks.join(timeout=5):  # raises with the traceback of the rank that failed first
            assert time.monotonic() < deadline, "the ranks hang"
    finally:
        for process in ranks.processes:
            process.kill()


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_sample_has_one_owner(size):
    assert [owner(position, size) for position in range(8)] == [position % size for position in range(8)]


@pytest.mark.parametrize("references", [0, 3])
@pytest.mark.parametrize("valid", [True, False])
def test_flat_buffers_hold_everything_once(references, valid):
    sample = planned(references=references)
    features = dataclasses.replace(features_of(sample), valid=valid)
    back = unflatten(flatten(features), DIMS.sizes(sample.shape), valid)
    assert flatten(features)[-1] == valid
    assert all(torch.equal(one, other) for one, other in zip(features.tensors(), back.tensors()))


def test_without_a_group_a_process_keeps_its_own():
    head = InputHead(tiny_run_config(), "cpu")
    decoded = mixed_pack(head.text.count_tokens)
    found = exchanged(decoded, decoded, head, None)
    assert [features.valid for features in found] == [item.error is None for item in decoded]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(found, head.encode_many(decoded)))


def test_features_of_other_sizes_than_planned_are_never_sent():
    sample = planned("wrong")
    features = dataclasses.replace(features_of(sample), text=torch.zeros(3, 8))
    with pytest.raises(ValueError, match="sample wrong"):
        exchange((sample,), {0: features}, DIMS, None)
