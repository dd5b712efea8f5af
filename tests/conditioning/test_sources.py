"""Names of encoders: `package:` leads into an installed package without importing it, all else is left alone."""

import sys

import pytest

from phantom_mega.conditioning.sources import explain_missing, resolve_source
from phantom_mega.errors import UserError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package `broken_encoder` with a folder `model`; importing it would raise."""
    (tmp_path / "broken_encoder" / "model").mkdir(parents=True)
    (tmp_path / "broken_encoder" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "broken_encoder"


@pytest.mark.parametrize("name", ["linear", "Qwen/Qwen2.5-3B-Instruct", "/data/vae", "./vae", "hf-hub:timm/ViT", ""])
def test_names_that_are_no_package_are_left_alone(name):
    assert resolve_source(name) == name


def test_a_folder_inside_a_package_is_found_without_importing_the_package(package):
    assert resolve_source("package:broken_encoder/model") == str(package / "model")
    assert resolve_source("package:broken_encoder") == str(package)
    assert "broken_encoder" not in sys.modules


@pytest.mark.parametrize(
    "name, message",
    [
        ("package:no_such_encoder/model", "no_such_encoder is not installed; try `pip install no-such-encoder`"),
        ("package:broken_encoder/weights", "the package broken_encoder has no folder 'weights'"),
        ("package:broken_encoder/__init__.py", "has no folder '__init__.py'"),
        ("package:broken_module/model", "broken_module is not installed"),  # a single file holds no folders
        ("package:no.such.encoder/model", "'no.such.encoder' is no top-level package"),
        ("package:/model", "is no top-level package; write package:NAME/PATH"),
        ("package:", "is no top-level package; write package:NAME/PATH"),
        ("package:./model", "is no top-level package; write package:NAME/PATH"),
    ],
)
def test_what_is_not_there_is_one_message_with_the_name(package, name, message):
    with pytest.raises(UserError) as raised:
        resolve_source(name)
    assert str(raised.value).startswith(f"{name}: ") and message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError("not found\nand advice"), "not found"),
        (ValueError(), "ValueError"),
        (OSError("\n"), "OSError"),
    ],
)
def test_a_failure_to_load_is_one_line_that_says_what_and_why(error, reason):
    made = explain_missing("the VAE", "some/name", error)
    assert isinstance(made, UserError)
    assert str(made).startswith(f"the VAE 'some/name' could not be loaded: {reason} (")
    assert "\n" not in str(made)
