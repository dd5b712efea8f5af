"""The search over layouts: what it refuses and why, what it proposes, and in which order."""

import dataclasses
import itertools

import pytest

from phantom_mega.config_io import load_run_config
from phantom_mega.errors import UserError
from phantom_mega.parallel_layout import check_layout, layers_per_chunk
from phantom_mega.planner.communication import Cluster
from phantom_mega.planner.gpus import find_gpu
from phantom_mega.planner.layouts import Machines, estimate, group_refusals, search
from phantom_mega.planner.memory import peak_memory
from phantom_mega.planner.timing import HIDDEN
from phantom_mega.planner.workload import from_recipe


def machines(gpu="h100", nodes=16, **fields):
    return Machines(Cluster(find_gpu(gpu), nodes), find_gpu(gpu).assumed, **fields)


@pytest.fixture(scope="module")
def stage1():
    config = load_run_config("stage1_256p")
    return config, from_recipe(config, references=2, caption_tokens=256)


@pytest.fixture(scope="module")
def found(stage1):
    return search(stage1[0], machines(), stage1[1])


def test_every_proposed_layout_can_be_built_and_fits(stage1, found):
    config, ranked = stage1[0], found[0]
    assert len(ranked) > 20
    for each in ranked:
        check_layout(config.model, each.parallel, config.data, world_size=128)
        assert each.memory.total <= machines().usable and each.fits
        assert each.data_parallel * each.microbatches == config.train.global_batch_size


def test_the_first_is_the_simplest_of_those_as_fast_as_the_fastest(found):
    ranked = found[0]
    fastest = min(each.time.total for each in ranked)
    assert ranked[0].time.total < 1.031 * fastest
    equal = [each.parallel.pipeline_model_parallel_size for each in ranked if each.time.total < 1.03 * fastest]
    assert ranked[0].parallel.pipeline_model_parallel_size == min(equal)
    steps = [each.time.total / fastest for each in ranked]
    assert all(later > earlier / 1.031 for earlier, later in itertools.pairwise(steps))


def test_refusals_name_the_field_and_are_grouped_by_kind(found):
    groups = {reason: len(group) for reason, group in group_refusals(found[1])}
    assert sum(groups.values()) == len(found[1])
    reasons = " ; ".join(groups)
    for part in ("num_attention_heads=20 is not a multiple of", "num_layers=32 is not a multiple of",
                 "64 is not a multiple of the data-parallel size 128; the nearest is 128"):  # fmt: skip
        assert part in reasons
    assert list(groups.values()) == sorted(groups.values(), reverse=True)


def test_heads_are_shared_by_tensor_and_context_parallel_ranks_together(found):
    proposed = {(e.parallel.tensor_model_parallel_size, e.parallel.context_parallel_size) for e in found[0]}
    assert all(20 % (tp * cp) == 0 for tp, cp in proposed) and (2, 2) in proposed


def test_full_recomputation_takes_as_few_layers_as_fit(stage1):
    config, packs = load_run_config("stage2_720p"), None
    packs = from_recipe(config, references=2, caption_tokens=256)
    here = machines("a100-40")
    full = [e for e in search(config, here, packs)[0] if e.parallel.recompute_granularity == "full"]
    assert full
    for each in full:
        layers = each.parallel.recompute_num_layers
        assert layers <= layers_per_chunk(config.model, each.parallel)
        if layers > 1:
            less = dataclasses.replace(each.parallel, recompute_num_layers=layers - 1)
            fewer = dataclasses.replace(config, parallel=less)
            assert peak_memory(fewer, packs.worst, each.data_parallel, each.microbatches).total > here.usable


def test_where_nothing_fits_the_least_memory_is_named(stage1):
    config, packs = stage1
    ranked, refused = search(config, machines("a100-40", nodes=1, margin=0.9), packs)
    assert ranked == [] and any("GiB on a GPU at full recomputation; a100-40 has 39.4 GiB" in r.reason for r in refused)


def test_recomputing_costs_time_and_saves_memory(stage1):
    config, packs = stage1
    results = {}
    for granularity in (None, "selective", "full"):
        here = dataclasses.replace(
            config, parallel=dataclasses.replace(config.parallel, recompute_granularity=granularity)
        )
        results[granularity] = estimate(here, machines(), packs)
    none, selective, full = results.values()
    assert none.memory.total > selective.memory.total > full.memory.total
    assert none.time.recompute == 0 < selective.time.recompute < full.time.recompute
    assert full.time.recompute == pytest.approx((full.time.linear + full.time.attention) / 3)


def test_time_follows_rates_and_the_bubble_the_schedule(stage1):
    config, packs = stage1
    parallel = dataclasses.replace(config.parallel, pipeline_model_parallel_size=4, recompute_granularity=None)
    plain = estimate(dataclasses.replace(config, parallel=parallel), machines(), packs)
    assert plain.microbatches == 4
    time = plain.time
    steady = time.linear + time.attention + time.communication
    assert time.bubble == pytest.approx(steady / 4 * 3)
    virtual = dataclasses.replace(parallel, virtual_pipeline_model_parallel_size=2)
    interleaved = estimate(dataclasses.replace(config, parallel=virtual), machines(), packs).time
    assert interleaved.bubble < 0.51 * time.bubble
    twice = Machines(machines().cluster, dataclasses.replace(machines().rates, linear_bf16=2 * 465))
    assert estimate(dataclasses.replace(config, parallel=parallel), twice, packs).time.linear == pytest.approx(
        time.linear / 2
    )


def test_linear_layers_take_their_flops_over_the_rate(stage1):
    config, packs = stage1
    time = estimate(config, machines(), packs).time
    # 64 packs on 128 GPUs: two GPUs a pack.
    assert time.linear == pytest.approx(3 * packs.mean_executed.linear / 2 / 465e12)
    assert time.attention == pytest.approx(3 * packs.mean_executed.attention / 2 / 287e12)


def test_encoders_that_run_ahead_cost_only_what_gaps_do_not_hide(stage1):
    config, packs = stage1
    ahead = estimate(config, machines(), packs).time
    conditioning = dataclasses.replace(config.conditioning, encode_ahead=False)
    first = estimate(dataclasses.replace(config, conditioning=conditioning), machines(), packs).time
    gaps = ahead.communication + ahead.bubble + ahead.stragglers + ahead.gradients
    assert first.encoders > gaps and ahead.encoders == pytest.approx(first.encoders - HIDDEN * gaps)
    cached = dataclasses.replace(config, conditioning=dataclasses.replace(config.conditioning, cached_features="/x"))
    packs = from_recipe(cached, references=2, caption_tokens=256)
    assert estimate(cached, machines(), packs).time.encoders == 0


def test_an_own_layout_that_cannot_be_built_is_refused(stage1):
    config, packs = stage1
    with pytest.raises(UserError, match="start a multiple of"):
        estimate(config, Machines(Cluster(find_gpu("h100"), 1, 3), find_gpu("h100").assumed), packs)


def test_fp8_is_refused_on_a_gpu_without_it(stage1):
    config, packs = stage1
    fp8 = dataclasses.replace(config, precision=dataclasses.replace(config.precision, fp8="hybrid"))
    faster = estimate(fp8, machines(), packs)
    assert faster.time.linear < estimate(config, machines(), packs).time.linear
    assert faster.memory.weights > estimate(config, machines(), packs).memory.weights
    with pytest.raises(UserError, match="no FP8"):
        estimate(fp8, machines("a100-80"), packs)
