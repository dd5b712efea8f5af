"""The held-out loss: the same samples, noise and timesteps each time, right in value; nothing of the training moves."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from phantom_mega.config_io import load_run_config
from phantom_mega.core.build import build_model, wrap_ddp
from phantom_mega.core.convert import core_to_hf, load_hf
from phantom_mega.core.parallel_config import initialize_distributed
from phantom_mega.data.plan import PackPlan
from phantom_mega.errors import UserError
from phantom_mega.flow import flow_loss
from phantom_mega.training.held_out import FixedPacks, HeldOutSet, held_out_draws, untouched
from phantom_mega.training.source import BatchSource
from tests.training.conftest import BASE, damage_first_clip

CPU = torch.device("cpu")
TIMESTEPS = "train.eval_timesteps=[0.1,0.5,0.9]"


@pytest.fixture(scope="module", autouse=True)
def single_rank():
    from megatron.core import parallel_state

    initialize_distributed(load_run_config("tiny_stage1").parallel)
    yield
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def config_of(data, valid, *overrides):
    words = [word for word in BASE if word not in ("--config", "tiny_stage1")]
    paths = [f"data.index_path=[{data}]", f"data.valid_index_path=[{valid}]"]
    return load_run_config("tiny_stage1", [*words, *paths, "train.eval_iters=10", TIMESTEPS, *overrides])


@pytest.fixture(scope="module")
def held_out(data_set, valid_set):
    config = config_of(data_set, valid_set)
    held_out = HeldOutSet(config, BatchSource(config, CPU))
    held_out.encode(lambda what: None)
    return held_out


@pytest.fixture(scope="module")
def model(held_out):
    """(wrapped chunks, their config), all weights random and none zero."""
    config = held_out.config
    chunks = build_model(config.model, config.parallel, config.precision, seed=1)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in core_to_hf(chunks).items()
    }
    load_hf(chunks, weights)
    return wrap_ddp(chunks, chunks[0].config, config.parallel), chunks[0].config, weights


def loss_of(held_out, model):
    return held_out.loss(model[0], model[1], lambda what: True)


def plain_loss(held_out, weights, timestep):
    """The same by the plain model, sample after sample's own words: noise, mix, error over video tokens."""
    from phantom_mega.config import model_arguments
    from phantom_mega.hf import PhantomTransformer3DModel

    plain = PhantomTransformer3DModel(**model_arguments(held_out.config.model))
    plain.load_state_dict(weights)
    total = tokens = 0.0
    with torch.no_grad():
        for inputs, target, weight in held_out.microbatches(timestep):
            assert set(inputs.timestep.tolist()) == {np.float32(timestep)}
            velocity = plain(inputs.visual, inputs.timestep, inputs.text, inputs.clip, inputs.layout).sample
            total += flow_loss(velocity, target, weight).sum().item()
            tokens += weight.sum().item()
    return total / tokens, tokens


def test_it_is_the_plain_models_error_at_every_timestep_and_their_mean(held_out, model):
    found = loss_of(held_out, model)
    assert list(found.loss_per_timestep) == held_out.config.train.eval_timesteps
    for timestep, loss in found.loss_per_timestep.items():
        expected, tokens = plain_loss(held_out, model[2], timestep)
        assert loss == pytest.approx(expected, rel=1e-5) and found.video_tokens == tokens
    assert found.loss == pytest.approx(np.mean(list(found.loss_per_timestep.values())))
    assert len(set(found.loss_per_timestep.values())) == 3


def test_it_is_the_same_each_time_whatever_the_runs_seed_and_dropout(data_set, valid_set, held_out, model):
    config = config_of(data_set, valid_set, "train.seed=7", "flow.text_dropout=1.0", "flow.image_dropout=1.0")
    other = HeldOutSet(config, BatchSource(config, CPU))
    other.encode(lambda what: None)
    assert loss_of(held_out, model) == loss_of(held_out, model) == loss_of(other, model)


def test_noise_is_the_samples_own_and_one_for_all_timesteps(held_out):
    first, second = held_out.packs.locate(0)[1][:2]
    shape = (4, 2, 6, 8)
    early, late = (held_out_draws(first, shape, timestep) for timestep in (0.1, 0.9))
    assert torch.equal(early.noise, late.noise) and (early.timestep, late.timestep) == (0.1, 0.9)
    assert not torch.equal(early.noise, held_out_draws(second, shape, 0.1).noise)
    again = dataclasses.replace(first, epoch=5)
    assert torch.equal(early.noise, held_out_draws(again, shape, 0.1).noise)


