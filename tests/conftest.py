"""Settings of the whole suite."""

import os

import pytest
import torch
from hypothesis import settings

# Shared machines are slow at times: a deadline per example would fail for no fault of the code.
settings.register_profile("suite", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("suite")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(config, items):
    """Skip what needs a GPU where there is none, and what takes many minutes; start with what takes longest."""
    for item in items:
        if "exhaustive" in item.keywords and "exhaustive" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="takes many minutes: bash launchers/test.sh -m exhaustive"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
    # So that no worker waits for it in the end.
    items.sort(key=lambda item: item.path.parent.name != "slurm")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Share out whole files, for their fixtures are made once, and the Slurm tests together: there is one cluster."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "slurm" if nodeid.startswith("tests/slurm/") else super()._split_scope(nodeid)

    return Scheduler(config, log)
