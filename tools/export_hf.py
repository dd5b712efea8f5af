"""Export a training checkpoint as a diffusers folder that opens without this project, on one CPU process.

Memory is bounded by about twice a shard; the closing check, which loads the model twice, is left out where memory would
not do (or with --skip-verify).
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.errors import UserError
from phantom_mega.release import verify
from phantom_mega.release.components import CHOICES
from phantom_mega.release.export import Options, export, new_folder, open_checkpoint, weights_nbytes

EXAMPLES = """examples:
  python tools/export_hf.py runs/stage2 exports/phantom_3b --dtype bfloat16 --license apache-2.0
  python tools/export_hf.py runs/stage2/checkpoints/iter_0020000 exports/raw --weights raw --max-shard-size 2GB
  python tools/export_hf.py runs/stage2 exports/phantom_3b --push-to-hub my-name/phantom_3b

Then, anywhere: DiffusionPipeline.from_pretrained("exports/phantom_3b", trust_remote_code=True)
The folder is written under a hidden name, checked and renamed, so it is whole or absent.
"""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", type=Path, help="a run's folder (its latest checkpoint) or an iter_... folder")
    add("target", type=Path, help="the export's folder")
    add("--weights", choices=("ema", "raw"), help="default: the average where there is one")
    add("--dtype", choices=DTYPES, default="float32", help="of the weights; default: float32")
    add("--max-shard-size", default="5GB", help="of a weights file, as 5GB or 500MB; default: 5GB")
    add("--components", choices=CHOICES, default="auto",
        help="encoders: `auto` copies local ones and names those on the hub; default: auto")  # fmt: skip
    add("--license", default="other", help="the card's license field, as apache-2.0; default: other")
    add("--skip-hashes", action="store_true", help="compare the checkpoint's file sizes alone, not digests")
    add("--skip-verify", action="store_true", help="do not open the export and compare it with the megatron model")
    add("--overwrite", action="store_true", help="replace an export that is at TARGET")
    add("--push-to-hub", metavar="REPO", help="upload the export to this (private) repository of the Hugging Face hub")
    return parser


def check_size(text: str) -> str:
    """A size as the hub writes it.

    Raises:
        UserError: it is something else.
    """
    if not re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]B", text.strip().upper()):
        raise UserError(f"--max-shard-size {text}: write a number and KB, MB, GB or TB, as 5GB")
    return text.strip().upper()


def prove(args: argparse.Namespace, folder: Path, checkpoint: Path, weights: str) -> str:
    """Check the export in `folder`; returns what can be said of it.

    Raises:
        UserError: it does not load, or computes something else.
    """
    if args.skip_verify:
        return "not checked (--skip-verify)"
    nbytes = weights_nbytes(checkpoint, torch.float32)
    if not verify.fits(nbytes, folder):
        needed = verify.memory_needed(nbytes, folder) / 2**30
        return f"not checked: the check takes about {needed:.0f} GiB of memory, which is not free here"
    print("checking: opening the export without this project, running the megatron model", file=sys.stderr)
    difference = verify.verify(folder, checkpoint, weights, DTYPES[args.dtype])
    return f"checked: loads strictly without this project, differs from the megatron model by {difference:.1e}"


def push(folder: Path, repository: str) -> str:
    """Upload a finished export; returns its address.

    Raises:
        UserError: the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api = HfApi()
        url = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a phantom_mega export")
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} is exported, but {repository} was not uploaded: {reason}") from None
    return str(url)


def main() -> None:
    """Parse arguments, export, prove, publish."""
    args = build_parser().parse_args()
    checkpoint = open_checkpoint(args.source, hashes=not args.skip_hashes)
    # For everybody to read: without the folders of this machine.
    words = [word if word.startswith("-") else Path(word).name for word in sys.argv[1:]]
    command = shlex.join(["python", "tools/export_hf.py", *words])
    size = check_size(args.max_shard_size)
    options = Options(args.weights, DTYPES[args.dtype], size, args.components, args.license, command)
    with new_folder(args.target, args.overwrite) as folder:
        total = weights_nbytes(checkpoint, options.dtype)
        with tqdm(total=total, desc="write", unit="B", unit_scale=True, unit_divisor=1024, mininterval=0.5) as bar:
            origin = export(checkpoint, folder, options, bar.update)
        said = prove(args, folder, checkpoint, origin.weights)
    print(f"wrote {args.target}: {origin.weights} weights of {checkpoint}; {said}")
    if args.push_to_hub:
        print(f"uploaded to {push(args.target, args.push_to_hub)}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"export_hf: {error}")
