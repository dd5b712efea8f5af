"""Rewrite a training checkpoint for another tensor- and pipeline-parallel layout, on one CPU process.

Training reads any checkpoint at any layout; this makes the files match, drops the optimizer, casts the weights or puts
their average (EMA) in their place. Memory is bounded by about three times the largest tensor, not by the model.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.checkpoint import integrity
from phantom_mega.checkpoint.folder import find_checkpoint
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.checkpoint.rewrite import Content, rewrite
from phantom_mega.checkpoint.sharding import ModelParallelLayout
from phantom_mega.config import RunConfig
from phantom_mega.config_io import load_run_config, to_yaml
from phantom_mega.errors import UserError
from phantom_mega.parallel_layout import check_layout, layers_per_chunk

EXAMPLES = """examples:
  python tools/reshard_checkpoint.py runs/stage1 runs/stage1_tp4 --tensor-model-parallel-size 4 --verify
  python tools/reshard_checkpoint.py runs/stage1 runs/averaged --model-only --ema --dtype bfloat16
  sbatch ... launchers/run.sh launchers/train.py --config stage2_720p train.load=runs/stage1_tp4

TARGET becomes the checkpoint's own folder; name it in train.load. It is written under a hidden name, hashed, compared
with the source (--verify) and renamed, so it is whole or absent; killed and started again, it begins anew.
A checkpoint without optimizer (--model-only) starts a new run with train.finetune=true.
"""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def target_config(config: RunConfig, tensor: int, pipeline: int, virtual: int | None) -> RunConfig:
    """The run's configuration with another model-parallel layout; settings that cannot hold there are adjusted.

    Raises:
        UserError: the model cannot be cut so.
    """
    parallel = dataclasses.replace(
        config.parallel,
        tensor_model_parallel_size=tensor,
        context_parallel_size=1,  # it shares no weights, so no file depends on it
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=virtual,
        sequence_parallel=config.parallel.sequence_parallel and tensor > 1,
        recompute_num_layers=None,
        cpu_offloading_num_layers=0,
    )
    check_layout(config.model, parallel, config.data)
    layers = layers_per_chunk(config.model, parallel)
    parallel.cpu_offloading_num_layers = min(config.parallel.cpu_offloading_num_layers, layers)
    if config.parallel.recompute_num_layers is not None:
        parallel.recompute_num_layers = min(config.parallel.recompute_num_layers, layers)
    return dataclasses.replace(config, parallel=parallel)


def reshard(args: argparse.Namespace) -> Path:
    """What the command line asks for; returns the new checkpoint's folder.

    Raises:
        UserError: the source, the layout or the target is not usable.
    """
    source = find_checkpoint(args.source)
    if source is None:
        raise UserError(f"{args.source} holds no checkpoint; name a run's folder or an iter_... folder")
    config = load_run_config(source / "config.yaml")
    layout = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    target = target_config(config, *layout, args.virtual_pipeline_model_parallel_size)
    problems = integrity.verify(source, hashes=not args.skip_hashes)
    if problems:
        raise UserError(f"{source} is damaged: {'; '.join(problems[:5])}")
    content = Content(args.model_only, args.ema, DTYPES.get(args.dtype))
    reader = CheckpointReader(source)
    nbytes = sum(reader.tensors[content.origin(key)].nbytes for key in content.keys(reader))
    del reader
    bars: dict[str, tqdm] = {}

    def progress(what: str, handled: int) -> None:
        if what not in bars:
            for bar in bars.values():
                bar.close()
            bars[what] = tqdm(total=nbytes, desc=what, unit="B", unit_scale=True, unit_divisor=1024, mininterval=0.5)
        bars[what].update(handled)

    sizes = ModelParallelLayout(config.model.num_layers, *layout, args.virtual_pipeline_model_parallel_size or 1)
    try:
        return rewrite(
            source, args.target, sizes, to_yaml(target), content, verify=args.verify, overwrite=args.overwrite,
            progress=progress,
        )  # fmt: skip
    finally:
        for bar in bars.values():
            bar.close()


def main() -> None:
    """Parse arguments and rewrite."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a run's folder (its latest checkpoint) or an iter_... folder")
    parser.add_argument("target", type=Path, help="folder of the new checkpoint")
    for name in ("tensor", "pipeline"):
        parser.add_argument(f"--{name}-model-parallel-size", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--virtual-pipeline-model-parallel-size",
        type=int,
        metavar="N",
        help="chunks per stage, for the interleaved schedule",
    )
    parser.add_argument("--model-only", action="store_true", help="leave the optimizer's state and the schedule out")
    parser.add_argument("--ema", action="store_true", help="put the average of the weights in their place")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="cast the weights (never the optimizer's state); default: as saved"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read back and compare tensor by tensor before publishing"
    )
    parser.add_argument("--skip-hashes", action="store_true", help="compare the source's file sizes alone, not digests")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is at TARGET")
    args = parser.parse_args()
    target = reshard(args)
    ranks = args.tensor_model_parallel_size * args.pipeline_model_parallel_size
    print(f"wrote {target}: {ranks} file(s), {'verified' if args.verify else 'not verified (--verify does)'}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"reshard_checkpoint: {error}")
