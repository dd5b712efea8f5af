"""Fit the PCA basis of LinearVideoVAE on real clips and measure it on one that was held out."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.conditioning.linear_vae import PATCH_SIDE, SHIPPED, TIME_STRIDE, LinearVideoVAE
from phantom_mega.data.samples import SOURCE_VIDEOS, decode_video, source_video
from phantom_mega.errors import UserError

EXAMPLES = """examples:
  python tools/fit_linear_vae.py                        # what the package ships: held out is carphone
  python tools/fit_linear_vae.py --held-out bikes --output /tmp/basis.safetensors
  python tools/fit_linear_vae.py --measure              # no fit, measure the shipped basis
"""


def load(video_id: str, short_side: int) -> torch.Tensor:
    """A source video as float32 [3, 4k + 1, 8h, 8w] in [-1, 1], cropped to the sizes that the VAE takes."""
    frames = decode_video(source_video(video_id), short_side)
    count, height, width = frames.shape[:3]
    count, height, width = (
        (count - 1) // TIME_STRIDE * TIME_STRIDE + 1,
        height // PATCH_SIDE * PATCH_SIDE,
        width // PATCH_SIDE * PATCH_SIDE,
    )
    return torch.from_numpy(frames[:count, :height, :width].copy()).movedim(-1, 0).float() / 127.5 - 1


@torch.no_grad()
def measure(vae: LinearVideoVAE, video: torch.Tensor) -> dict[str, float]:
    """Numbers of a round trip over windows of 17 frames (as a training clip has).

    Returns:
        `psnr`: of the round trip, in dB; `first_psnr`: of first frames alone; `variance`: of the scaled latents;
        `still_error`: |first latent - later latent| / |later latent| over still videos made of the windows' first
        frames; `still_variance`: the square of that difference as a fraction of the later latents' variance.
    """
    errors, first_errors, latents, first, later = [], [], [], [], []
    for start in range(0, video.shape[1] - 16, 17):
        clip = video[None, :, start : start + 17]
        z = vae.encode(clip).latent_dist.mode()
        back = vae.decode(z).sample.clamp(-1, 1)
        error = ((back - clip) / 2).square()
        errors.append(error.mean())
        first_errors.append(error[:, :, 0].mean())
        latents.append(z[:, :, 1:] * vae.config.scaling_factor)
        still = vae.encode(clip[:, :, :1].expand(-1, -1, 5, -1, -1)).latent_dist.mode()
        first.append(still[:, :, 0])
        later.append(still[:, :, 1])
    first, later = torch.cat(first), torch.cat(later)
    difference = (first - later).square().sum()
    spread = (later - later.mean((0, 2, 3), keepdim=True)).square().sum()
    return {
        "psnr": -10 * math.log10(torch.stack(errors).mean()),
        "first_psnr": -10 * math.log10(torch.stack(first_errors).mean()),
        "variance": float(torch.cat(latents).var()),
        "still_error": float((difference / later.square().sum()).sqrt()),
        "still_variance": float(difference / spread),
    }


def main() -> None:
    """Fit, write, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--held-out", choices=list(SOURCE_VIDEOS), default="carphone", help="clip left out of the fit")
    parser.add_argument("--output", type=Path, default=SHIPPED, help=f"file to write (default: {SHIPPED.name})")
    parser.add_argument("--channels", type=int, default=48, help="latent channels (default: 48)")
    parser.add_argument("--short-side", type=int, default=144, help="pixels of the shorter side (default: 144)")
    parser.add_argument("--measure", action="store_true", help="measure the shipped basis without fitting")
    args = parser.parse_args()
    videos = {name: load(name, args.short_side) for name in tqdm(SOURCE_VIDEOS, desc="decode", leave=False)}
    if args.measure:
        vae = LinearVideoVAE.shipped()
    else:
        vae = LinearVideoVAE.fit([video for name, video in videos.items() if name != args.held_out], args.channels)
        vae.save_file(args.output)
        print(f"wrote {args.output} ({args.output.stat().st_size / 1000:.0f} kB)")
    print(f"{'clip':<13} {'size':>9}  " + "  ".join(measure(vae, videos["carphone"])))
    for name, video in videos.items():
        numbers = measure(vae, video)
        size = f"{video.shape[3]}x{video.shape[2]}"
        text = "  ".join(f"{value:{len(key)}.3f}" for key, value in numbers.items())
        print(f"{name:<13} {size:>9}  {text}{'  held out' if name == args.held_out and not args.measure else ''}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"fit_linear_vae: {error}")
