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
    """Skip what needs a GPU where there is none; start with what takes longest, so that no worker waits for it."""
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
    items.sort(key=lambda item: item.path.parent.name != "slurm")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Share out whole files, for their fixtures are made once, and the Slurm tests together: there is one cluster."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "slurm" if nodeid.startswith("tests/slurm/") else super()._split_scope(nodeid)

    return Scheduler(config, log)
