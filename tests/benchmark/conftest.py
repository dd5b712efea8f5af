"""The one-rank world of the parallel tests, the small size, and a model's random weights."""

import pytest
import torch

from phantom_mega.benchmark.workload import SMALL, random_weights
from phantom_mega.config import model_arguments
from phantom_mega.hf import PhantomTransformer3DModel
from tests.parallel.conftest import single_rank  # noqa: F401


@pytest.fixture(scope="session")
def plain():
    """The plain model of the small size in fp32 with random weights."""
    model = PhantomTransformer3DModel(**model_arguments(SMALL.model))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(random_weights(shapes, torch.device("cpu"), torch.float32))
    return model


@pytest.fixture(scope="session")
def weights(plain):
    """Its state dict."""
    return plain.state_dict()
