"""Measure block sizes of the Triton window attention on this GPU: a line for each, then the fastest of each kernel.

What is fastest goes to the front of its row in phantom_mega/kernels/blocks.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from phantom_mega.attention import Windows
from phantom_mega.errors import UserError
from phantom_mega.geometry import SampleShape, token_grid
from phantom_mega.windows import WindowSpec, plan_windows

EXAMPLES = """examples:
  python tools/tune_attention.py
  python tools/tune_attention.py --frames 121 --height 720 --width 1280 --references 4 --heads 6
"""


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=81, help="of the video, in pixels' time (default: 81)")
    parser.add_argument("--height", type=int, default=480, help="in pixels (default: 480)")
    parser.add_argument("--width", type=int, default=832, help="in pixels (default: 832)")
    parser.add_argument("--references", type=int, default=1, help="reference images (default: 1)")
    parser.add_argument("--text", type=int, default=256, help="text tokens (default: 256)")
    parser.add_argument("--window-frames", type=int, default=9, help="latent frames of a window (default: 9)")
    parser.add_argument("--heads", type=int, default=24, help="heads on this GPU (default: 24)")
    parser.add_argument("--head-dim", type=int, default=128, help="channels of a head (default: 128)")
    args = parser.parse_args()
    shape = SampleShape(*token_grid(args.frames, args.height, args.width), args.references, args.text)
    if not torch.cuda.is_available():
        raise UserError("needs an NVIDIA GPU: the sizes are chosen by measuring")
    # Not before: on a machine without triton the message above is the better one.
    from phantom_mega.kernels.tune import fastest, measure

    plan = plan_windows([shape], WindowSpec(args.window_frames), False, shape.visual_tokens, args.text)
    windows = Windows.from_plan(plan, [args.head_dim, 0, 0], 1e4, "cuda")
    J = shape.visual_tokens + args.text
    tensors = torch.randn(4, J, args.heads, args.head_dim, device="cuda", dtype=torch.bfloat16)
    print(f"{torch.cuda.get_device_name()}, bf16, {J} tokens, {args.heads} heads of {args.head_dim}, {args}")
    timings = measure(*tensors, windows)
    for timing in timings:
        spent = "does not fit" if timing.milliseconds is None else f"{timing.milliseconds:.3f} ms"
        print(f"{timing.kernel:7} {timing.blocks}  {spent}")
    for kernel, timing in fastest(timings).items():
        print(f"fastest {kernel}: {timing.blocks}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"tune_attention: {error}")
