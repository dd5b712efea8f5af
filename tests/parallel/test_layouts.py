"""Every parallel layout against the plain model, in float32: one torchrun for all layouts of two ranks, one of four."""

import json

import pytest
import torch

from phantom_mega.config import ParallelConfig
from phantom_mega.core.build import build_model
from phantom_mega.core.convert import core_to_hf
from tests.parallel import reference
from tests.parallel.launch import launch
from tests.parallel.layouts import BF16_LAYOUTS, LAYOUTS

CASES = [pytest.param((ranks, name), id=name) for ranks, layouts in LAYOUTS.items() for name in layouts]
every_layout = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, single_rank):
    """Start the workers of a number of ranks once; returns their folder and what went wrong, if anything."""
    expected = reference.compute()
    expected["initial"] = core_to_hf(build_model(reference.MODEL, ParallelConfig(), reference.FP32, seed=7))
    done = {}

    def run(ranks: int):
        if ranks not in done:
            folder = tmp_path_factory.mktemp(f"ranks_{ranks}")
            torch.save(expected, folder / "expected.pt")
            error = None
            try:
                launch("tests.parallel.worker", ranks, folder)
            except AssertionError as failure:
                error = str(failure)
            done[ranks] = folder, error
        return done[ranks]

    run.expected = expected
    return run


@pytest.fixture
def result(runs, case):
    """What the workers wrote for one layout."""
    ranks, name = case
    folder, error = runs(ranks)
    path = folder / f"{name}.json"
    if not path.exists():
        pytest.fail(error or f"{name} left no result", pytrace=False)
    return json.loads(path.read_text())


def largest(errors: dict[str, float]) -> tuple[float, str]:
    return max((error, name) for name, error in errors.items())


@every_layout
def test_loss_and_every_gradient_equal_those_of_the_plain_model(result, runs):
    assert result["losses"][0] == pytest.approx(runs.expected["losses"][0], rel=1e-5)
    assert result["gradients"].keys() == runs.expected["gradients"].keys()
    assert largest(result["gradients"])[0] < 1e-5, largest(result["gradients"])


@every_layout
def test_three_clipped_adamw_steps_stay_with_the_plain_model(result, runs):
    assert result["norms"] == pytest.approx(runs.expected["norms"], rel=1e-4)
    assert min(result["norms"]) > reference.OPTIMIZER.clip_grad  # clipping took place
    assert result["losses"] == pytest.approx(runs.expected["losses"], rel=1e-4)
    assert largest(result["weights"])[0] < 1e-4, largest(result["weights"])


@every_layout
def test_all_copies_of_a_parameter_stay_equal(result):
    assert result["copies_agree"]


@every_layout
def test_initial_weights_do_not_depend_on_the_layout(result):
    assert result["same_initial_weights"]


@every_layout
def test_weights_saved_at_one_layout_load_bit_equal_at_another(result, case):
    ranks, name = case
    if name == next(iter(LAYOUTS[ranks])):
        pytest.skip("the first layout only saves")
    assert result["loads_equal"], f"loaded from {result['loaded_from']}"


@every_layout
def test_training_resumed_at_another_layout_goes_on_as_if_uninterrupted(result, case):
    ranks, name = case
    if name == next(iter(LAYOUTS[ranks])):
        pytest.skip("the first layout only saves")
    assert largest(result["resumed"])[0] < 1e-4, (result["resumed_from"], largest(result["resumed"]))


@pytest.mark.parametrize("case", [case for case in CASES if "dp2_" in case.id])
def test_data_parallel_layouts_reduce_several_buckets(result):
    assert result["buckets"] >= 2


@pytest.mark.parametrize("case", [case for case in CASES if "cp" in case.id])
def test_context_parallel_ranks_send_what_the_formula_says(result, case):
    """`core.context_parallel`: 4 (S + L)/cp x C/tp x (cp - 1)/cp numbers a pass, block and pack, in two exchanges."""
    parallel = LAYOUTS[case[0]][case[1]]
    tp, cp = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    dp = case[0] // (tp * cp * parallel.pipeline_model_parallel_size)
    passes = 3 if parallel.recompute_granularity else 2
    blocks = reference.MODEL.num_layers // parallel.pipeline_model_parallel_size
    count = passes * blocks * len(reference.PACKS) // dp
    tokens = reference.SEQ_LENGTH + reference.TEXT_SEQ_LENGTH
    numbers = 4 * tokens / cp * reference.MODEL.hidden_size / tp * (cp - 1) / cp
    assert (result["exchanges"], result["sent"]) == (2 * count, count * numbers)


def test_a_context_parallel_rank_may_hold_nothing_but_padding():
    for shapes in reference.PACKS:
        visual, text = sum(s.visual_tokens for s in shapes), sum(s.text_stream_tokens for s in shapes)
        if visual <= 3 * reference.SEQ_LENGTH // 4 and text <= 3 * reference.TEXT_SEQ_LENGTH // 4:
            return
    pytest.fail("no pack leaves the last of four ranks nothing: cp4_selective does not show that this works")


@pytest.mark.parametrize("case", [case for case in CASES if case.id in BF16_LAYOUTS])
def test_bf16_trains_with_fp32_gradients_near_the_fp32_model(runs, case):
    ranks, name = case
    folder, error = runs(ranks)
    path = folder / f"bf16_{name}.json"
    if not path.exists():
        pytest.fail(error, pytrace=False)
    result = json.loads(path.read_text())
    assert result["dtypes"] == ["torch.float32"]
    assert result["gradient_error"] < 0.03
    assert result["losses"] == pytest.approx(runs.expected["losses"], rel=0.02)
    assert result["copies_agree"]
