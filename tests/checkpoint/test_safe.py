"""What a checkpoint holds is data: anything else is refused before torch or megatron unpickles it."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import MetadataIndex

from phantom_mega.checkpoint import safe
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.errors import UserError
from tests.checkpoint.helpers import COMMON


class Payload:
    """Unpickling it runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def checkpoint(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "iter_0000003"))


@pytest.fixture
def marker(tmp_path):
    """A file that only hostile content would create."""
    return tmp_path / "executed"


def rewrite_metadata(folder, change):
    """Unpickle, change and pickle `.metadata`; the pickle can hold anything."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    (folder / ".metadata").write_bytes(pickle.dumps(change(metadata) or metadata))


def put_byte_item(folder, key, obj):
    """Put another object in the place of a byte item, in a file of its own."""
    torch.save(obj, folder / "__9_0.distcp")

    def change(metadata):
        info = metadata.storage_data[MetadataIndex(key)]
        info.relative_path, info.offset = "__9_0.distcp", 0
        info.length = (folder / "__9_0.distcp").stat().st_size

    rewrite_metadata(folder, change)


def test_a_checkpoint_of_the_trainer_is_accepted(checkpoint):
    safe.check(checkpoint)


def test_code_in_the_table_is_refused_and_not_run(checkpoint, marker):
    rewrite_metadata(checkpoint, lambda metadata: setattr(metadata, "planner_data", Payload(f"touch {marker}")))
    with pytest.raises(UserError, match=r"\.metadata is not safe to load: it asks for posix.system"):
        safe.check(checkpoint)
    assert not marker.exists()
    FileSystemReader(checkpoint).read_metadata()
    assert marker.exists(), "what torch does by itself: the test's payload works"


def test_code_in_a_byte_item_is_refused_and_not_run(checkpoint, marker):
    put_byte_item(checkpoint, COMMON, [Payload(f"touch {marker}")])
    with pytest.raises(UserError, match=r"__9_0\.distcp: common_state/shard_0_1 is not safe to load .*posix.system"):
        safe.check(checkpoint)
    with pytest.raises(UserError, match="not safe to load"):
        CheckpointReader(checkpoint).common()
    assert not marker.exists()
    load({COMMON: None}, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    assert marker.exists(), "what torch does by itself"


def test_code_in_a_tensor_is_refused_and_not_run(checkpoint, marker):
    torch.save(Payload(f"touch {marker}"), checkpoint / "__9_0.distcp")

    def change(metadata):
        index = MetadataIndex("final_proj.weight", (0, 0))
        info = metadata.storage_data[index]
        info.relative_path, info.offset = "__9_0.distcp", 0
        # Larger than the tensor it stands for, as the table demands.
        with open(checkpoint / "__9_0.distcp", "ab") as file:
            file.write(bytes(4096))
        info.length = (checkpoint / "__9_0.distcp").stat().st_size

    rewrite_metadata(checkpoint, change)
    with pytest.raises(UserError, match=r"final_proj\.weight .* is damaged"):
        CheckpointReader(checkpoint).read("final_proj.weight")
    assert not marker.exists()


def test_a_legacy_file_that_megatron_would_unpickle_is_refused(checkpoint):
    torch.save({}, checkpoint / "common.pt")
    with pytest.raises(UserError, match=r"common\.pt is not part of this format"):
        safe.check(checkpoint)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", "folder/__0_0.distcp", 7])
def test_storage_outside_of_the_checkpoint_is_refused(checkpoint, tmp_path, name):
    (tmp_path / "secret").write_bytes(bytes(1 << 20))

    def change(metadata):
        next(iter(metadata.storage_data.values())).relative_path = name

    rewrite_metadata(checkpoint, change)
    with pytest.raises(UserError, match="names storage outside of the checkpoint"):
        safe.check(checkpoint)


def test_storage_behind_a_link_is_refused(checkpoint, tmp_path):
    os.rename(checkpoint / "__0_0.distcp", tmp_path / "elsewhere")
    (checkpoint / "__0_0.distcp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"__0_0\.distcp is missing or not a plain file"):
        safe.check(checkpoint)


def test_storage_beyond_the_end_of_a_file_is_refused(checkpoint):
    os.truncate(checkpoint / "__0_0.distcp", 1000)
    with pytest.raises(UserError, match=r"__0_0\.distcp has 1,000 bytes, but .* the file was cut short"):
        safe.check(checkpoint)


def entry(metadata):
    return metadata.state_dict_metadata["final_proj.weight"]


CHANGES = {
    "a tensor larger than its file": lambda m: setattr(entry(m), "size", torch.Size([1 << 40, 1 << 20])),
    "a part larger than its bytes": lambda m: setattr(entry(m).chunks[0], "sizes", torch.Size([1 << 40, 1 << 20])),
    "a negative size": lambda m: setattr(entry(m), "size", torch.Size([-1, 4])),
    "a part of another rank": lambda m: setattr(entry(m).chunks[0], "sizes", torch.Size([4])),
    "no number format": lambda m: setattr(entry(m).properties, "dtype", "float32"),
    "no table": lambda m: setattr(m, "state_dict_metadata", [1, 2]),
    "no storage": lambda m: m.storage_data.clear(),
    "an offset that is no number": lambda m: setattr(next(iter(m.storage_data.values())), "offset", "0"),
    "a negative offset": lambda m: setattr(next(iter(m.storage_data.values())), "offset", -5),
    "not a table at all": lambda m: {"a": 1},
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_table_that_makes_no_sense_is_one_clear_error(checkpoint, kind):
    rewrite_metadata(checkpoint, CHANGES[kind])
    with pytest.raises(UserError):
        CheckpointReader(checkpoint).read("final_proj.weight")


def test_a_huge_byte_item_is_refused_before_it_is_read(checkpoint):
    with open(checkpoint / "__9_0.distcp", "wb") as file:
        file.truncate(65 << 20)

    def change(metadata):
        info = metadata.storage_data[MetadataIndex(COMMON)]
        info.relative_path, info.offset, info.length = "__9_0.distcp", 0, 65 << 20

    rewrite_metadata(checkpoint, change)
    with pytest.raises(UserError, match="67,108,864 is the most"):
        safe.check(checkpoint)


def test_random_damage_of_the_table_never_gives_another_error(checkpoint):
    data = (checkpoint / ".metadata").read_bytes()
    generator = torch.Generator().manual_seed(1)
    refused = 0
    for place in torch.randint(len(data), (300,), generator=generator).tolist():
        (checkpoint / ".metadata").write_bytes(data[:place] + bytes([data[place] ^ 0x15]) + data[place + 1 :])
        try:
            safe.check(checkpoint)
            CheckpointReader(checkpoint)
        except UserError:
            refused += 1
    assert refused > 100
