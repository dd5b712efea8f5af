"""A run that trained a little, and reference images on disk."""

import numpy as np
import pytest
from PIL import Image

from tests.media import write_data_set
from tests.training.conftest import train


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of a short training run; its weights differ from their average."""
    data = write_data_set(tmp_path_factory.mktemp("data"))
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(data, folder, "train.train_iters=4", "train.ema_decay=0.5")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Two reference images as files."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, size in (("a.png", (40, 30)), ("b.jpg", (24, 64))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder
