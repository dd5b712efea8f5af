"""A plan in words and tables for people, and as JSON for programs."""

from __future__ import annotations

from phantom_mega.config import ParallelConfig
from phantom_mega.parallel_layout import layers_per_chunk
from phantom_mega.planner.encoders import Encoders
from phantom_mega.planner.gpus import ENCODER_EFFICIENCY, LINK_EFFICIENCY
from phantom_mega.planner.layouts import RESOLUTION, Estimate, group_refusals
from phantom_mega.planner.memory import GIB, Memory, recomputed_modules
from phantom_mega.planner.plan import Plan, plain
from phantom_mega.planner.timing import IterationTime

# GPU-hours that the paper gives for both phases together (arXiv 2502.11079, 4.1).
PAPER_A100_HOURS = 30_000


def describe_recompute(parallel: ParallelConfig, layers: int) -> str:
    """`none`, the modules of `selective`, or how many of a chunk's layers are recomputed whole."""
    if parallel.recompute_granularity == "selective":
        return "+".join(recomputed_modules(parallel))
    if parallel.recompute_granularity == "full":
        count = parallel.recompute_num_layers or layers
        return "full" if count == layers else f"full {count}/{layers}"
    return "none"


def layout_words(estimate: Estimate) -> str:
    """`TP 2 x CP 1 x PP 1 x DP 64`, with what is switched on."""
    parallel = estimate.parallel
    virtual = parallel.virtual_pipeline_model_parallel_size
    return (
        f"TP {parallel.tensor_model_parallel_size} x CP {parallel.context_parallel_size} x "
        f"PP {parallel.pipeline_model_parallel_size} x DP {estimate.data_parallel}"
        + (", sequence parallel" if parallel.sequence_parallel else "")
        + (f", interleaved x {virtual}" if virtual else "")
    )


def _fixed(value: float, digits: int) -> str:
    """With so many digits behind the point; what is there, but too small for them, is not shown as nothing."""
    least = 10.0**-digits
    return f"<{least:.{digits}f}" if 0 < value < least else f"{value:.{digits}f}"


