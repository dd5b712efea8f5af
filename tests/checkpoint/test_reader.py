"""Single tensors of a checkpoint, read from the chunks that hold them."""

import pickle

import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.checkpoint.rewrite import rewrite
from phantom_mega.checkpoint.sharding import ModelParallelLayout
from phantom_mega.errors import UserError
from tests.checkpoint.conftest import MODEL

KEY = "blocks.1.visual.linear_proj.weight"  # split along its inputs


@pytest.fixture(scope="module")
def readers(pristine, tmp_path_factory):
    """The same tensors whole, and in four parts each."""
    split = rewrite(pristine, tmp_path_factory.mktemp("split") / "iter_0000003", ModelParallelLayout(4, tensor=4), "")
    return CheckpointReader(pristine), CheckpointReader(split)


def test_tensors_are_what_torch_loads(readers):
    whole, _ = readers
    from torch.distributed.checkpoint import FileSystemReader, load

    content = {key: torch.empty(entry.shape, dtype=entry.dtype) for key, entry in whole.tensors.items()}
    load(content, storage_reader=FileSystemReader(whole.folder), no_dist=True)
    assert len(content) > 100 and all(torch.equal(whole.read(key), content[key]) for key in content)


def test_parts_of_several_chunks_are_put_together(readers):
    whole, split = readers
    assert [len(reader.tensors[KEY].chunks) for reader in readers] == [1, 4]
    full = whole.read(KEY)
    assert torch.equal(full, split.read(KEY)) and full.shape == (MODEL.hidden_size, MODEL.hidden_size)
    for offsets, sizes in (
        ((0, 0), (32, 8)),
        ((3, 5), (10, 20)),
        ((31, 31), (1, 1)),
        ((0, 8), (32, 8)),
        ((5, 0), (0, 4)),
    ):
        expected = full[tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))]
        for reader in readers:
            part = reader.read_slice(KEY, offsets, sizes)
            assert torch.equal(part, expected) and part.is_contiguous()


def test_only_the_chunks_that_hold_a_part_are_read(readers, monkeypatch):
    _, split = readers
    read = []
    load = CheckpointReader._load
    monkeypatch.setattr(CheckpointReader, "_load", lambda self, *args: read.append(args[2].file) or load(self, *args))
    split.read_slice(KEY, (0, 8), (32, 10))
    assert read == ["__1_0.distcp", "__2_0.distcp"]


def test_a_part_outside_of_the_tensor_is_refused(readers):
    for offsets, sizes in (((0, 0), (33, 1)), ((-1, 0), (2, 2)), ((0,), (4,)), ((0, 30), (1, 3))):
        with pytest.raises(UserError, match=r"shape \[32, 32\]; it has no part"):
            readers[0].read_slice(KEY, offsets, sizes)


def test_an_unknown_key_names_the_nearest(readers):
    with pytest.raises(UserError, match=rf"no tensor 'blocks.1.visual.linear_proj.wieght'; the nearest is '{KEY}'"):
        readers[0].read("blocks.1.visual.linear_proj.wieght")


def test_common_state_and_byte_items(readers):
    assert readers[0].common()["scheduler"] == {"num_steps": 3}
    assert readers[0].byte_items() == readers[1].byte_items()


def test_chunks_that_do_not_cover_a_tensor_are_an_error_and_not_garbage(readers, tmp_path):
    _, split = readers
    for path in split.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    hole: ChunkStorageMetadata = metadata.state_dict_metadata[KEY].chunks.pop(2)
    del metadata.storage_data[MetadataIndex(KEY, hole.offsets)]
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    reader = CheckpointReader(tmp_path)
    with pytest.raises(UserError, match=r"chunks of blocks\.1\.visual\.linear_proj\.weight do not cover"):
        reader.read(KEY)
    assert reader.read_slice(KEY, (0, 0), (32, 8)).shape == (32, 8)


def test_damaged_bytes_are_an_error_that_names_file_and_tensor(readers, tmp_path):
    whole, _ = readers
    for path in whole.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    chunk = whole.tensors[KEY].chunks[0]
    with open(tmp_path / chunk.file, "r+b") as file:
        file.seek(chunk.start)
        file.write(bytes(200))
    with pytest.raises(UserError, match=rf"{chunk.file}: {KEY} at \[0, 0\] is damaged"):
        CheckpointReader(tmp_path).read(KEY)
