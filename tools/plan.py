"""Plan a run before it has a GPU: parameters, FLOPs, memory, communication, time, GPU-hours, and the best layouts.

Computed from the recipe alone; nothing is built, loaded or measured. Rates are published ones, and the report says so,
until --rates names what tools/benchmark.py measured on your GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.config_io import RUN, load_run_config
from phantom_mega.errors import UserError
from phantom_mega.files import whole_file

if TYPE_CHECKING:
    from phantom_mega.config import RunConfig
    from phantom_mega.planner.plan import Plan

EXAMPLES = """examples:
  python tools/plan.py --config stage1_256p --nodes 16 --gpu h100
  python tools/plan.py --config stage2_720p --nodes 16 --gpu a100-80 --refused
  python tools/plan.py --config stage1_256p --nodes 16 --gpu h100 --rates runs/benchmark.json --json plan.json
  python tools/plan.py --config stage1_256p --nodes 2 --gpu h200 data.index_path=[/data/triplets]   (packs of real data)
  python tools/plan.py --phases --nodes 16 --gpu h100          (GPU-hours of both phases, beside the paper's)
  python tools/plan.py --config stage2_720p --nodes 4 --gpu h100 --tensor-model-parallel-size 4 --global-batch-size 32

Settings are those of launchers/train.py: section.field=value or --field-name value. With data.index_path packs come
from the data set's own plan, else from samples drawn from the recipe's resolutions; --references, --caption-tokens and
--lengths then say what a sample is like.
"""
PHASES = ("stage1_256p", "stage2_720p")


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Own options, and the settings that go to the recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", help=f"a recipe ({', '.join(RUN.names())}) or a path to one")
    parser.add_argument("--phases", action="store_true", help=f"GPU-hours of {' and '.join(PHASES)} together")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument("--gpu", default="h100", help="h100, h200, a100-80 or a100-40; default: h100")
    parser.add_argument("--rates", type=Path, metavar="FILE", help="JSON with measured TFLOP/s (tools/benchmark.py)")
    parser.add_argument("--references", type=int, default=2, metavar="N", help="of a sample; default: 2")
    parser.add_argument("--caption-tokens", type=int, default=256, metavar="N", help="of a sample; default: 256")
    parser.add_argument(
        "--lengths", default="uniform", help="clip lengths: uniform (among the recipe's, the default) or longest"
    )
    parser.add_argument(
        "--margin", type=float, default=0.05, help="part of a GPU's memory to leave free; default: 0.05"
    )
    parser.add_argument("--top", type=int, default=10, metavar="N", help="layouts to show; default: 10")
    parser.add_argument("--refused", action="store_true", help="list every refused layout with its reason")
    parser.add_argument("--json", metavar="FILE", help="also write the plan as JSON; - prints it instead of the text")
    known, settings = parser.parse_known_args(arguments)
    if not known.config and not known.phases:
        parser.error("--config is needed, e.g. --config stage1_256p (or --phases)")
    if known.config and known.phases:
        parser.error(f"--phases plans {' and '.join(PHASES)}; leave out --config, or --phases")
    return known, settings


def check(options: argparse.Namespace) -> None:
    """Raises:
    UserError: a number that cannot be right; says what can.
    """
    for name in ("nodes", "gpus_per_node", "top"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    if not 0 <= options.margin < 1:
        raise UserError(f"--margin {options.margin} must lie in [0, 1): 0.05 leaves 5% of the memory free")


def make(recipe: str, config: RunConfig, options: argparse.Namespace) -> Plan:
    """The plan of one recipe.

    Raises:
        UserError: anything that cannot be planned.
    """
    from phantom_mega.planner import workload
    from phantom_mega.planner.communication import Cluster
    from phantom_mega.planner.gpus import Rates, find_gpu
    from phantom_mega.planner.layouts import Machines
    from phantom_mega.planner.plan import make_plan

    gpu = find_gpu(options.gpu)
    rates = Rates.read(options.rates, gpu) if options.rates else gpu.assumed
    machines = Machines(Cluster(gpu, options.nodes, options.gpus_per_node), rates, options.margin)
    if config.data.index_path:
        packs = workload.from_index(config)
    else:
        packs = workload.from_recipe(config, options.references, options.caption_tokens, options.lengths)
    return make_plan(recipe, config, machines, packs)


def main(arguments: list[str] | None = None) -> None:
    """Parse, plan, print.

    Raises:
        UserError: anything that cannot be planned.
    """
    options, settings = parse(arguments)
    check(options)
    recipes = PHASES if options.phases else [options.config]
    configs = [load_run_config(recipe, settings) for recipe in recipes]
    # Imported late: --help and typing errors answer at once.
    from phantom_mega.planner.report import json_report, phases_report, text_report

    plans = [make(recipe, config, options) for recipe, config in zip(recipes, configs, strict=True)]
    if options.json:
        reports = [json_report(plan) for plan in plans]
        content = json.dumps(reports if options.phases else reports[0], indent=1)
        if options.json == "-":
            print(content)
            return
        with whole_file(Path(options.json)) as temporary:
            temporary.write_text(content + "\n")
    for plan in plans:
        print(text_report(plan, options.top, options.refused), end="\n\n" if options.phases else "\n")
    if options.phases:
        print(phases_report(plans))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"plan: {error}")
