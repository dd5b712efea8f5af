"""Shards: what is written comes back, what is broken is named, nothing is half-written."""

import dataclasses
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from phantom_mega.data.index import SCHEMA, TripletIndex
from phantom_mega.data.schema import to_json
from phantom_mega.data.shards import ShardReader, ShardWriter, read_sample, scan_shard
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
    with pytest.raises(UserError, match="already written"), ShardWriter(tmp_path, max_samples_per_shard=1) as writer:
        for key in ("a", "b", "a"):
            writer.write(make_triplet(key, references=0), b"x", "webm", [])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_visible_before_the_index_is(tmp_path):
    with ShardWriter(tmp_path, max_samples_per_shard=1) as writer:
        for i in range(3):
            writer.write(make_triplet(f"clip_{i}", references=0), b"x", "webm", [])
        assert not list(tmp_path.glob("*.tar")) and not list(tmp_path.glob("*.parquet"))
    names = [f"shard-{i:06d}.tar" for i in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.parquet", *names]


def test_what_a_killed_run_left_is_written_over(tmp_path):
    (tmp_path / ".shard-000000.tar.tmp").write_bytes(b"half a shard")
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.parquet", "shard-000000.tar"]
    assert ShardReader(TripletIndex.open(tmp_path)).read(4).triplet.key == "clip_4"


def test_a_data_set_is_never_overwritten(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="already holds a data set"):
        ShardWriter(tmp_path)
    (tmp_path / "index.parquet").unlink()
    with pytest.raises(UserError, match=r"shards without an index; rebuild it with tools/build_index\.py"):
        ShardWriter(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_files_that_differ_from_their_description_are_refused(tmp_path):
    writer = ShardWriter(tmp_path)
    with pytest.raises(UserError, match="clip extension 'exe'; use one of webm"):
        writer.write(make_triplet(references=0), b"x", "exe", [])
    with pytest.raises(UserError, match="1 references are described, 0 images and 0 masks are given"):
        writer.write(make_triplet(references=1), b"x", "webm", [])
    with pytest.raises(UserError, match="reference extension 'gif'"):
        writer.write(make_triplet(references=1), b"x", "webm", [(b"r", "gif")])
    with pytest.raises(UserError, match="`mask` field and its mask image disagree"):
        writer.write(make_triplet(references=1), b"x", "webm", [(b"r", "jpg")], [b"mask"])


def test_masks_and_images_come_back(tmp_path):
    triplet = make_triplet(references=2, frames=1, fps=0.0)
    first, second = triplet.references
    triplet = dataclasses.replace(triplet, references=(first, dataclasses.replace(second, mask=True)))
    with ShardWriter(tmp_path) as writer:
        writer.write(triplet, b"image", "jpg", [(b"r0", "png"), (b"r1", "jpg")], [None, b"m1"])
    raw = ShardReader(TripletIndex.open(tmp_path)).read(0)
    assert (raw.clip, raw.clip_ext, raw.references, raw.masks) == (b"image", "jpg", [b"r0", b"r1"], [None, b"m1"])
    assert raw.triplet == triplet


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
        ({"clip_0.json": b"\xff"}, "bad JSON"),
        ({"clip_0.json": b"[" * 100_000}, "bad JSON"),
        ({"clip_0.json": json.dumps(to_json(make_triplet("clip_1"))).encode()}, "JSON is of the sample 'clip_1'"),
        ({"clip_0.json": b'{"schema_version": 9}'}, "schema version 9 is not 1"),
        ({"clip_0.webm": None}, "0 clips"),
        ({"clip_0.mp4": b"second"}, "2 clips"),
        ({"clip_0.ref0.jpg": None}, "reference 0 .*subject 0.* is missing"),
        ({"../clip_0.png": b"x"}, "refused the member '../clip_0.png'"),
        ({"/etc/clip_0.png": b"x"}, "refused the member"),
        ({"..": b"x"}, "refused the member '..'"),
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


def scanned(path):
    """Index rows that a scan finds, and what it says of bad samples."""
    items = list(scan_shard(path))
    return [i[1] for i in items if isinstance(i, tuple)], [str(i) for i in items if isinstance(i, BadSampleError)]


def test_a_scan_finds_the_rows_that_the_writer_wrote(tmp_path):
    write(tmp_path, max_samples_per_shard=3)
    rows = [row for shard in sorted(tmp_path.glob("*.tar")) for row in scanned(shard)[0]]
    written = pq.read_table(tmp_path / "index.parquet").to_pylist()
    assert pa.Table.from_pylist(rows, schema=SCHEMA).to_pylist() == written and len(rows) == 5


def test_a_scan_reads_shards_of_the_webdataset_library(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "other.tar")) as writer:
        for i in range(3):
            key = f"clip_{i}-{'long' * 30}"
            writer.write({"__key__": key, "json": to_json(make_triplet(key)), "webm": b"c" * i, "ref0.jpg": b"r"})
    rows, bad = scanned(tmp_path / "other.tar")
    assert not bad and [row["clip_bytes"] for row in rows] == [0, 1, 2]
    for i, row in enumerate(rows):
        raw = read_sample(str(tmp_path / "other.tar"), row["offset"], row["bytes"], row["key"])
        assert raw.clip == b"c" * i and raw.references == [b"r"]


def test_a_scan_names_bad_samples_and_goes_on(tmp_path):
    good = good_members()
    members = [(name.replace("clip_0", "bad"), data) for name, data in good.items()]  # its JSON names clip_0
    members += [(f"no_clip.{name.partition('.')[2]}", data) for name, data in good.items() if "webm" not in name]
    raw_tar(tmp_path / "s.tar", [*members, *good.items()])
    rows, bad = scanned(tmp_path / "s.tar")
    assert [row["key"] for row in rows] == ["clip_0"]
    assert bad[0] == "s.tar, sample bad: its JSON is of the sample 'clip_0'" and bad[1].startswith(
        "s.tar, sample no_clip"
    )


def test_a_scan_ends_where_the_tar_is_damaged_or_hostile(tmp_path):
    write(tmp_path)
    shard = tmp_path / "shard-000000.tar"
    whole = shard.read_bytes()
    for length in (len(whole) // 2, 700):
        shard.write_bytes(whole[:length])
        rows, bad = scanned(shard)
        assert len(bad) == 1 and "damaged" in bad[0] and len(rows) < 5
    raw_tar(shard, [*good_members().items(), ("../clip_1.json", b"x")])
    assert "refused the member '../clip_1.json'" in scanned(shard)[1][0]
    shard.write_bytes(b"")
    assert "damaged" in scanned(shard)[1][0]
    assert "damaged" in scanned(tmp_path / "missing.tar")[1][0]