def _digits(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds >= 0.1 else f"{seconds:.3g}"


def _scaled(value: float, units: str, digits: int) -> str:
    """In the largest of `units`, each a thousandth of the one before, of which there is at least one."""
    for unit in units:
        if value >= 1 or unit == units[-1]:
            break
        value *= 1000
    return f"{_fixed(value, digits)}{unit}"


def _time_unit(time: IterationTime) -> tuple[str, str, float]:
    """(name, sign, seconds of one) of the unit that an iteration's parts can be read in."""
    return ("seconds", "s", 1.0) if time.total >= 1 else ("milliseconds", "ms", 1e-3)


def _flop(value: float) -> str:
    number = _scaled(value / 1e15, "PTG", 1)
    return f"{number[:-1]} {number[-1]}FLOP"


def memory_lines(memory: Memory) -> list[str]:
    """Parts of a GPU's memory in GiB."""
    lines = [f"{name:<14}{_fixed(size / GIB, 2):>8}" for name, size in memory.parts().items() if size]
    return [*lines, f"{'total':<14}{memory.total / GIB:>8.2f}"]


def time_lines(time: IterationTime) -> list[str]:
    """Parts of an iteration's time, in the unit of `_time_unit` and in percent."""
    one = _time_unit(time)[2]
    lines = [
        f"{name:<14}{_fixed(seconds / one, 3):>8}{100 * seconds / time.total:>6.1f}%"
        for name, seconds in time.parts().items()
        if seconds
    ]
    return [*lines, f"{'total':<14}{_fixed(time.total / one, 3):>8}"]


def transfer_lines(time: IterationTime) -> list[str]:
    """What a GPU sends in an iteration, with the link and what is not hidden."""
    _, sign, one = _time_unit(time)
    return [
        f"{sent.name:<20}{_fixed(sent.size / 1e9, 2):>8} GB {'between nodes' if sent.across_nodes else 'inside a node'}"
        f" {_fixed(sent.seconds / one, 3):>7} {sign}, {_fixed(sent.exposed / one, 3)} exposed"
        for sent in time.transfers
    ]


def _side_by_side(*columns: list[str]) -> list[str]:
    height = max(map(len, columns))
    widths = [max(map(len, column), default=0) for column in columns]
    rows = zip(*(column + [""] * (height - len(column)) for column in columns), strict=True)
    return [
        "  " + "    ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def estimate_lines(estimate: Estimate) -> list[str]:
    """One layout in full."""
    stage = f", stage {estimate.memory.stage}" if estimate.parallel.pipeline_model_parallel_size > 1 else ""
    memory = [f"GiB of a GPU{stage}", *memory_lines(estimate.memory)]
    time = [f"{_time_unit(estimate.time)[0]} of an iteration", *time_lines(estimate.time)]
    sent = ["sent by a GPU in an iteration", *(transfer_lines(estimate.time) or ["nothing"])]
    return _side_by_side(memory, time, sent)


def _losses(time: IterationTime) -> str:
    parts = {name: seconds for name, seconds in time.parts().items() if name not in ("linear", "attention")}
    largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
    return ", ".join(
        f"{name} {100 * seconds / time.total:.0f}%" for name, seconds in largest if seconds > 0.005 * time.total
    )


def ranking_lines(plan: Plan, top: int) -> list[str]:
    """The fastest layouts, a line each."""
    lines = [
        "   #   TP  CP  PP  VPP  SP   DP  micro  recompute                     GiB   s/iter   MFU  GPU-hours  lost to"
    ]
    for number, each in enumerate(plan.ranked[:top], 1):
        parallel = each.parallel
        recompute = describe_recompute(parallel, layers_per_chunk(plan.config.model, parallel))
        lines.append(
            f"{number:>4} {parallel.tensor_model_parallel_size:>4}{parallel.context_parallel_size:>4}"
            f"{parallel.pipeline_model_parallel_size:>4}{parallel.virtual_pipeline_model_parallel_size or '-':>5}"
            f"{'yes' if parallel.sequence_parallel else 'no':>4}{each.data_parallel:>5}{each.microbatches:>7}  "
            f"{recompute:<28}{each.memory.total / GIB:>5.1f}{_digits(each.time.total):>9}"
            f"{100 * plan.utilisation(each):>5.0f}%{plan.gpu_hours(each):>11,.0f}  {_losses(each.time)}"
        )
    return lines


def refusal_lines(plan: Plan, every: bool = False) -> list[str]:
    """Why layouts are refused, by kind of reason."""
    lines = [
        f"refused: {len(plan.refused)} of {len(plan.refused) + len(plan.ranked)} layouts"
        + (":" if plan.refused else "")
    ]
    for reason, group in group_refusals(list(plan.refused)):
        lines.append(f"{len(group):>6}  {'such as: ' if len(group) > 1 else ''}{reason}")
        if every:
            for refusal in group:
                parallel = refusal.parallel
                virtual = parallel.virtual_pipeline_model_parallel_size
                lines.append(
                    f"          TP {parallel.tensor_model_parallel_size} CP {parallel.context_parallel_size} PP "
                    f"{parallel.pipeline_model_parallel_size}" + (f" VPP {virtual}" if virtual else "")
                    + (" SP" if parallel.sequence_parallel else "") + f": {refusal.reason}"
                )  # fmt: skip
    return lines


def head_lines(plan: Plan) -> list[str]:
    """Model, machines, data, iteration."""
    config, cluster, rates, work = plan.config, plan.machines.cluster, plan.machines.rates, plan.workload
    model, data, packs = config.model, config.data, config.train.global_batch_size
    kind = "measured" if rates.all_measured(config.precision.fp8 is not None) else "assumed, not measured"
    fp8 = f", {rates.linear_fp8:g} in FP8" if config.precision.fp8 is not None and rates.linear_fp8 else ""
    lines = [
        f"{plan.recipe} on {cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name}",
        f"model      {_scaled(plan.parameters / 1e9, 'BMk', 2)} parameters: {model.num_layers} dual-stream blocks, "
        f"width {model.hidden_size}, {model.num_attention_heads} heads, windows of {model.window_frames} frames",
        f"data       {work.origin}",
        f"pack       {work.samples:.1f} samples; {data.seq_length:,} visual tokens "
        f"{100 * work.mean('visual_tokens') / data.seq_length:.0f}% full, {data.text_seq_length:,} text-stream tokens "
        f"{100 * work.mean('text_stream_tokens') / data.text_seq_length:.0f}% full",
        f"iteration  {packs} packs, {_scaled(packs * work.mean('visual_tokens') / 1e6, 'Mk', 2)} visual tokens "
        f"({_scaled(packs * work.mean('video_tokens') / 1e6, 'Mk', 2)} of video), {_flop(plan.needed_flops)} needed "
        f"({100 * work.mean_needed.attention / work.mean_needed.total:.0f}% attention), "
        f"{_flop(plan.executed_flops)} with padding, {_flop(plan.encoder_flops)} in frozen encoders",
        f"rates      {rates.linear_bf16:g} TFLOP/s in linear layers{fp8}, {rates.attention_bf16:g} in attention: "
        f"{kind}",
        f"           {rates.source}",
        f"           {100 * LINK_EFFICIENCY:.0f}% of links' bandwidth and {100 * ENCODER_EFFICIENCY:.0f}% of the peak "
        "in encoders: assumed, not measured",
    ]
    unknown = Encoders.of(config.conditioning, config.precision).unknown
    if unknown:
        lines.append(f"encoders   not counted, for their sizes are not known to the planner: {', '.join(unknown)}")
    return lines


def text_report(plan: Plan, top: int = 10, refused: bool = False) -> str:
    """The whole plan."""
    lines = [*head_lines(plan), ""]
    usable = plan.machines.usable / GIB
    if plan.own is None:
        lines.append(f"the recipe's own layout cannot be used: {plan.own_refused}")
    else:
        layers = layers_per_chunk(plan.config.model, plan.own.parallel)
        fits = "fits" if plan.own.fits else "DOES NOT FIT"
        lines += [
            f"the recipe's own layout: {layout_words(plan.own)}, {plan.own.microbatches} packs a replica, recompute "
            f"{describe_recompute(plan.own.parallel, layers)}; {fits} into {usable:.1f} GiB "
            f"({plan.machines.cluster.gpu.memory_gib:g} less {100 * plan.machines.margin:.0f}%)",
            *estimate_lines(plan.own),
            f"  {100 * plan.utilisation(plan.own):.0f}% MFU, {plan.gpu_hours(plan.own):,.0f} GPU-hours for "
            f"{plan.config.train.train_iters:,} iterations",
        ]
    lines.append("")
    if plan.ranked:
        lines += [
            f"the {min(top, len(plan.ranked))} fastest of {len(plan.ranked)} layouts that fit (times in steps of "
            f"{100 * (RESOLUTION - 1):.0f}%, within one the simpler layout first):",
            *ranking_lines(plan, top),
        ]
        best = plan.ranked[0]
        lines += [
            "",
            f"the fastest: {layout_words(best)}",
            *estimate_lines(best),
            "",
            f"  use it: {flags(best.parallel)}",
        ]
    else:
        lines.append("no layout fits: use more or larger GPUs, or a smaller data.seq_length")
    return "\n".join([*lines, "", *refusal_lines(plan, refused)])


def flags(parallel: ParallelConfig) -> str:
    """Command-line words that set a layout, to be copied behind `launchers/train.py --config ...`."""
    words = [
        f"--tensor-model-parallel-size {parallel.tensor_model_parallel_size}",
        f"--context-parallel-size {parallel.context_parallel_size}",
        f"--pipeline-model-parallel-size {parallel.pipeline_model_parallel_size}",
        f"--virtual-pipeline-model-parallel-size {parallel.virtual_pipeline_model_parallel_size or 'null'}",
        "--sequence-parallel" if parallel.sequence_parallel else "--no-sequence-parallel",
        f"--recompute-granularity {parallel.recompute_granularity or 'null'}",
    ]
    if parallel.recompute_granularity == "full":
        words.append(f"--recompute-num-layers {parallel.recompute_num_layers or 'null'}")
    if parallel.recompute_granularity == "selective":
        words.append(f"--recompute-modules [{','.join(recomputed_modules(parallel))}]")
    return " ".join(words)


def phases_report(plans: list[Plan]) -> str:
    """GPU-hours of all phases, each at its fastest layout, beside the paper's."""
    gpu, lines, hours = plans[0].machines.cluster.gpu, [], 0.0
    for plan in plans:
        if not plan.ranked:
            return f"{plan.recipe}: no layout fits on {gpu.name}, so both phases have no number"
        best = plan.ranked[0]
        hours += plan.gpu_hours(best)
        recompute = describe_recompute(best.parallel, layers_per_chunk(plan.config.model, best.parallel))
        lines.append(
            f"{plan.recipe:<14}{plan.config.train.train_iters:>8,} iterations of {best.time.total:7.3f} s: "
            f"{plan.gpu_hours(best):>9,.0f} GPU-hours  ({layout_words(best)}, recompute {recompute})"
        )
    measured = all(plan.machines.rates.all_measured(plan.config.precision.fp8 is not None) for plan in plans)
    return "\n".join([
        *lines,
        f"{'both':<14}{hours:>39,.0f} GPU-hours on {gpu.name}, by {'measured' if measured else 'assumed'} rates; the "
        f"paper gives about {PAPER_A100_HOURS:,} A100-hours",
        "The paper tells neither its batch size, nor its sequence lengths, nor how its GPUs were used: the two are "
        "not one experiment. This one is the recipe as it stands here.",
    ])  # fmt: skip


def json_report(plan: Plan) -> dict:
    """The plan for programs; sizes in bytes, times in seconds."""
    config, work = plan.config, plan.workload

    def one(each: Estimate) -> dict:
        return {
            # Named even where the configuration leaves the choice to its default, as `flags` names them.
            "layout": {name: getattr(each.parallel, name) for name in _LAYOUT}
            | {"recompute_modules": list(recomputed_modules(each.parallel))},
            "data_parallel": each.data_parallel,
            "microbatches": each.microbatches,
            "fits": each.fits,
            "memory": {**each.memory.parts(), "total": each.memory.total, "host": each.memory.host},
            "stage": each.memory.stage,
            "seconds": {**each.time.parts(), "total": each.time.total},
            "transfers": plain(each.time.transfers),
            "mfu": plan.utilisation(each),
            "gpu_hours": plan.gpu_hours(each),
        }

    return {
        "recipe": plan.recipe,
        "gpu": plan.machines.cluster.gpu.name,
        "nodes": plan.machines.cluster.nodes,
        "gpus_per_node": plan.machines.cluster.gpus_per_node,
        "rates": plain(plan.machines.rates),
        "parameters": plan.parameters,
        "data": {
            "origin": work.origin,
            "samples": work.samples,
            "visual_tokens": work.mean("visual_tokens"),
            "text_stream_tokens": work.mean("text_stream_tokens"),
        },
        "iteration": {
            "packs": config.train.global_batch_size,
            "visual_tokens": config.train.global_batch_size * work.mean("visual_tokens"),
            "needed_flops": plan.needed_flops,
            "executed_flops": plan.executed_flops,
            "encoder_flops": plan.encoder_flops,
        },
        "own": one(plan.own) if plan.own else None,
        "own_refused": plan.own_refused,
        "ranked": [one(each) for each in plan.ranked],
        "refused": [{"reason": reason, "layouts": len(group)} for reason, group in group_refusals(list(plan.refused))],
    }


_LAYOUT = (
    "tensor_model_parallel_size", "context_parallel_size", "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size", "sequence_parallel", "recompute_granularity", "recompute_num_layers",
    "recompute_modules",
)  # fmt: skip
