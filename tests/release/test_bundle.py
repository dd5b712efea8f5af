"""Code of a release: one file that does what the modules do, or a refusal that names the clash."""

import subprocess
import sys
import textwrap

import pytest
import torch

from phantom_mega.errors import UserError
from phantom_mega.release.bundle import bundle
from phantom_mega.release.export import CODE
from tests.hf.test_transformer_phantom import SHAPES, features, run, small_model
from tests.training.conftest import REPOSITORY

MODULES = [*CODE.values(), "phantom_mega.conditioning.linear_vae", "phantom_mega.hf.vision_tower"]
_CLEAN = """
import importlib.abc, importlib.util, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("phantom_mega", "megatron"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
spec = importlib.util.spec_from_file_location("bundled", sys.argv[1])
bundled = importlib.util.module_from_spec(spec)
sys.modules["bundled"] = bundled
spec.loader.exec_module(bundled)
"""


def in_a_clean_process(text, folder, code="", *arguments):
    """Import a bundle where this project cannot be imported, then run code that knows it as `bundled`."""
    (folder / "code.py").write_text(text)
    command = [sys.executable, "-I", "-c", _CLEAN + textwrap.dedent(code), folder / "code.py", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", MODULES)
def test_a_bundle_imports_without_this_project(module, tmp_path):
    text = bundle(module)
    assert "import phantom_mega" not in text and "from phantom_mega" not in text
    in_a_clean_process(text, tmp_path)


def test_the_bundled_model_computes_the_same_bits(tmp_path):
    model = small_model()
    torch.save({"state": model.state_dict(), "features": features(SHAPES)}, tmp_path / "given.pt")
    code = """
        import dataclasses, torch
        given = torch.load(sys.argv[2], weights_only=True)
        model = bundled.PhantomTransformer3DModel(**eval(sys.argv[3])).double()
        model.load_state_dict(given["state"], strict=True)
        shapes = [bundled.SampleShape(*numbers) for numbers in eval(sys.argv[4])]
        parts = [torch.cat(part) for part in zip(*given["features"])]
        torch.save(model(*parts, model.layout(shapes)).sample.detach(), sys.argv[5])
    """
    arguments = {key: value for key, value in dict(model.config).items() if not key.startswith("_")}
    shapes = [[s.frames, s.height, s.width, s.references, s.text_tokens, s.clip_tokens] for s in SHAPES]
    text = bundle(CODE["transformer/transformer_phantom.py"])
    in_a_clean_process(text, tmp_path, code, tmp_path / "given.pt", arguments, shapes, tmp_path / "out.pt")
    expected = run(model, SHAPES, features(SHAPES))
    assert torch.equal(torch.load(tmp_path / "out.pt"), expected)


@pytest.mark.parametrize("backend", ["merged", "triton"])
def test_a_bundle_refuses_a_backend_that_it_does_not_carry_and_names_one_that_it_does(backend, tmp_path):
    code = """
        try:
            bundled.window_attention(None, None, None, None, sys.argv[2])
        except bundled.UserError as error:
            print(error)
    """
    said = in_a_clean_process(bundle("phantom_mega.attention"), tmp_path, code, backend)
    assert said.startswith(f"attention_backend={backend} comes with phantom_mega") and "use sdpa or varlen" in said


def test_a_reader_recognises_the_sources():
    text = bundle("phantom_mega.hf.transformer_phantom")
    heads = [line.split()[2] for line in text.splitlines() if line.startswith("# --- ")]
    assert heads[-1] == "hf/transformer_phantom.py" and heads.index("windows.py") < heads.index("attention.py")
    source = (REPOSITORY / "phantom_mega/windows.py").read_text()
    body = source[source.index("@dataclass") :].strip()
    assert body in text
    assert text.count("from __future__") == 1 and text.startswith('"""The Phantom MMDiT in plain PyTorch')


def write_package(folder, **modules):
    """A package `toy` of modules; `__` in a name stands for a folder."""
    root = folder / "toy"
    for name, text in modules.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return root


def test_each_module_comes_once_after_what_it_needs_and_blocks_for_type_checkers_go(tmp_path):
    root = write_package(
        tmp_path,
        a='"""A."""\nfrom toy.b import two\nfrom toy.sub.c import one\ndef three() -> "int": return one() + two()\n',
        b='"""B."""\nfrom __future__ import annotations\nfrom toy.sub.c import one\ndef two(): return one() + one()\n',
        sub__c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.d import never\none = lambda: 1\n",
    )
    text = bundle("toy.a", "toy", root)
    assert text.count("one = lambda") == 1 and "never" not in text and "# B." in text
    namespace = {}
    exec(text, namespace)
    assert namespace["three"]() == 3


@pytest.mark.parametrize(("modules", "message"), [
    ({"a": "from toy.b import x\ny = 1", "b": "x = 1\ny = 2"}, r"y is defined in toy.b .* and defined in toy.a"),
    ({"a": "from toy.b import x\nimport os.path as p", "b": "x = 1\nimport json as p"}, "p is imported from json"),
    ({"a": "from toy.b import x\nimport json", "b": "x = json = 1"}, "json is defined in toy.b .* imported from json"),
    ({"a": "from toy.b import x as z", "b": "x = 1"}, "toy.a, line 1: `x` must be imported by its own name"),
    ({"a": "from toy.b import *", "b": "x = 1"}, r"`\*` must be imported by its own name"),
    ({"a": "import toy.b", "b": "x = 1"}, "toy.a, line 1: write `from toy.module import name`"),
    ({"a": "from . import b", "b": "x = 1"}, "toy.a, line 1: write `from toy.module import name`"),
    ({"a": "from toy.sub import b", "sub__b": "x = 1", "sub____init__": ""}, "`b` is a module; import the names in it"),
    ({"a": "def f():\n    from toy.b import x", "b": "x = 1"}, "toy.a, line 2: an import of toy inside of a function"),
    ({"a": "from toy.b import x", "b": "from toy.a import y\nx = 1"}, "imports itself in a circle"),
    ({"a": "from toy.gone import x"}, "there is no module toy.gone"),
    ({"a": "from toy.b import x; y = 1", "b": "x = 1"}, "toy.a, line 1: '; y = 1' would be lost"),
    ({"a": "from toy.b import x", "b": "x = 1\ndef open():\n    pass"}, "open is defined .* hide Python's own"),
])  # fmt: skip
def test_what_one_namespace_would_change_is_refused(tmp_path, modules, message):
    with pytest.raises(UserError, match=message):
        bundle("toy.a", "toy", write_package(tmp_path, **modules))
