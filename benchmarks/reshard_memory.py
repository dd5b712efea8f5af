"""Measure the memory of `tools/reshard_checkpoint.py` on a synthetic checkpoint: it must follow the largest tensor.

Writes a checkpoint with optimizer and EMA, reshards it with --verify in a process of its own, and reads that process's
peak resident memory from the kernel; what the same command needs for a checkpoint of a few KB is subtracted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.config import ModelConfig
from tests.checkpoint.helpers import write_checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = """examples:
  python benchmarks/reshard_memory.py                                           # 7.5 GiB, largest tensor 64 MiB
  python benchmarks/reshard_memory.py --num-layers 4 --hidden-size 512 --folder /scratch
"""
# Runs a command line and prints the peak resident memory of its process, in KiB.
_MEASURE = (
    "import resource, subprocess, sys\n"
    "code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    "sys.exit(code)\n"
)


def reshard(source: Path, target: Path, *options: str) -> tuple[int, float]:
    """(peak resident bytes, seconds) of one run of the tool."""
    command = [sys.executable, "-c", _MEASURE, sys.executable, str(REPOSITORY / "tools/reshard_checkpoint.py")]
    started = time.monotonic()
    done = subprocess.run([*command, str(source), str(target), *options], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout) * 1024, time.monotonic() - started


def measure(folder: Path, model: ModelConfig, tensor: int, pipeline: int) -> dict:
    """Write, reshard to one layout and back; all numbers in bytes and seconds."""
    small = ModelConfig(num_layers=pipeline, hidden_size=128, num_attention_heads=4, ffn_hidden_size=256)
    layout = [f"--tensor-model-parallel-size={tensor}", f"--pipeline-model-parallel-size={pipeline}", "--verify"]
    baseline, _ = reshard(write_checkpoint(folder / "small", small, distinct=False), folder / "small_cut", *layout)
    source = write_checkpoint(folder / "large", model, distinct=False)
    entries = CheckpointReader(source).tensors.values()
    there, seconds = reshard(source, folder / "cut", *layout)
    back, _ = reshard(folder / "cut", folder / "whole", "--verify")
    largest = max(entry.nbytes for entry in entries)
    return {
        "checkpoint": sum(entry.nbytes for entry in entries),
        "largest": largest,
        "baseline": baseline,
        "there": there - baseline,
        "back": back - baseline,
        "tensors_of_peak": max(there, back, baseline) / largest - baseline / largest,
        "seconds": seconds,
    }


def main() -> None:
    """Parse arguments, measure, print a line of JSON and a sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-layers", type=int, default=8, help="blocks of the synthetic model (default: 8)")
    parser.add_argument("--hidden-size", type=int, default=2048, help="its width, a multiple of 128 (default: 2048)")
    parser.add_argument("--tensor-model-parallel-size", type=int, default=4, metavar="N", help="default: 4")
    parser.add_argument("--pipeline-model-parallel-size", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--folder", type=Path, help="where to write; needs three times the checkpoint's size")
    args = parser.parse_args()
    C = args.hidden_size
    model = ModelConfig(
        num_layers=args.num_layers, hidden_size=C, num_attention_heads=C // 32, ffn_hidden_size=4 * C
    )  # head dim 32, as ModelConfig's rope_axes_dim
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = measure(Path(folder), model, args.tensor_model_parallel_size, args.pipeline_model_parallel_size)
    print(json.dumps(result))
    mib = {name: value / 2**20 for name, value in result.items()}
    print(
        f"checkpoint {mib['checkpoint']:,.0f} MiB, largest tensor {mib['largest']:,.0f} MiB: peak over the baseline of "
        f"{mib['baseline']:,.0f} MiB is {mib['there']:,.0f} MiB cutting and {mib['back']:,.0f} MiB joining "
        f"({result['tensors_of_peak']:.2f} largest tensors); cutting and verifying took {result['seconds']:.0f} s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
