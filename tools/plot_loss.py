"""Draw the loss of one or more runs, one after another, as a PNG.

Examples:
  python tools/plot_loss.py runs/quickstart/stage1 runs/quickstart/stage2 --output runs/quickstart/loss.png
  python tools/plot_loss.py runs/stage1_256p --window 500 --output loss.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from phantom_mega.errors import UserError
from phantom_mega.metrics import read_metrics


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the `window` values around every point (fewer at the ends)."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    places = np.arange(len(values))
    starts = np.maximum(places - window // 2, 0)
    ends = np.minimum(places + (window + 1) // 2, len(values))
    return (total[ends] - total[starts]) / (ends - starts)


def plot(runs: list[Path], output: Path, window: int) -> str:
    """Write the picture; returns one line per run with its first and last mean loss."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 6.5), sharex=True, height_ratios=[3, 1], constrained_layout=True
    )
    offset, lines = 0, []
    for color, run in zip(plt.rcParams["axes.prop_cycle"].by_key()["color"] * 9, runs):
        metrics = read_metrics(run)
        steps = np.array([m["iteration"] for m in metrics]) + offset
        loss = np.array([m["loss"] for m in metrics])
        ends = min(50, len(loss))
        first, last = loss[:ends].mean(), loss[-ends:].mean()
        lines.append(f"{run}: {len(loss)} iterations, first {ends}: {first:.4f}, last {ends}: {last:.4f}")
        top.plot(steps, loss, color=color, alpha=0.2, linewidth=0.8)
        top.plot(steps, smooth(loss, window), color=color, label=f"{run.name}: {first:.3f} to {last:.3f}")
        bottom.plot(steps, [m["grad_norm"] for m in metrics], color=color, linewidth=0.8)
        if offset:
            for axes in (top, bottom):
                axes.axvline(offset, color="gray", linestyle=":", linewidth=1)
        offset = steps[-1]
    top.set_ylabel(f"flow loss (mean of {window})")
    top.set_title("Rectified-flow loss on video tokens")
    top.grid(alpha=0.3)
    top.legend(title="mean of the first and last 50 iterations")
    bottom.set(ylabel="gradient norm", xlabel="iteration", yscale="log")
    bottom.grid(alpha=0.3)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=130)
    return "\n".join(lines)


def main() -> int:
    """Parse and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, in order")
    parser.add_argument("--output", type=Path, required=True, help="the PNG")
    parser.add_argument("--window", type=int, default=25, help="iterations of the moving mean [25]")
    arguments = parser.parse_args()
    try:
        print(plot(arguments.runs, arguments.output, arguments.window))
        print(f"wrote {arguments.output}")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
