"""Megatron's ranks without processes: every collective returns tensors of the right sizes at once."""

import contextlib
import functools

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

import phantom_mega.core  # noqa: F401 (before megatron)
from phantom_mega.config import ParallelConfig
from phantom_mega.core.parallel_config import initialize_distributed

WORLD_SIZE = 8


@pytest.fixture
def fake_world(monkeypatch):
    """A function that is a context: rank 0 of the first stage, or of another, of a layout on 8 ranks."""
    from megatron.core import parallel_state

    monkeypatch.setenv("WORLD_SIZE", str(WORLD_SIZE))
    create = parallel_state.initialize_model_parallel
    # Real gloo groups next to the fake ones would wait for the other ranks.
    monkeypatch.setattr(
        parallel_state, "initialize_model_parallel", functools.partial(create, create_gloo_process_groups=False)
    )
    dist.init_process_group("fake", rank=0, world_size=WORLD_SIZE, store=FakeStore())

    @contextlib.contextmanager
    def layout(parallel: ParallelConfig, stage: int = 0):
        initialize_distributed(parallel)
        parallel_state.set_pipeline_model_parallel_rank(stage)
        try:
            yield
        finally:
            parallel_state.destroy_model_parallel()

    yield layout
    dist.destroy_process_group()


@pytest.fixture
def one_rank():
    """A world of one process over gloo, closed after the test: what makes its own groups needs real ones."""
    from megatron.core import parallel_state

    initialize_distributed(ParallelConfig())
    yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
