"""FP8 on a GPU: every recipe against BF16, with recompute and each attention, and a run that stops and goes on."""

import pytest
import torch

from phantom_mega.config import OptimizerConfig, ParallelConfig, PrecisionConfig, RunConfig, TrainConfig
from phantom_mega.core import fused_libraries
from phantom_mega.core.build import build_model, wrap_ddp
from phantom_mega.core.convert import core_to_hf, load_hf
from phantom_mega.core.schedule import forward_backward
from phantom_mega.precision import FP8_RECIPES
from phantom_mega.training import checkpoint
from phantom_mega.training import optimizer as optim
from tests.core.test_gpu import MODEL, batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("single_rank"),
    pytest.mark.skipif(
        torch.cuda.is_available() and fused_libraries.find().transformer_engine is None,
        reason="needs Transformer Engine (extra `te`)",
    ),
]
BF16 = PrecisionConfig(bf16=True)


def fp8(recipe: str, **fields) -> PrecisionConfig:
    return PrecisionConfig(bf16=True, fp8="hybrid", fp8_recipe=recipe, **fields)


class Training:
    """A model with random weights, none of them zero, and its optimizer."""

    def __init__(self, precision: PrecisionConfig, **parallel):
        self.run = RunConfig(
            model=MODEL,
            parallel=ParallelConfig(transformer_impl="transformer_engine", **parallel),
            precision=precision,
            optimizer=OptimizerConfig(lr=1e-3),
            train=TrainConfig(ema_decay=0.9),
        )
        self.chunks = build_model(MODEL, self.run.parallel, precision, seed=5)
        generator = torch.Generator().manual_seed(1)
        weights = core_to_hf(self.chunks)
        for tensor in weights.values():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
        load_hf(self.chunks, weights)
        self.wrapped = wrap_ddp(self.chunks, self.chunks[0].config, self.run.parallel)
        self.optimizer = optim.build_optimizer(self.wrapped, self.run)
        self.scheduler = optim.build_scheduler(self.optimizer, self.run)

    def backward(self) -> float:
        self.wrapped[0].zero_grad_buffer()
        self.optimizer.zero_grad()
        return forward_backward(self.wrapped, batch(), self.chunks[0].config).loss

    def step(self, number: int) -> float:
        loss = self.backward()
        self.scheduler.step(1)
        optim.apply_update(self.optimizer, optim.gradient_norm(self.optimizer), 1.0)
        optim.update_ema(self.optimizer, 0.9, number)
        return loss

    def gradient(self) -> torch.Tensor:
        parts = core_to_hf(self.wrapped, lambda param: param.main_grad)
        return torch.cat([parts[name].flatten().float() for name in sorted(parts)])

    def state(self) -> list[torch.Tensor]:
        """Moments and averages, and the scales and histories of delayed scaling."""
        part = self.optimizer.chained_optimizers[0]
        found = [value for param in optim._main_params(part) for value in part.optimizer.state[param].values()]
        linears = [module for module in self.chunks[0].modules() if "scaling_fwd" in getattr(module, "fp8_meta", {})]
        for linear in linears:
            states = [linear.fp8_meta[way] for way in ("scaling_fwd", "scaling_bwd")]
            delayed = [state for state in states if hasattr(state, "amax_history")]
            found += [tensor for state in delayed for tensor in (state.scale, state.amax_history)]
        return found


def measured(precision: PrecisionConfig, **parallel) -> tuple[float, torch.Tensor]:
    """Loss and gradient of a second pass: the first one shows delayed scaling its maxima."""
    training = Training(precision, **parallel)
    training.backward()
    return training.backward(), training.gradient()


@pytest.mark.parametrize("backend", ["varlen", "te"])
@pytest.mark.parametrize("recipe", FP8_RECIPES)
def test_every_recipe_agrees_with_bf16(recipe, backend):
    loss, gradient = measured(BF16, attention_backend=backend)
    other_loss, other = measured(fp8(recipe), attention_backend=backend)
    assert other_loss == pytest.approx(loss, rel=0.03)
    error = ((other - gradient).norm() / gradient.norm()).item()
    # Not FP8 at all would be nearer.
    assert 0.003 < error < 0.15 and other.isfinite().all()


@pytest.mark.parametrize("recipe", FP8_RECIPES)
def test_full_recompute_changes_nothing_of_a_recipe(recipe):
    loss, gradient = measured(fp8(recipe))
    other_loss, other = measured(fp8(recipe), recompute_granularity="full")
    assert other_loss == pytest.approx(loss, rel=1e-3)
    assert (other - gradient).norm() < 0.02 * gradient.norm()


def test_first_and_last_layers_in_bf16_are_nearer_to_bf16():
    _, truth = measured(BF16)
    _, whole = measured(fp8("tensorwise"))
    half = dict(first_last_layers_bf16=True, num_layers_at_start_in_bf16=2, num_layers_at_end_in_bf16=2)
    _, none_left = measured(fp8("tensorwise", **half))
    assert (none_left - truth).norm() < 0.3 * (whole - truth).norm()


def test_weights_are_quantized_anew_after_every_step():
    training = Training(fp8("tensorwise"))
    assert len({training.step(number + 1) for number in range(3)}) == 3
    training.backward()
    fresh = Training(fp8("tensorwise"))
    load_hf(fresh.chunks, core_to_hf(training.chunks))
    assert fresh.backward() == pytest.approx(training.backward(), rel=1e-3)


def test_the_fused_optimizer_serves_and_gradients_are_added_by_the_gemm():
    training = Training(BF16)
    inner = training.optimizer.chained_optimizers[0].optimizer
    assert (type(inner).__name__, type(inner).__module__.split(".")[0]) == ("FusedAdam", "transformer_engine")
    assert training.chunks[0].config.gradient_accumulation_fusion
    training.backward()
    once = training.gradient().clone()
    config = training.chunks[0].config
    # Two microbatches: a GEMM that overwrote its gradient would show the last alone.
    training.wrapped[0].zero_grad_buffer()
    forward_backward(training.wrapped, batch() * 2, config)
    assert (training.gradient() - once).norm() < 0.01 * once.norm()


@pytest.mark.parametrize("recipe", FP8_RECIPES)
def test_a_run_that_is_saved_and_loaded_has_every_moment_average_and_scale_bit_equal(tmp_path, recipe):
    training = Training(fp8(recipe, fp8_amax_history_len=4))
    for number in range(2):
        training.step(number + 1)
    saver = checkpoint.CheckpointSaver(tmp_path, training.run)
    saver.save(2, training.chunks, training.optimizer, training.scheduler, {"consumed_samples": 2})
    other = Training(fp8(recipe, fp8_amax_history_len=4))
    path = checkpoint.choose_checkpoint(tmp_path, hashes=True, own=True)
    checkpoint.load_checkpoint(path, other.chunks, other.optimizer, other.scheduler, other.run)
    saved, loaded = training.state(), other.state()
    # Scales exist after the first pass, in a loaded run before it, of delayed scaling alone.
    assert len(loaded) == len(saved) and all(map(torch.equal, saved, loaded))
    assert other.step(3) == pytest.approx(training.step(3), rel=1e-3)
