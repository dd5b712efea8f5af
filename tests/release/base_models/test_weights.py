"""Weights from somebody else are data: what is hostile, damaged or not there is one message."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from phantom_mega.errors import UserError
from phantom_mega.release.base_models.weights import open_weights, read_json

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
INDEX = "diffusion_pytorch_model.safetensors.index.json"


def shards(folder, **table):
    """A folder with two files, and an index with changes to its table."""
    folder.mkdir(exist_ok=True)
    save_file({"a.weight": STATE["a.weight"]}, folder / "one.safetensors")
    save_file({"b": STATE["b"]}, folder / "two.safetensors")
    weight_map = {"a.weight": "one.safetensors", "b": "two.safetensors"} | table
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture(params=["file", "folder", "shards", "pth", "nested"])
def stored(request, tmp_path):
    if request.param == "shards":
        return shards(tmp_path)
    if request.param in ("pth", "nested"):
        torch.save(STATE if request.param == "pth" else {"state_dict": STATE}, tmp_path / "x.pth")
        return tmp_path / "x.pth"
    save_file(STATE, tmp_path / "x.safetensors")
    return tmp_path if request.param == "folder" else tmp_path / "x.safetensors"


def test_every_kind_of_file_gives_the_same_tensors(stored):
    weights = open_weights(stored)
    assert weights.shapes == {name: tuple(tensor.shape) for name, tensor in STATE.items()}
    for name, tensor in STATE.items():
        found = weights.read(name)
        assert torch.equal(found, tensor) and found.dtype == tensor.dtype
    with pytest.raises(UserError, match=r"no tensor 'a.weigth'; the nearest is 'a\.weight'"):
        weights.read("a.weigth")


def test_a_truncated_file_is_refused_wherever_it_is_cut(stored):
    path = stored if stored.is_file() else sorted(stored.glob("*.safetensors"))[0]
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.3, 0.7, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=r"fetch it again|cannot be loaded as plain tensors") as error:
            open_weights(stored)
        assert "\n" not in str(error.value)


class Payload:
    def __reduce__(self):
        return os.system, ("touch {}".format(os.environ["HOSTILE_MARK"]),)


@pytest.mark.parametrize("old", [False, True])
def test_code_in_a_pth_file_is_refused_and_not_run(tmp_path, monkeypatch, old):
    mark = tmp_path / "ran"
    monkeypatch.setenv("HOSTILE_MARK", str(mark))
    torch.save({"a": torch.ones(2), "b": Payload()}, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError, match="cannot be loaded as plain tensors") as error:
        open_weights(tmp_path / "x.pth")
    assert "\n" not in str(error.value) and not mark.exists()
    pickle.loads(pickle.dumps(Payload()))  # it does run where nobody looks
    assert mark.exists()


def test_the_old_format_says_what_to_do(tmp_path):
    torch.save(STATE, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="not of torch's zip format: load and save it again"):
        open_weights(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "holds list, not a state dict"),
        ({"a": 3, "b": 4}, "'a' is int, not a tensor"),
        ({}, "not a state dict"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message):
        open_weights(tmp_path / "x.pth")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float8_e4m3fn])
def test_quantized_tensors_are_refused(tmp_path, dtype):
    save_file({"a": torch.zeros(4).to(dtype)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="use weights in float32, bfloat16 or float16"):
        open_weights(tmp_path / "x.safetensors").read("a")


@pytest.mark.parametrize("name", ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "a\\b.safetensors", ".."])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="names a file outside of its folder"):
        open_weights(shards(tmp_path, b=name))


def test_shards_that_are_missing_or_overlap_are_named(tmp_path):
    with pytest.raises(UserError, match=r"three\.safetensors is missing"):
        open_weights(shards(tmp_path, c="three.safetensors"))
    save_file(STATE, tmp_path / "three.safetensors")
    with pytest.raises(UserError, match=r"a\.weight is in one\.safetensors and in three\.safetensors"):
        open_weights(tmp_path)


def test_a_tensor_in_a_shard_that_the_index_does_not_name_is_not_lost(tmp_path):
    shards(tmp_path)
    save_file({"b": STATE["b"], "extra": torch.ones(1)}, tmp_path / "two.safetensors")
    assert "extra" in open_weights(tmp_path).shapes


@pytest.mark.parametrize("table", [{}, [], {"a": 3}, None])
def test_an_index_without_a_table_is_refused(tmp_path, table):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": table}))
    with pytest.raises(UserError, match="is damaged: it has no weight_map of file names"):
        open_weights(tmp_path)


def test_several_sets_of_weights_are_not_guessed(tmp_path):
    for name in ("one", "two"):
        save_file(STATE, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"several sets of weights \(one\.safetensors, two\.safetensors\)"):
        open_weights(tmp_path)


def test_what_is_not_there_or_no_weights_is_refused(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    for path, message in ((tmp_path / "no", "is no file or folder"), (tmp_path / "x.txt", "is no weights file"),
                          (tmp_path, "holds no .safetensors file")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            open_weights(path)


@pytest.mark.parametrize("text", ["", "[", "[" * 100000, "[1]", "\x00", '{"a": 1' + "0" * 5000 + "}"])
def test_json_of_any_kind_is_a_dict_or_one_message(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json") as error:
        read_json(tmp_path / "config.json")
    assert "\n" not in str(error.value)


def test_json_of_any_size_is_not_read(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(UserError, match="larger than"):
        read_json(tmp_path / "config.json")
