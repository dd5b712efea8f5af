"""A run that trained a little, and its export."""

import pytest

from phantom_mega.release.export import Options, export, open_checkpoint
from tests.generation.conftest import images, run  # noqa: F401 (fixtures)


@pytest.fixture(scope="session")
def release(run, tmp_path_factory):  # noqa: F811
    """(export's folder, checkpoint)."""
    checkpoint, folder = open_checkpoint(run), tmp_path_factory.mktemp("release")
    export(checkpoint, folder, Options(license="apache-2.0", command="python tools/export_hf.py run export"))
    return folder, checkpoint
