"""Checkpoints and an export that no test changes."""

import pytest

from phantom_mega.release.export import Options, open_source, write_export
from tests.release.helpers import library_folder, write_checkpoint


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    """A checkpoint with averaged weights."""
    return write_checkpoint(tmp_path_factory.mktemp("pristine") / "iter_0000003")


@pytest.fixture(scope="session")
def exported(pristine, tmp_path_factory):
    """Its export, without a card."""
    target = tmp_path_factory.mktemp("exported") / "mine"
    return write_export(open_source(pristine, Options()), target, Options(), lambda folder, index: None)


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """torch, diffusers, transformers and open_clip with what they require, and nothing else."""
    return library_folder(tmp_path_factory.mktemp("site") / "packages")
