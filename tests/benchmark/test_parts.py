"""Steps and attention alone: what differs from the reference is not timed, and takes nothing else with it."""

import pytest
import torch

from phantom_mega import attention
from phantom_mega.benchmark import attention_alone, peers, steps
from phantom_mega.benchmark.attention_alone import AttentionBenchmark
from phantom_mega.benchmark.cases import CASES, Deadline
from phantom_mega.benchmark.steps import StepBenchmark, StepSettings, choose_cases
from phantom_mega.benchmark.workload import SMALL
from phantom_mega.errors import UserError
from phantom_mega.flops import training_flops

CPU = torch.device("cpu")


def step_benchmark(*names: str, seconds: float = 0.0) -> StepBenchmark:
    settings = StepSettings(
        size=SMALL,
        frames=(33,),
        cases=choose_cases(list(names), CASES),
        iters=2,
        warmup=0,
        attention_backend="sdpa",
        full_backend="sdpa",
        transformer_impl="local",
        compiler="eager",
        fp8_recipe=None,
        deadline=Deadline(seconds),
    )
    return StepBenchmark(settings, CPU, lambda text: None, lambda: None)


@pytest.mark.usefixtures("single_rank")
def test_a_peer_with_other_weights_is_not_timed_and_the_rest_is(monkeypatch):
    def swapped(plain, layers):
        weights = right(plain, layers)
        scale, shift = weights["norm_out.linear.weight"].chunk(2)
        return weights | {"norm_out.linear.weight": torch.cat([shift, scale])}

    right = peers.peer_weights
    monkeypatch.setattr(peers, "peer_weights", swapped)
    benchmark = step_benchmark("ours_windows", "diffusers_stock")
    benchmark.prepare()
    benchmark.measure()
    ours, peer = benchmark.results
    assert ours.problem is None and len(ours.step) == 2 and 0 < ours.error < 1e-5
    assert "differs from the reference" in peer.problem and peer.step == [] and peer.median is None
    assert all(a == pytest.approx(b + c) for a, b, c in zip(ours.step, ours.forward_backward, ours.update))


@pytest.mark.usefixtures("single_rank")
def test_a_case_that_runs_out_of_memory_is_said_to_and_the_rest_is_timed(monkeypatch):
    def step(engine, *args):
        if isinstance(engine.chunk, peers.DiffusersPeer):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(engine, *args)

    original = steps.Engine.step
    monkeypatch.setattr(steps.Engine, "step", step)
    benchmark = step_benchmark("ours_full", "diffusers_flash", "diffusers_cudnn")
    benchmark.prepare()
    benchmark.measure()
    assert [r.problem for r in benchmark.results] == [
        None,
        "out of memory",
        "not run: cuDNN attention needs a GPU",
    ]


@pytest.mark.usefixtures("single_rank")
def test_after_its_time_nothing_more_is_begun():
    benchmark = step_benchmark("ours_full", seconds=1e-9)
    benchmark.prepare()
    benchmark.measure()
    assert [r.problem for r in benchmark.results] == ["not run: out of time (--budget-seconds)"]


@pytest.mark.usefixtures("single_rank")
def test_what_was_timed_before_the_time_was_over_is_kept(monkeypatch):
    def measure(self, *arguments):
        original(self, *arguments)
        self.settings.deadline.end = 0.0

    original = StepBenchmark._time
    monkeypatch.setattr(StepBenchmark, "_time", measure)
    benchmark = step_benchmark("ours_full", "ours_windows")
    benchmark.prepare()
    benchmark.measure()
    first, second = benchmark.results
    assert (first.problem, len(first.step)) == (None, 1) and first.median
    assert second.problem == "not run: out of time (--budget-seconds)" and second.step == []


@pytest.mark.usefixtures("single_rank")
def test_full_attention_and_windows_need_the_same_flops_in_their_linears():
    benchmark = step_benchmark("ours_full", "ours_windows")
    benchmark.prepare()
    full, windows = (training_flops(SMALL.model, benchmark.batches[kind, 33][0].layout) for kind in (False, True))
    lengths = benchmark.batches[False, 33][0].layout.windows[0].lengths
    assert full > windows
    attention_of_full = 12 * SMALL.model.hidden_size * SMALL.model.num_layers * lengths[0] ** 2
    assert benchmark.linear_flops[33] == pytest.approx(full - attention_of_full)


def test_an_unknown_case_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="ours_ful is unknown; use some of ours_full, "):
        choose_cases(["ours_ful"], CASES)


def attention_benchmark(monkeypatch, **backends) -> AttentionBenchmark:
    table = {"sdpa": attention.BACKENDS["sdpa"], **backends}
    for module in (attention, attention_alone):
        monkeypatch.setattr(module, "BACKENDS", table)
    monkeypatch.setattr(attention_alone, "resolve_backend", lambda name, *_: name)
    benchmark = AttentionBenchmark(SMALL, (33,), (1, 4), 2, 0, CPU, Deadline(0), lambda text: None)
    benchmark.run()
    return benchmark


def test_attention_with_wrong_gradients_is_not_timed_and_the_rest_is(monkeypatch):
    def detached(q, k, v, windows):
        return attention.BACKENDS["sdpa"](q, k.detach() + 0 * k, v, windows)

    benchmark = attention_benchmark(monkeypatch, wrong=detached)
    by_name = {(r.name, r.references, r.windows): r for r in benchmark.results}
    assert all("differs from the reference" in r.problem for r in benchmark.results if r.name == "wrong")
    assert by_name["sdpa", 4, True].problem is None and len(by_name["sdpa", 4, True].times) == 2
    flash = by_name["torch flash", 1, False]
    assert flash.problem is None and flash.error < 1e-5
    assert ("torch flash", 4, False) not in by_name


def test_flops_of_attention_are_those_of_both_grids(monkeypatch):
    benchmark = attention_benchmark(monkeypatch)
    shape, width = SMALL.shape(33, 4), SMALL.model.hidden_size
    # 9 latent frames in windows of 5: 5 + 4, and shifted 2 + 5 + 2; each also reads 4 references and the text.
    shared = 4 * shape.frame_tokens + shape.text_tokens
    rows = [frames * shape.frame_tokens + shared for frames in (5, 4, 2, 5, 2)]
    own = next(r for r in benchmark.results if r.references == 4)
    # References and text read each other once in a grid: again in 1 + 2 of its windows is not needed.
    assert own.flops == 12 * width * (sum(row**2 for row in rows) - 3 * shared**2)
