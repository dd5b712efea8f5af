"""Turn a release, or an open base model, into a training checkpoint that a run at any layout starts from.

A release (`tools/export_hf.py`) comes back to the bit. Of a base model (`--from`) each tensor is taken, converted, or
listed with the reason why it is not used; what is new starts as in a fresh run. docs/base_models.md has the details.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.errors import UserError
from phantom_mega.release import importing
from phantom_mega.release.base_models import BASE_MODELS
from phantom_mega.release.base_models.common import Options
from phantom_mega.release.base_models.table import TABLE, summary

EXAMPLES = """examples:
  python tools/import_hf.py runs/release runs/imported --verify
  python tools/import_hf.py runs/release runs/imported --config stage2_720p --tensor-model-parallel-size 2
  python tools/import_hf.py --from seedvr_7b seedvr_ema_7b.pth runs/seedvr --verify
  python tools/import_hf.py --from hunyuan_video HunyuanVideo/ runs/hunyuan --dtype bfloat16
  python tools/import_hf.py --from seedvr_3b seedvr_ema_3b.pth runs/seedvr --fresh visual_embedder --fresh final_proj
  launchers/train.py --config my_recipe train.load=runs/seedvr train.finetune=true    # base: model/seedvr_3b in it

TARGET becomes the checkpoint's own folder; name it in train.load, with train.finetune=true. It is written under a
hidden name, hashed, compared with the source (--verify) and renamed: it is whole or absent, and may be made again.
Further words are settings of the recipe (model.text_dim=3584), as launchers/train.py takes them.
"""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def prepare(args: argparse.Namespace):
    """(plan, weights, configuration, number format) of what the command line asks for; reads no tensor.

    Raises:
        UserError: the source, the recipe or the layout is not usable.
    """
    options = Options(tuple(args.fresh), args.guidance_scale)
    if args.base is None:
        if options != Options():
            raise UserError("--fresh and --guidance-scale are for base models; name the kind with --from")
        source, pipeline = importing.open_export(args.source)
        model = importing.export_model(source)
        run = importing.export_config(model, pipeline, args.config, args.overrides)
        run = importing.with_layout(run, args.tensor_model_parallel_size, args.pipeline_model_parallel_size)
        return importing.export_plan(source, run), source.weights, run, DTYPES.get(args.dtype)
    base = BASE_MODELS[args.base]
    source = base.open(args.source)
    run = importing.base_config(base, source, args.config, args.overrides)
    run = importing.with_layout(run, args.tensor_model_parallel_size, args.pipeline_model_parallel_size)
    # Tensors that are averaged or new are float32, so all are, unless asked otherwise.
    return base.plan(source, run, options), source.weights, run, DTYPES[args.dtype or "float32"]


def run(args: argparse.Namespace) -> str:
    """Do what the command line asks for; returns what to print.

    Raises:
        UserError: see `prepare` and `importing.write`.
    """
    plan, weights, config, dtype = prepare(args)
    numel, bars = sum(map(math.prod, plan.shapes.values())), {}

    def progress(what: str, handled: int) -> None:
        if what not in bars:
            for bar in bars.values():
                bar.close()
            bars[what] = tqdm(total=numel, desc=what, unit=" values", unit_scale=True, mininterval=0.5)
        bars[what].update(handled)

    try:
        measured = importing.write(
            plan, weights, args.target, config, dtype=dtype, verify=args.verify, overwrite=args.overwrite,
            progress=progress,
        )  # fmt: skip
    finally:
        for bar in bars.values():
            bar.close()
    lines = [summary(plan, weights, measured), f"table of all tensors: {args.target / TABLE}"] if args.base else []
    ranks = args.tensor_model_parallel_size * args.pipeline_model_parallel_size
    verified = "verified" if args.verify else "not verified (--verify does)"
    return "\n".join([*lines, f"wrote {args.target}: {ranks} file(s), {verified}"])


def main() -> None:
    """Parse arguments and import."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a release's folder or its transformer/; with --from the base model")
    parser.add_argument("target", type=Path, help="folder of the new checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings of the recipe")
    parser.add_argument("--from", dest="base", choices=BASE_MODELS, help="the kind of base model that SOURCE is")
    parser.add_argument("--config", metavar="RECIPE", help="recipe of the run; its model must fit the source")
    for name in ("tensor", "pipeline"):
        parser.add_argument(f"--{name}-model-parallel-size", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--dtype", choices=DTYPES, help="of all tensors; default: the release's; float32 with --from")
    parser.add_argument(
        "--fresh",
        action="append",
        default=[],
        metavar="NAME",
        help="start tensors anew whose names begin so; repeatable",
    )
    parser.add_argument(
        "--guidance-scale", type=float, metavar="X", help="fix HunyuanVideo's embedded guidance at X (default: 6)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read back and compare tensor by tensor before publishing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is at TARGET")
    print(run(parser.parse_intermixed_args()))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"import_hf: {error}")
