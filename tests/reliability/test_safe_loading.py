"""Data sets from somebody else are data: no file may run code, read other files or take the machine's memory.

Cached features, encoders and recipes: test_safe_encoders.py; checkpoints: tests/checkpoint/test_safe.py.
"""

import io
import json
import os
import re
import struct
import tarfile
import zlib

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phantom_mega.conditioning.vision import load_vision_tower
from phantom_mega.config import ConditioningConfig, DataConfig
from phantom_mega.data.decode import PyAVDecoder, make_decoder, open_clip, probe_clip
from phantom_mega.data.index import INDEX_NAME, TripletIndex
from phantom_mega.data.schema import to_json
from phantom_mega.data.shards import (
    MAX_JSON_BYTES,
    MAX_MEMBERS,
    MAX_SAMPLE_BYTES,
    RawTriplet,
    read_sample,
    scan_shard,
)
from phantom_mega.errors import BadSampleError, UserError
from phantom_mega.images import MAX_PIXELS, open_image
from tests.conditioning.helpers import planned
from tests.data.helpers import SCHEMA, index_row, make_triplet
from tests.media import draw_frames, encode_clip, encode_image
from tests.reliability.hostile import bounded_fixture, marker_fixture  # noqa: F401 (fixtures)

# -- tar shards


def members(key="clip_0", **extra):
    """Members of a good sample, by name."""
    triplet = make_triplet(key, references=1)
    return {
        f"{key}.json": json.dumps(to_json(triplet)).encode(),
        f"{key}.webm": b"clip",
        f"{key}.ref0.jpg": b"r",
    } | extra


def write_tar(path, contents, form=tarfile.GNU_FORMAT, change=None):
    """A tar of name -> bytes; `change(info)` makes a member hostile."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change:
                change(info)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


def sparse_header(name, real_size):
    """An old GNU sparse member: one block of data that stands for `real_size` bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.type = 512, tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    number = lambda value: b"%011o\0" % value if value < 8**11 else b"\x80" + value.to_bytes(11, "big")  # noqa: E731
    header[386:410] = number(0) + number(512)
    header[483:495] = number(real_size)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"x" * 512


def refuse_both_ways(path, message):
    """Neither training's read of one sample nor the scan that builds an index accepts the shard."""
    size = path.stat().st_size
    with pytest.raises(BadSampleError, match=message):
        read_sample(str(path), 0, size, "clip_0")
    found = list(scan_shard(path))
    assert any(isinstance(item, BadSampleError) and re.search(message, str(item)) for item in found), found


@pytest.mark.parametrize("name", ["../../evil.jpg", "/tmp/evil.jpg", "clip_0/../../evil.jpg", "clip_0\\..\\evil.jpg"])
def test_member_names_that_lead_out_of_a_folder_are_refused(tmp_path, name):
    shard = write_tar(tmp_path / "shard.tar", {**members(), name: b"x"})
    refuse_both_ways(shard, "refused the member")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_devices_and_folders_are_refused(tmp_path, kind):
    def change(info):
        if info.name.endswith("webm"):
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    refuse_both_ways(write_tar(tmp_path / "shard.tar", members(), change=change), "refused the member")


@pytest.mark.parametrize("real_size", [1 << 33, 1 << 45])
def test_a_member_with_holes_does_not_unpack(tmp_path, real_size):
    content = members()
    del content["clip_0.webm"]
    shard = write_tar(tmp_path / "shard.tar", content)
    data = shard.read_bytes()
    shard.write_bytes(sparse_header("clip_0.webm", real_size) + data)
    refuse_both_ways(shard, "refused the member|damaged")


@pytest.mark.parametrize("size", [1 << 34, 1 << 60])
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.REGTYPE])
def test_a_header_that_claims_a_huge_size_takes_no_memory(tmp_path, kind, size):
    info = tarfile.TarInfo("clip_0.json")
    info.type, info.size = kind, size
    shard = tmp_path / "shard.tar"
    shard.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"{}" * 256 + write_tar(tmp_path / "t", members()).read_bytes())
    refuse_both_ways(shard, "damaged|ends after|bad JSON|larger than|header claims|no .json")


