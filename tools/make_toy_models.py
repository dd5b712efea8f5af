"""Train what the toy world is measured and conditioned with: a VAE, a judge that reads videos, and a tiny CLIP."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.errors import UserError
from phantom_mega.toyworld.models import REPORT, ModelSettings, make_models

EXAMPLES = """examples:
  python tools/make_toy_models.py --output models/toy
  python tools/make_toy_models.py --output models/toy --judge-steps 3000      # the others stay as they are
  python tools/make_toy_models.py --output /tmp/quick --judge-steps 50 --clip-steps 50 --vae-videos 20 --samples 20

What it writes, each with its accuracy on subjects that training data never shows:
  OUTPUT/vae      for conditioning.vae=OUTPUT/vae
  OUTPUT/clip     for conditioning.vision_encoder=OUTPUT/clip
  OUTPUT/judge    reads who is where in a video and what is done, for the scores
  OUTPUT/report.json   all accuracies
Running it again keeps what the same settings made.
"""


def main(words: list[str] | None = None) -> None:
    """Parse arguments (those of the command line if None), make, tell."""
    usual = ModelSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder for vae/, judge/, clip/ and report.json")
    add("--judge-steps", type=int, default=usual.judge_steps, help="training steps (default: %(default)s)")
    add("--clip-steps", type=int, default=usual.clip_steps, help="training steps (default: %(default)s)")
    add("--clip-pool", type=int, default=usual.clip_pool, help="images that it is trained on (default: %(default)s)")
    add("--latent-channels", type=int, default=usual.latent_channels, help="of the VAE (default: %(default)s)")
    add("--vae-videos", type=int, default=usual.vae_videos, help="that it is fitted on (default: %(default)s)")
    add("--samples", type=int, default=usual.samples, help="held-out samples to measure on (default: %(default)s)")
    add("--seed", type=int, default=usual.seed, help="of everything (default: %(default)s)")
    args = vars(parser.parse_args(words))
    output = args.pop("output")
    report = make_models(output, ModelSettings(**args))
    vae, clip = report["vae"], report["clip"]["zero_shot"]
    print(f"vae    PSNR {vae['psnr']:.1f} dB, first frames {vae['first_frame_psnr']:.1f} dB")
    for actors, measured in report["judge"].items():
        for condition in ("sharp", "blurred", "vae", "reference"):
            told = measured[condition]
            names = ("shape", "texture", "part", "motion", "background", "count", "retrieval")
            text = "  ".join(f"{name} {told[name]['accuracy']:.2f}" for name in names if name in told)
            print(f"judge  {actors}, {condition:<9} {text}")
    print("clip   " + "  ".join(f"{name} {value:.2f}" for name, value in clip.items()) + "  (zero-shot)")
    print(f"wrote {output / REPORT}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"make_toy_models: {error}")
