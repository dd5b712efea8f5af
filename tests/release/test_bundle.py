"""A bundle means what its modules mean, needs libraries alone, and is refused where flattening would change it."""

import ast
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from phantom_mega.errors import UserError
from phantom_mega.geometry import SampleShape
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.release.bundle import SOURCE_ROOT, bundle
from tests.release.helpers import run_alone

MODULES = {
    "transformer_phantom": "phantom_mega.hf.transformer_phantom",
    "pipeline": "phantom_mega.hf.pipeline_phantom",
    "linear_vae": "phantom_mega.conditioning.linear_vae",
    "vision_tower": "phantom_mega.hf.vision_tower",
}
SIZES = dict(num_layers=3, hidden_size=32, num_attention_heads=4, ffn_hidden_size=64, rope_axes_dim=[4, 2, 2])


@pytest.mark.parametrize("module", MODULES.values())
def test_the_real_modules_flatten_to_one_file_that_imports_libraries_alone(module):
    tree = ast.parse(bundle(module, "A test."))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported and not any(name is None or name.startswith("phantom_mega") for name in imported)


@pytest.mark.parametrize("module", MODULES.values())
def test_a_reader_finds_every_line_of_the_sources_but_imports_in_its_section(module):
    parts = bundle(module, "A test.").split("# --- phantom_mega/")[1:]
    assert Path(*module.split(".")).name == Path(parts[-1].split(" ")[0]).stem
    for part in parts:
        path, _, body = part.partition(" -")
        lines = iter(body.splitlines())
        for line in (SOURCE_ROOT / "phantom_mega" / path).read_text().splitlines():
            if line.strip() and not line.startswith(("from phantom_mega", "from __future__", "    from phantom_mega")):
                if line.startswith("if TYPE_CHECKING"):
                    continue
                assert line in lines, f"{path}: {line}"  # in this order: the iterator is used up to the line


def test_the_bundled_transformer_computes_the_same_bits_in_a_process_without_the_project(libraries, tmp_path):
    for name, module in MODULES.items():
        (tmp_path / f"{name}.py").write_text(bundle(module, "A test."))
    torch.manual_seed(0)
    model = PhantomTransformer3DModel(**SIZES, window_frames=3).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param) * 0.1)
    shapes = [SampleShape(5, 2, 3, 2, 4, 3), SampleShape(1, 2, 2, 0, 3, 3)]
    sizes = (sum(s.visual_tokens for s in shapes), 64), (7, 384), (6, 64)
    visual, text, clip = (torch.randn(size) for size in sizes)
    save_file(model.state_dict() | {"in.visual": visual, "in.text": text, "in.clip": clip}, tmp_path / "state")
    with torch.no_grad():
        wanted = model(visual, torch.tensor([0.2, 0.9]), text, clip, model.layout(shapes)).sample
    code = f"""
sys.path.append({str(tmp_path)!r})
import importlib, importlib.util, torch
assert importlib.util.find_spec("phantom_mega") is None
from safetensors.torch import load_file, save_file
for name in {list(MODULES)!r}:
    importlib.import_module(name)
from transformer_phantom import PhantomTransformer3DModel, SampleShape
state = load_file("state")
given = [state.pop("in." + name) for name in ("visual", "text", "clip")]
model = PhantomTransformer3DModel(**{SIZES!r}, window_frames=3).eval()
model.load_state_dict(state, strict=True)
layout = model.layout([SampleShape(5, 2, 3, 2, 4, 3), SampleShape(1, 2, 2, 0, 3, 3)])
with torch.no_grad():
    out = model(given[0], torch.tensor([0.2, 0.9]), given[1], given[2], layout).sample
save_file({{"out": out}}, "out")
"""
    run_alone(libraries, code, tmp_path)
    assert torch.equal(load_file(tmp_path / "out")["out"], wanted) and wanted.abs().max() > 0.01


def flatten(folder, **files):
    """The bundle of `phantom_mega.main` among files given by module name."""
    package = folder / "phantom_mega"
    package.mkdir()
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    return bundle("phantom_mega.main", "A test.", root=folder)


def test_modules_stand_once_and_before_what_uses_them(tmp_path):
    text = flatten(
        tmp_path,
        a='"""A."""\n\nfrom __future__ import annotations\n\nimport math\n\nTAU = 2 * math.pi\n',
        b="import math\nfrom phantom_mega.a import TAU\n\nHALF = TAU / 2 + math.pi\n",
        main="from typing import TYPE_CHECKING\n\nfrom phantom_mega.a import (\n    TAU,\n)\n"
        "from phantom_mega.b import HALF\n\nif TYPE_CHECKING:\n    from phantom_mega.c import C\n\n"
        "RESULT = TAU + HALF  # kept\n",
    )
    names = {}
    exec(compile(text, "bundle", "exec"), names)
    assert names["RESULT"] == pytest.approx(4 * 3.14159265)
    order = [line.split()[2] for line in text.splitlines() if line.startswith("# --- ")]
    assert order == [f"phantom_mega/{name}.py" for name in ("a", "b", "main")]
    assert text.count("from __future__") == 1 and "# kept" in text and "phantom_mega.c" not in text


@pytest.mark.parametrize(
    "main, message",
    [
        ("from phantom_mega.a import X\n\nY = 1\n\n\ndef g():\n    pass\n", r"main.py, line 6: 'g' .*a.py, line 6"),
        ("from phantom_mega.a import X\n\nfor Z in ():\n    pass\n", r"line 3: 'Z' means something else in .*line 3"),
        ("from json import sqrt\n\nfrom phantom_mega.a import X\n", "'sqrt' means something else in"),
        ("import numpy as math\n\nfrom phantom_mega.a import X\n", "'math' means something else in"),
        ("from phantom_mega.a import X as Q\n", "line 1: `X as Q` cannot be flattened; rename one X"),
        ("import phantom_mega.a\n", "`import phantom_mega.a` cannot .*; use `from phantom_mega.a import NAME`"),
        ("import phantom_mega.a as a\n", "`import phantom_mega.a` cannot be flattened"),
        ("def f():\n    from phantom_mega.a import X\n", "line 2: an import of phantom_mega.a below the top level"),
        ("if True:\n    from phantom_mega.a import X\n", "line 2: an import of phantom_mega.a below the top level"),
        ("from phantom_mega import a\n", "there is no module phantom_mega in"),
        ("from phantom_mega.a import nothing\n", "phantom_mega.a defines no 'nothing'; import names, not modules"),
        ("from . import a\n", "line 1: a relative import cannot be flattened"),
        ("from math import *\n", r"`import \*` cannot be flattened"),
        ("from phantom_mega.a import X\n\ndef open():\n    pass\n", "'open' would hide Python's own"),
        ("from phantom_mega.main import X\n", "phantom_mega.main imports itself"),
        ("from phantom_mega.loop import X\n", "phantom_mega.main imports itself by way of phantom_mega.loop"),
        ("from phantom_mega.a import X; Y = 2\n", "line 1: another statement on this line"),
    ],
)  # fmt: skip
def test_what_flattening_would_change_is_refused_by_line(tmp_path, main, message):
    a = "import math\nfrom math import sqrt\nX = Z = 1\n\n\ndef g():\n    return math.pi\n"
    with pytest.raises(UserError, match=message):
        flatten(tmp_path, a=a, main=main, loop="from phantom_mega.main import X\n")
