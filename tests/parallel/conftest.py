"""Process groups of one rank, for megatron modules built in the test process itself."""

import pytest
import torch

from phantom_mega.config import ParallelConfig
from phantom_mega.core.parallel_config import initialize_distributed


@pytest.fixture(scope="module")
def single_rank():
    """A world of one process, closed after the module."""
    from megatron.core import parallel_state

    initialize_distributed(ParallelConfig())
    yield
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
