"""Settings of the whole suite."""

import os

import pytest
import torch
from hypothesis import settings

# Shared machines are slow at times: a deadline per example would fail for no fault of the code.
settings.register_profile("suite", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("suite")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
