"""Schema, shards and index: what is written comes back, what is broken is named, nothing is half-written."""

import io
import json
import tarfile

import pytest
import webdataset

from phantom_mega.data.index import TripletIndex
from phantom_mega.data.schema import SCHEMA_VERSION, from_json, to_json
from phantom_mega.data.shards import ShardReader, ShardWriter, read_sample
from phantom_mega.errors import BadSampleError, UserError
from tests.data.helpers import make_triplet


def write(folder, count=5, **settings):
    with ShardWriter(folder, tokenizer="tok", **settings) as writer:
        for i in range(count):
            triplet = make_triplet(f"clip_{i}", references=i % 3)
            writer.write(triplet, bytes([i]) * (700 * i + 1), "webm", [(b"ref%d" % j, "jpg") for j in range(i % 3)])


def test_samples_come_back_at_random_access_over_several_shards(tmp_path):
    write(tmp_path, max_samples_per_shard=2)
    assert len(list(tmp_path.glob("shard-*.tar"))) == 3
    index = TripletIndex.open([tmp_path])
    reader = ShardReader(index)
    for row in (4, 0, 2, 1, 3):
        raw = reader.read(row)
        assert raw.triplet == make_triplet(f"clip_{row}", references=row % 3)
        assert raw.clip == bytes([row]) * (700 * row + 1) and raw.clip_ext == "webm"
        assert raw.references == [b"ref%d" % j for j in range(row % 3)]
    assert index.tokenizer == "tok"


def test_shards_are_webdatasets(tmp_path):
    write(tmp_path)
    samples = list(webdataset.WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"clip_{i}" for i in range(5)]
    assert json.loads(samples[2]["json"])["caption"] == "A caption of clip_2" and samples[2]["ref1.jpg"] == b"ref1"


def test_equal_samples_give_equal_shards(tmp_path):
    for name in "ab":
        write(tmp_path / name)
    assert (tmp_path / "a/shard-000000.tar").read_bytes() == (tmp_path / "b/shard-000000.tar").read_bytes()


def test_a_failed_write_publishes_no_index_and_leaves_no_half_shard(tmp_path):
    with pytest.raises(UserError, match="already written"), ShardWriter(tmp_path) as writer:
        writer.write(make_triplet(references=0), b"x", "webm", [])
        writer.write(make_triplet(references=0), b"x", "webm", [])
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_is_never_overwritten(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="already holds a data set"):
        ShardWriter(tmp_path)


def raw_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path), 0, path.stat().st_size, "clip_0"


def good_members():
    return {
        "clip_0.json": json.dumps(to_json(make_triplet())).encode(), "clip_0.webm": b"clip", "clip_0.ref0.jpg": b"ref",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_0.json": b"{"}, "bad JSON"),
        ({"clip_0.json": None}, "no .json member"),
        ({"clip_0.json": b"[]"}, "not an object"),
        ({"clip_0.json": b'{"schema_version": 9}'}, "schema version 9 is not 1"),
        ({"clip_0.webm": None}, "0 clips"),
        ({"clip_0.mp4": b"second"}, "2 clips"),
        ({"clip_0.ref0.jpg": None}, "reference 0 .*subject 0.* is missing"),
        ({"../clip_0.png": b"x"}, "refused the member '../clip_0.png'"),
        ({"/etc/clip_0.png": b"x"}, "refused the member"),
        ({"other.webm": b"x"}, "rebuild the index"),
    ],
)
def test_broken_samples_are_named_with_shard_key_and_reason(tmp_path, change, message):
    members = {name: data for name, data in (good_members() | change).items() if data is not None}
    span = raw_tar(tmp_path / "s.tar", members.items())
    with pytest.raises(BadSampleError, match=f"s.tar, sample clip_0: .*{message}"):
        read_sample(*span)


def test_links_in_a_tar_are_refused(tmp_path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("clip_0.webm")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(BadSampleError, match="refused"):
        read_sample(str(path), 0, path.stat().st_size, "clip_0")


def test_a_truncated_shard_and_a_missing_shard_are_named(tmp_path):
    write(tmp_path)
    shard = tmp_path / "shard-000000.tar"
    index = TripletIndex.open([tmp_path])
    shard.write_bytes(shard.read_bytes()[: int(index.column("offset")[4]) + 600])
    assert ShardReader(index).read(0).clip == b"\0"
    with pytest.raises(BadSampleError, match="clip_4"):
        ShardReader(index).read(4)
    shard.unlink()
    with pytest.raises(BadSampleError, match="cannot be read"):
        ShardReader(index).read(0)


def test_indexes_join_and_foreign_ones_are_refused(tmp_path):
    write(tmp_path / "a", 2)
    with ShardWriter(tmp_path / "b", tokenizer="tok") as writer:
        writer.write(make_triplet("other", references=0), b"x", "webm", [])
    assert len(TripletIndex.open([tmp_path / "a", tmp_path / "b" / "index.parquet"])) == 3
    with pytest.raises(UserError, match="occurs 2 times"):
        TripletIndex.open([tmp_path / "a", tmp_path / "a"])
    with pytest.raises(UserError, match="there is no index"):
        TripletIndex.open([tmp_path])
    (tmp_path / "index.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="not a readable parquet"):
        TripletIndex.open([tmp_path])


def test_json_round_trips_and_names_what_is_missing():
    triplet = make_triplet(references=2)
    assert from_json(json.loads(json.dumps(to_json(triplet)))) == triplet
    assert to_json(triplet)["schema_version"] == SCHEMA_VERSION
    for name in ("caption", "frames", "fps"):
        data = to_json(triplet)
        del data[name]
        with pytest.raises(UserError, match=name):
            from_json(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "a/b"}, "the key may hold"), ({"key": "a.b"}, "the key may hold"), ({"frames": 0}, "at least 1"),
        ({"fps": 0.0}, "must be positive"), ({"references": 5}, "at most 4"), ({"kind": "self"}, "kind 'self'"),
    ],
)  # fmt: skip
def test_impossible_triplets_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        make_triplet(**change)
