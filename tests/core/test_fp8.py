"""FP8 contexts around the blocks, on any machine: what they hold and what is refused. (On a GPU: test_gpu_fp8.py.)"""

import contextlib
import pickle

import pytest
import torch
from megatron.core.fp8_utils import is_first_last_bf16_layer

from phantom_mega.config import ParallelConfig, PrecisionConfig
from phantom_mega.core import fp8
from phantom_mega.core.build import build_model
from phantom_mega.core.parallel_config import transformer_config
from phantom_mega.errors import UserError
from tests.parallel import reference

pytestmark = pytest.mark.usefixtures("single_rank")
MODEL = reference.MODEL


def precision(recipe: str, **fields) -> PrecisionConfig:
    return PrecisionConfig(bf16=True, fp8="hybrid", fp8_recipe=recipe, **fields)


def test_settings_reach_megatron():
    settings = precision("delayed", fp8_amax_history_len=7, fp8_amax_compute_algo="most_recent", fp8_margin=1)
    config = transformer_config(MODEL, ParallelConfig(), settings)
    assert (config.fp8, config.fp8_recipe, config.fp8_margin) == ("hybrid", "delayed", 1)
    assert (config.fp8_amax_history_len, config.fp8_amax_compute_algo) == (7, "most_recent")
    assert not config.fp8_param and not config.fp8_dot_product_attention
    assert transformer_config(MODEL, ParallelConfig(), PrecisionConfig(bf16=True)).fp8 is None


def test_first_and_last_layers_can_stay_in_bf16():
    settings = precision("tensorwise", first_last_layers_bf16=True, num_layers_at_end_in_bf16=2)
    config = transformer_config(MODEL, ParallelConfig(), settings)
    assert [is_first_last_bf16_layer(config, layer) for layer in range(4)] == [True, False, True, True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")
def test_a_model_in_fp8_is_not_built_where_it_would_silently_compute_in_bf16():
    with pytest.raises(UserError, match=r"precision\.fp8=hybrid needs a GPU .* set precision\.fp8=null"):
        build_model(MODEL, ParallelConfig(), precision("tensorwise"), seed=1)


@pytest.mark.parametrize("recompute", [None, 3])
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise"])
def test_delayed_scaling_has_one_context_around_all_blocks_and_others_one_around_each(monkeypatch, recipe, recompute):
    open_now, seen = [], []

    @contextlib.contextmanager
    def record(config, layer_no=-1):
        open_now.append(layer_no)
        yield
        open_now.pop()

    granularity = "full" if recompute else None
    parallel = ParallelConfig(recompute_granularity=granularity, recompute_num_layers=recompute)
    chunk = build_model(MODEL, parallel, PrecisionConfig(), seed=1)[0]
    chunk.config.fp8, chunk.config.fp8_recipe = "hybrid", recipe
    # There is no Transformer Engine here; its context and its checkpoint are watched, not computed with.
    monkeypatch.setattr(fp8, "get_fp8_context", record)
    monkeypatch.setattr(fp8, "te_checkpoint", lambda run, distribute, tracker, group, *args: run(*args))
    for name, block in chunk.blocks.named_children():
        block.register_forward_pre_hook(lambda *_, name=name: seen.append((name, *open_now)))
    chunk(reference.microbatches()[0][0])
    expected = [(str(layer), -1 if recipe == "delayed" else layer) for layer in range(4)]
    assert seen == expected and not open_now


def test_only_data_stands_for_the_scales_in_a_checkpoint():
    content = {name: torch.rand(3) for name in fp8._SCALES}
    pickled = torch.frombuffer(bytearray(pickle.dumps({"recipe": object(), **content})), dtype=torch.uint8)

    class Sharded:
        def __init__(self, data):
            self.data = data

    state = {name: Sharded(value) for name, value in [("a._extra_state", pickled), ("b._extra_state", torch.empty(0))]}
    state |= {"c._extra_state": Sharded(None), "a.weight": Sharded(pickled)}
    fp8.save_scales_as_tensors(state)
    assert state["a._extra_state"].data.keys() == content.keys()
    assert all(torch.equal(state["a._extra_state"].data[name], tensor) for name, tensor in content.items())
    assert state["b._extra_state"].data is None and state["c._extra_state"].data is None
    assert state["a.weight"].data is pickled