def test_no_condition_is_dropped(held_out):
    for pack, (inputs, _, _) in zip(held_out.packs, held_out.microbatches(0.5), strict=True):
        assert len(inputs.text) == sum(sample.text_tokens for sample in pack)
        assert inputs.clip.abs().sum(1).min() > 0 if len(inputs.clip) else True
        reference = ~inputs.layout.video_mask
        reference[sum(sample.shape.visual_tokens for sample in pack) :] = False  # padding
        assert (inputs.visual[reference].abs().sum(1) > 0).all()
    assert sum(len(sample.references) for pack in held_out.packs for sample in pack) > 1


def test_nothing_of_the_training_moves(held_out, model):
    wrapped = model[0]
    for chunk in wrapped:
        chunk.zero_grad_buffer()
        for buffer in chunk.buffers:
            buffer.grad_data.fill_(3.0)
    modes = [module.training for chunk in wrapped for module in chunk.modules()]
    weights = [param.clone() for chunk in wrapped for param in chunk.parameters()]
    state = torch.random.get_rng_state()
    loss_of(held_out, model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all((buffer.grad_data == 3.0).all() for chunk in wrapped for buffer in chunk.buffers)
    assert [module.training for chunk in wrapped for module in chunk.modules()] == modes and all(modes)
    assert all(map(torch.equal, weights, (param for chunk in wrapped for param in chunk.parameters())))
    assert all(param.grad is None for chunk in wrapped for param in chunk.parameters())


def test_inside_modules_evaluate_without_gradients_and_without_fp8(model):
    wrapped, core_config, _ = model
    core_config.fp8 = "hybrid"
    try:
        with pytest.raises(ZeroDivisionError), untouched(wrapped, core_config):
            assert not torch.is_grad_enabled() and core_config.fp8 is None
            assert not any(module.training for chunk in wrapped for module in chunk.modules())
            configs = [getattr(module, "config", None) for chunk in wrapped for module in chunk.modules()]
            assert not any(getattr(config, "fp8", None) for config in configs), "a module has its own configuration"
            raise ZeroDivisionError
        assert core_config.fp8 == "hybrid" and wrapped[0].training and torch.is_grad_enabled()
    finally:
        core_config.fp8 = None


def test_told_to_stop_it_gives_no_loss_and_goes_no_further(held_out, model):
    told = []

    def proceed(what):
        told.append(what)
        return len(told) < 3

    assert held_out.loss(model[0], model[1], proceed) is None
    assert len(told) == 3 and "timestep 0.9" in told[2]


def test_unreadable_samples_are_named_and_count_nowhere(data_set, valid_set, held_out, model, tmp_path, capsys):
    broken = damage_first_clip(valid_set, tmp_path / "broken")
    config = config_of(data_set, broken)
    other = HeldOutSet(config, BatchSource(config, CPU))
    other.encode(lambda what: None)
    assert "bad held-out sample, skipped: " in capsys.readouterr().out and other.bad_samples == 1
    whole, rest = loss_of(held_out, model), loss_of(other, model)
    assert rest.bad_samples == 1 and whole.bad_samples == 0 and 0 < rest.video_tokens < whole.video_tokens


def test_a_set_of_unreadable_samples_alone_is_refused(data_set, valid_set, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(valid_set, broken)
    for shard in broken.glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    config = config_of(data_set, broken)
    with pytest.raises(UserError, match="none of its samples can be read"):
        HeldOutSet(config, BatchSource(config, CPU)).encode(lambda what: None)


def test_packs_are_the_first_of_the_plan_over_and_over(held_out):
    plan = held_out.plan
    packs = FixedPacks(plan, 2)
    assert len(packs) == 2 and list(packs) == plan.packs(0)[:2]
    assert packs.locate(3) == (0, plan.packs(0)[1])
    assert len(FixedPacks(plan, 1000)) == len(plan)


def test_samples_that_are_trained_on_are_counted(data_set, valid_set, held_out):
    assert held_out.also_trained_on() == 0
    config = config_of(data_set, data_set)
    both = HeldOutSet(config, BatchSource(config, CPU))
    assert both.also_trained_on() == len(both.plan.index)


def test_the_training_plan_does_not_depend_on_what_is_held_out(data_set, valid_set):
    plans = []
    for config in (config_of(data_set, valid_set), config_of(data_set, data_set)):
        source = BatchSource(config, CPU)
        plans.append(PackPlan(source.index, config.data, config.model, 16, 1, 2).fingerprint())
    assert plans[0] == plans[1]


def test_a_wrong_path_names_the_setting(data_set):
    config = config_of(data_set, "/nowhere")
    with pytest.raises(UserError, match=r"data\.valid_index_path: there is no index at /nowhere"):
        HeldOutSet(config, BatchSource(config, CPU))
