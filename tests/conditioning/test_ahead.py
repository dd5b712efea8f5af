"""Encoding ahead of the step: the same features, before they are asked for; faults reach the step; it ends."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from phantom_mega.conditioning.ahead import EncodeAhead, encode_next
from phantom_mega.conditioning.head import InputHead
from phantom_mega.data.prefetch import side_stream, used_here
from phantom_mega.errors import UserError
from tests.conditioning.helpers import tiny_run_config
from tests.media import write_data_set
from tests.reliability.batches import loader_of


class SlowHead(InputHead):
    """The encoders, with a gate before them and a count of calls that went through."""

    def __init__(self, config, device):
        super().__init__(config, device)
        self.gate, self.begun, self.failure = threading.Event(), 0, None
        self.gate.set()

    def encode_many(self, samples):
        assert self.gate.wait(60)
        self.begun += 1
        if self.failure:
            raise self.failure
        return super().encode_many(samples)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def shared_head():
    config = tiny_run_config()
    return SlowHead(dataclasses.replace(config, data=dataclasses.replace(config.data, max_text_tokens=256)), "cpu")


@pytest.fixture
def head(shared_head):
    yield shared_head
    shared_head.gate.set()
    shared_head.begun, shared_head.failure = 0, None


@pytest.fixture
def ahead(folder, head):
    with_threads = EncodeAhead(loader_of(folder), head, None, packs=1)
    yield with_threads
    head.gate.set()
    with_threads.close()


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.01)


def test_features_are_those_of_encoding_in_the_step_bit_for_bit(folder, head, ahead):
    loader = loader_of(folder)
    for _ in range(4):
        encoded, expected = ahead.take(), encode_next(loader, head, None)
        assert encoded.pack == expected.pack and encoded.errors == expected.errors == []
        assert encoded.own.keys() == expected.own.keys() == set(range(len(encoded.pack)))
        for position, features in encoded.own.items():
            pairs = zip(features.tensors(), expected.own[position].tensors(), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
    loader.close()


def test_decoded_clips_are_kept_for_what_the_encoders_stream_still_reads(folder, head, monkeypatch):
    marked = []
    monkeypatch.setattr("phantom_mega.conditioning.ahead.used_here", marked.extend)
    loader = loader_of(folder)
    pack = encode_next(loader, head, None).pack
    loader.close()
    shapes = {tuple(tensor.shape) for tensor in marked}
    assert {(3, sample.num_frames, sample.height, sample.width) for sample in pack} <= shapes
    assert {(len(sample.references), 3, sample.height, sample.width) for sample in pack} <= shapes


def test_the_next_pack_is_encoded_while_the_step_works_on_this_one_and_not_without_bound(ahead, head):
    ahead.take()
    wait_until(lambda: head.begun == 3)  # taken; waiting to be taken; in the thread's hand
    time.sleep(0.2)
    assert head.begun == 3
    waited = ahead.wait_seconds
    ahead.take()
    assert ahead.wait_seconds - waited < 0.1, "it was there"


def test_the_wait_for_a_slow_encoder_is_counted(ahead, head):
    wait_until(lambda: head.begun == 2)
    head.gate.clear()
    ahead.take(), ahead.take()  # one waits to be taken, one is past the gate
    threading.Timer(0.5, head.gate.set).start()
    waited = ahead.wait_seconds
    ahead.take()
    assert ahead.wait_seconds - waited > 0.2


def test_what_stops_the_encoders_reaches_the_step_at_every_call(ahead, head):
    head.failure = UserError("the caption's length is not the planned one")
    for _ in range(2):
        with pytest.raises(UserError, match="not the planned one"):
            for _ in range(4):
                ahead.take()


def test_what_stops_the_loader_reaches_the_step(folder, head, monkeypatch):
    loader = loader_of(folder)
    monkeypatch.setattr(loader.reader, "read", lambda row: (_ for _ in ()).throw(OSError("the disk is gone")))
    with_threads = EncodeAhead(loader, head, None, packs=1)
    with pytest.raises(OSError, match="the disk is gone"):
        for _ in range(20):
            with_threads.take()
    with_threads.close()


def test_closing_ends_both_threads(ahead):
    ahead.take()
    ahead.close()
    assert not ahead._prefetcher._thread.is_alive() and not ahead.loader._prefetcher._thread.is_alive()
    with pytest.raises(StopIteration):
        ahead.take()


@pytest.mark.gpu
def test_a_side_stream_is_done_when_its_block_ends():
    x = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    with side_stream("cuda"):
        assert torch.cuda.current_stream() != torch.cuda.default_stream()
        y = x
        for _ in range(20):
            y = y @ x / 64
    total = y.double().sum().item()  # on the default stream, which waits for no other
    expected = x
    for _ in range(20):
        expected = expected @ x / 64
    assert total == expected.double().sum().item()


@pytest.mark.gpu
def test_a_thread_has_one_side_stream_and_another_thread_another():
    def stream(_=None):
        with side_stream("cuda"):
            return torch.cuda.current_stream().cuda_stream

    with ThreadPoolExecutor(1) as other:
        assert len({stream(), stream(), other.submit(stream).result(), *other.map(stream, range(3))}) == 2


@pytest.mark.gpu
def test_memory_of_a_side_stream_is_not_given_anew_while_another_stream_reads_it():
    def place():
        return torch.empty(5 << 20, device="cuda")

    with side_stream("cuda"):
        first = place()
    torch.cuda._sleep(1 << 30)
    used_here([first])
    before = first.data_ptr()
    del first
    with side_stream("cuda"):
        assert place().data_ptr() != before
    torch.cuda.synchronize()
    with side_stream("cuda"):
        found = [place() for _ in range(2)]
        assert before in {tensor.data_ptr() for tensor in found}
