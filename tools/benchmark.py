"""Measure the training step on one GPU beside diffusers' stock HunyuanVideo blocks with the same weights, in one run.

Examples:
  python tools/benchmark.py --json runs/benchmark.json --markdown runs/benchmark.md     # one GPU, stops after 9 minutes
  python tools/benchmark.py --small                                                     # tiny sizes, also without a GPU
  python tools/benchmark.py --cases ours_windows ours_windows_fp8 --frames 81 --parts steps
  python tools/benchmark.py --parts attention --references 4 --frames 81                # attention alone
  python tools/benchmark.py --attention-backend te --fp8-recipe blockwise
  python tools/plan.py --config stage1_256p --nodes 16 --gpu h100 --rates runs/benchmark.json

Four dual-stream blocks of phantom_7b (d=3072, 24 heads), 480x832 at 81 and 49 frames, 256 text tokens, 1 reference;
forward, loss, backward, clipping, AdamW. A case is first compared with the plain model in fp32 on the same weights and
is not timed if it differs. Cases take turns in rounds. A case that fails or runs out of memory is reported and the
others go on. Parts: `attention` (alone, forward and backward, 0, 1 and 4 references), `steps`, `linears` (alone).

Needs of the packages torch, megatron-core, diffusers, numpy and what these need; Transformer Engine for FP8, for fused
AdamW and for the backend `te`; Triton for torch.compile. No VAE, encoder or decoder, and no network.
"""

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import phantom_mega.core  # noqa: F401 (before megatron)
from phantom_mega.attention import BACKENDS
from phantom_mega.benchmark.cases import CASES, REFERENCES, Deadline
from phantom_mega.benchmark.report import to_markdown
from phantom_mega.benchmark.session import FASTEST, PARTS, Session
from phantom_mega.benchmark.steps import StepSettings, choose_cases
from phantom_mega.benchmark.workload import FULL, SMALL, check_frames
from phantom_mega.core.specs import TRANSFORMER_IMPLS
from phantom_mega.errors import UserError
from phantom_mega.precision import FP8_RECIPES


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--small", action="store_true", help="tiny sizes: shows that all runs, on a CPU too; its times mean nothing")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help=f"what to measure [{' '.join(PARTS)}]")
    add("--cases", nargs="+", default=[], metavar="CASE", help=f"of {', '.join(c.name for c in CASES)} [all]")
    add("--frames", nargs="+", type=int, help="lengths of the video in frames, each 4k+1 [81 49]")
    add("--references", nargs="+", type=int, default=[0, 1, 4], help="counts for attention alone [0 1 4]")
    add("--iters", type=int, help="timed iterations of a case [9; small: 2]")
    add("--warmup", type=int, help="untimed iterations before them [3; small: 1]")
    backends = dict(default=FASTEST, choices=(FASTEST, "auto", *BACKENDS), metavar="NAME")
    names = f"{FASTEST} in the part attention, auto, {', '.join(BACKENDS)}"
    add("--attention-backend", **backends, help=f"of our cases with windows: {names} [{FASTEST}]")
    add("--full-backend", **backends, help=f"of our case with full attention, likewise [{FASTEST}]")
    add("--transformer-impl", default="auto", choices=TRANSFORMER_IMPLS, help="linears of ours [auto]")
    add("--fp8-recipe", choices=FP8_RECIPES, help="of the FP8 case [the configuration's default]")
    add("--compile-backend", help="of torch.compile [inductor; small: eager, which compiles nothing]")
    add("--budget-seconds", type=float, default=540.0, help="begin nothing more after this time; 0: never stop [540]")
    add("--json", type=Path, metavar="PATH", help="write the report as JSON; tools/plan.py --rates reads it")
    add("--markdown", type=Path, metavar="PATH", help="write the report as Markdown")
    return parser.parse_args()


def build_session(arguments: argparse.Namespace) -> Session:
    """The run that the command line asks for.

    Raises:
        UserError: a setting that cannot be.
    """
    import torch

    if not arguments.small and not torch.cuda.is_available():
        raise UserError("there is no GPU; --small runs tiny sizes on the CPU")
    size = SMALL if arguments.small else FULL
    frames = tuple(arguments.frames or size.frames)
    check_frames(size, list(frames), [REFERENCES, *arguments.references])
    iters = size.iters if arguments.iters is None else arguments.iters
    warmup = size.warmup if arguments.warmup is None else arguments.warmup
    if iters < 1 or warmup < 0:
        raise UserError(f"--iters {iters} must be at least 1 and --warmup {warmup} at least 0")
    settings = StepSettings(
        size=size,
        frames=frames,
        cases=choose_cases(arguments.cases, CASES),
        iters=iters,
        warmup=warmup,
        attention_backend=arguments.attention_backend,
        full_backend=arguments.full_backend,
        transformer_impl=arguments.transformer_impl,
        compiler=arguments.compile_backend or ("eager" if arguments.small else "inductor"),
        fp8_recipe=arguments.fp8_recipe,
        deadline=Deadline(arguments.budget_seconds),
    )
    command = shlex.join(["python", "tools/benchmark.py", *sys.argv[1:]])
    paths = arguments.json, arguments.markdown
    for path in paths:
        if path is not None and path.is_dir():
            raise UserError(f"{path} is a folder; name a file in it")
    return Session(settings, tuple(arguments.references), tuple(arguments.parts), *paths, command)


def main() -> int:
    """Run, print the tables, write the files."""
    arguments = parse()
    try:
        print(to_markdown(build_session(arguments).run()), end="")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
