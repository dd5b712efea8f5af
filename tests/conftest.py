"""Settings of the whole suite."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).parent
# Shared machines are slow at times: a deadline per example would fail for no fault of the code.
settings.register_profile("suite", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("suite")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none; share files, not single tests, out to pytest-xdist's workers."""
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
        if "xdist_group" not in item.keywords:
            # Fixtures of a module are made once; there is one Slurm cluster.
            slurm = item.path.parent.name == "slurm"
            item.add_marker(pytest.mark.xdist_group("slurm" if slurm else str(item.path.relative_to(ROOT))))
    # The longest first: the other worker has enough to do meanwhile.
    items.sort(key=lambda item: item.path.parent.name != "slurm")