def header(kind=tarfile.REGTYPE, size=0, content=b"", name="clip_0.json"):
    """A tar header, which may claim a negative size, and what follows it."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        block[124:136] = size.to_bytes(12, "big", signed=True)
        block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    return bytes(block) + content + bytes(-len(content) % 512)


def pax(*records):
    """An extended header."""
    content = b"".join(b"%d %s\n" % (len(record) + 4, record) for record in records)
    return header(tarfile.XHDTYPE, len(content), content)


HOSTILE_HEADERS = {
    "a chain of long names": header(tarfile.GNUTYPE_LONGNAME, 4, b"abc\0") * 2000,
    "a chain of extended headers": pax(b"path=x") * 2000,
    "a member that leads back to itself": header(size=-512),
    "media that lead back to themselves": header(size=-512, name="clip_0.webm"),
    "a member that leads back by its extended header": pax(b"size=-1024"),
    "a long name of negative size": header(tarfile.GNUTYPE_LONGNAME, -512),
    "a map of holes that holds no numbers": pax(b"GNU.sparse.map=a,b"),
    "a map of holes that does not follow": pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0"),
    "a name that controls the terminal": pax(b"path=\x1b[2Jclip.json"),
    "a name that is no text": pax(b"path=\xff.json"),
}


@pytest.mark.parametrize("hostile", HOSTILE_HEADERS)
@pytest.mark.parametrize("at", [0, 1024])
def test_headers_that_loop_recurse_or_lie_make_a_bad_sample(tmp_path, hostile, at):
    shard = write_tar(tmp_path / "shard.tar", members())
    data = shard.read_bytes()
    shard.write_bytes(data[:at] + HOSTILE_HEADERS[hostile] + data[at:])
    with pytest.raises(BadSampleError) as error:
        read_sample(str(shard), 0, shard.stat().st_size, "clip_0")
    found = [item for item in scan_shard(shard) if isinstance(item, BadSampleError)]
    assert (
        found and str([str(error.value), *map(str, found)]).isprintable() and "\x1b" not in f"{error.value}{found[0]}"
    )


def test_a_sample_larger_than_allowed_is_not_read(tmp_path):
    data = write_tar(tmp_path / "shard.tar", members() | {"clip_0.webm": b""}).read_bytes()
    shard, size = tmp_path / "holes.tar", MAX_SAMPLE_BYTES + 512
    clip = tarfile.TarInfo("clip_0.webm")
    clip.size = size
    end = data[-1024:]
    with open(shard, "wb") as file:
        file.write(data[:1024] + clip.tobuf())
        file.seek(size, os.SEEK_CUR)
        file.write(data[1536:-1024] + end)
    for claimed in (shard.stat().st_size, 1 << 60):
        with pytest.raises(BadSampleError, match=f"{MAX_SAMPLE_BYTES} are the most"):
            read_sample(str(shard), 0, claimed, "clip_0")
    assert "are the most" in str(next(iter(scan_shard(shard))))
    with pytest.raises(BadSampleError, match=r"ends after|damaged"):  # a short span does not reach the clip's end
        read_sample(str(shard), 0, 4096, "clip_0")


def test_a_sample_of_very_many_files_is_refused(tmp_path):
    many = {f"clip_0.x{i}": b"" for i in range(MAX_MEMBERS)}
    refuse_both_ways(write_tar(tmp_path / "shard.tar", members() | many), "more than 64 files")


def test_a_pax_header_that_renames_a_member_is_seen(tmp_path):
    def change(info):
        if info.name.endswith("webm"):
            info.pax_headers = {"path": "../../evil.webm"}

    refuse_both_ways(write_tar(tmp_path / "shard.tar", members(), tarfile.PAX_FORMAT, change), "refused the member")


def json_with(**fields):
    """The JSON of a good sample with some fields replaced."""
    return json.dumps(to_json(make_triplet("clip_0", references=1)) | fields).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "bad JSON"),
        (b'{"schema_version": 1, "key": "' + b"x" * (MAX_JSON_BYTES + 1) + b'"}', "larger than"),
        (b'{"schema_version": 1, "frames": ' + b"9" * 10_000 + b"}", "bad JSON"),
        (b'{"schema_version": 1, "key": "../../etc"}', "lacks the field|the key may hold"),
        (json_with(frames=1 << 40), "larger than 2147483647"),
        (json_with(height=1e300), "larger than 2147483647"),
        (json_with(fps=1e300), "fps=1e\\+300 must be"),
        (json_with(caption="\ud800"), "half of a character"),
        (json_with(scores={"\ud800": 1.0}), "half of a character"),
    ],
)
def test_json_bombs_are_bad_samples(tmp_path, data, message):
    refuse_both_ways(write_tar(tmp_path / "shard.tar", members(**{"clip_0.json": data})), message)


# -- the index


def hostile_index(folder, **columns):
    """An index of one good sample with some columns replaced."""
    row = index_row(make_triplet("clip_0"), "shard-000000.tar", 0, 4096, 4) | columns
    table = pa.Table.from_pylist([row], schema=SCHEMA)
    pq.write_table(table.replace_schema_metadata({"schema_version": "1", "tokenizer": "t"}), folder / INDEX_NAME)
    return folder


@pytest.mark.parametrize("shard", ["../secret.tar", "/etc/passwd", "a/../../b.tar"])
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path, shard):
    with pytest.raises(UserError, match="names a shard outside of its folder"):
        TripletIndex.open(hostile_index(tmp_path, shard=shard))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({name: -1}, f"{name}=-1(.0)?, which")
        for name in ("offset", "bytes", "clip_bytes", "text_tokens", "frames", "fps")
    ]
    + [
        ({"height": 0}, "height=0, which"),
        ({"fps": float("nan")}, "fps=nan, which"),
        ({"fps": 1e300}, "fps is above"),
        ({"key": "../../clip"}, "has a key '../../clip'"),
        ({"key": "x" * 100_000}, "has a key 'x"),
        ({"shard": "a\0b.tar"}, "names a shard"),
        ({"shard": "\x1b[2J.tar"}, "names a shard"),
        ({"references": [{"kind": None}]}, "without a value for references"),
        ({"references": [{"kind": "cross"}] * 10_000}, "10000 references"),
    ],
)
def test_an_index_with_values_that_no_sample_has_is_refused(tmp_path, columns, message):
    with pytest.raises(UserError, match=message) as error:
        TripletIndex.open(hostile_index(tmp_path, **columns))
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


@pytest.mark.parametrize("name", ["key", "shard", "video_id", "codec"])
def test_an_index_whose_text_is_none_is_refused(tmp_path, name):
    good = pq.read_table(hostile_index(tmp_path) / INDEX_NAME)
    text = pa.StringArray.from_buffers(1, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe"))
    table = good.set_column(good.column_names.index(name), good.schema.field(name), text)
    pq.write_table(table, tmp_path / INDEX_NAME)
    with pytest.raises(UserError, match=r"not a readable parquet|damaged column"):
        TripletIndex.open(tmp_path).value(name, 0)


def test_an_index_that_repeats_one_row_for_ever_takes_no_memory(tmp_path):
    file = hostile_index(tmp_path) / INDEX_NAME
    table = pq.read_table(file)
    group = table.take(pa.array([0] * 400_000))
    with pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
        writer.write_table(group)
    assert file.stat().st_size < 100_000
    with pytest.raises(UserError, match="claims 400000 rows"):
        TripletIndex.open(file)


def test_a_span_larger_than_its_shard_takes_no_memory(tmp_path):
    shard = write_tar(tmp_path / "shard-000000.tar", members())
    assert read_sample(str(shard), 0, 1 << 60, "clip_0").clip == b"clip"
    with pytest.raises(BadSampleError):
        read_sample(str(shard), 1 << 62, 1 << 60, "clip_0")


# -- pictures and clips


def png(width, height, data=b""):
    """A PNG that claims a size."""
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("side", "message"), [(12_000, "12000x12000 pixels; 134217728 are"), (60_000, "bomb")])
def test_decompression_bombs_are_refused_unpacked(side, message):
    bomb = png(side, side, zlib.compress(bytes(side * 3 + 1) * 10, 9))
    good = png(2, 2, zlib.compress((b"\0" + b"\xff" * 6) * 2))
    assert open_image(good).shape == (2, 2, 3) and len(bomb) < 10_000
    with pytest.raises(ValueError, match=message):
        open_image(bomb)
    with pytest.raises(ValueError, match=message):
        open_image(good, mask=bomb)


def test_a_jpeg_that_claims_a_huge_size_is_refused():
    size = struct.pack(">HH", 65_000, 65_000)
    header = b"\xff\xd8\xff\xc0\x00\x11\x08" + size + b"\x03\x01\x22\0\x02\x11\1\x03\x11\1"
    with pytest.raises(ValueError, match="cannot be read"):
        open_image(header + b"\xff\xd9")


def test_image_formats_that_start_programs_or_are_not_asked_for_are_refused(marker):
    header = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    postscript = f"{header}(%pipe%touch {marker}) (w) file\n%%EOF\n".encode()
    picture = draw_frames(1, 8, 8)[0]
    others = [encode_image(picture, form) for form in ("GIF", "BMP", "TIFF", "WEBP")]
    for data in (postscript, *others, b""):
        with pytest.raises(ValueError, match="cannot be read"):
            open_image(data)
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10,\nfile://{path}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{path}'\n",
    ],
)
def test_a_clip_that_is_a_list_of_other_files_is_refused(tmp_path, text):
    frames = draw_frames(4, 48, 64)
    (tmp_path / "secret.webm").write_bytes(encode_clip(frames))
    with pytest.raises(av.error.FFmpegError):
        open_clip(text.format(path=tmp_path / "secret.webm").encode())
    with open_clip(encode_clip(frames)) as container:
        assert container.streams.video


def test_a_container_that_is_not_asked_for_is_refused():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as output:
        stream = output.add_stream("mpeg2video", rate=24)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for array in draw_frames(4, 48, 64):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        output.mux(stream.encode(None))
    with pytest.raises(av.error.FFmpegError):
        open_clip(buffer.getvalue())


def test_a_clip_whose_frames_are_larger_than_it_says_is_refused_unpacked():
    clip = encode_clip(draw_frames(2, 48, 64), "vp8")
    small, large = (b"\x9d\x01\x2a" + struct.pack("<HH", *size) for size in ((64, 48), (12_000, 12_000)))
    assert clip.count(small) == 1  # in the key frame; the container says 64x48 apart from it
    triplet = make_triplet("clip_0", references=0, frames=2, height=12_000, width=12_000)
    with pytest.raises(ValueError, match="cannot be opened"):
        probe_clip(RawTriplet(triplet, clip.replace(small, large), "webm", [], []))


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_a_line_of_pixels_does_not_grow_to_gigabytes(shape):
    line = encode_image(np.zeros((*shape, 3), dtype=np.uint8), "PNG")
    sample = planned(frames=1, references=0, height=480, width=832)
    triplet = make_triplet("a", references=0, frames=1, height=shape[0], width=shape[1])
    raw = RawTriplet(triplet, line, "png", [], [])
    for decoder in (PyAVDecoder(), make_decoder(DataConfig())):
        assert "too narrow to be cut to 832x480" in decoder.decode([(sample, raw)])[0].error
    features = load_vision_tower(ConditioningConfig(), "cpu").encode([open_image(line)])
    assert len(line) < 1000 and features.isfinite().all()


def test_a_clip_with_absurd_frames_is_refused():
    clip = bytearray(encode_clip(draw_frames(2, 48, 64), "vp9"))
    for element in (b"\xb0\x81\x40", b"\xba\x81\x30"):  # PixelWidth 64 and PixelHeight 48, one byte each
        assert clip.count(element) == 1
    place = clip.index(b"\xb0\x81\x40")
    wide = clip[:place] + b"\xb0\x81\xff" + clip[place + 3 :]
    triplet = make_triplet("clip_0", references=0, frames=2, height=48, width=255)
    with pytest.raises(ValueError):  # the container lies about its frames
        probe_clip(RawTriplet(triplet, bytes(wide), "webm", [], []))
    assert 7680 * 4320 < MAX_PIXELS < 1 << 28
