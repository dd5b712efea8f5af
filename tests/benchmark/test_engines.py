"""A model that waited in host memory goes on as if it had not."""

import pytest
import torch

from phantom_mega.benchmark import engines
from phantom_mega.benchmark.timing import Clock
from phantom_mega.benchmark.workload import SMALL, layout_of, microbatch
from phantom_mega.config import ParallelConfig, PrecisionConfig

pytestmark = pytest.mark.usefixtures("single_rank")
CPU = torch.device("cpu")


def moments(engine) -> list[torch.Tensor]:
    return [v for p in engine.optimizer.chained_optimizers for s in p.optimizer.state.values() for v in s.values()]


def steps(weights, monkeypatch, bf16: bool, parked: bool) -> list[torch.Tensor]:
    """Weights after two steps, with a wait between them."""
    # Small pieces: tensors lie across several.
    monkeypatch.setattr(engines, "_PIECE", 1 << 12)
    engine = engines.ours(SMALL.model, ParallelConfig(), PrecisionConfig(bf16=bf16), weights)
    shape = SMALL.shape(17, 1)
    data = microbatch(SMALL.model, shape, layout_of(SMALL.model, shape, SMALL.windows, CPU))
    for number in range(2):
        if number and parked:
            for _ in range(2):
                engine.park()
                held = [*engine.chunk.parameters(), *(b.grad_data for b in engine.wrapped[0].buffers)]
                held += moments(engine)
                assert sum(tensor.untyped_storage().nbytes() for tensor in held) == 0
                engine.unpark()
        marks = engine.step(data, Clock(CPU))
        assert marks == sorted(marks) and len(marks) == 3
    return [tensor.detach().clone() for tensor in (*engine.chunk.parameters(), *moments(engine))]


@pytest.mark.parametrize("bf16", [False, True])
def test_a_parked_model_takes_no_memory_and_its_next_step_is_the_same(weights, monkeypatch, bf16):
    straight, waited = (steps(weights, monkeypatch, bf16, parked) for parked in (False, True))
    assert len(straight) == len(waited) > 100
    assert all(torch.equal(a, b) for a, b in zip(straight, waited))


def test_quantized_weights_do_not_wait_on_the_device_with_a_parked_model(weights):
    engine = engines.ours(SMALL.model, ParallelConfig(), PrecisionConfig(), weights)
    linear = engine.chunk.blocks.get_submodule("0").visual.linear_qkv
    linear._fp8_workspaces = {"weight": torch.zeros(3)}  # where Transformer Engine's linears keep them
    engine.park()
    assert linear._fp8_workspaces == {}


def test_fp8_is_asked_for_with_its_recipe_or_the_configurations():
    precision = engines.fp8_precision("delayed")
    assert (precision.bf16, precision.fp8, precision.fp8_recipe) == (True, "hybrid", "delayed")
    assert engines.fp8_precision(None).fp8_recipe == PrecisionConfig().fp8_recipe
