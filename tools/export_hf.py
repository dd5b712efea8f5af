"""Write a training checkpoint as a folder that diffusers opens without this project (docs/release.md).

    DiffusionPipeline.from_pretrained(OUTPUT, trust_remote_code=True)
Any layout, averaged (EMA) or raw weights. Memory is bounded by one file of weights, except for the check at the end.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from huggingface_hub import HfApi
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.checkpoint.describe import size
from phantom_mega.errors import UserError
from phantom_mega.release.card import check_license, write_card
from phantom_mega.release.components import ABSENT, MODES
from phantom_mega.release.export import DTYPES, Options, Source, open_source, write_export
from phantom_mega.release.verify import Verified, free_memory, needed_memory, verify

EXAMPLES = """examples:
  python tools/export_hf.py runs/stage2 exports/mine --license apache-2.0
  python tools/export_hf.py runs/stage2/checkpoints/iter_0020000 exports/mine --weights raw --dtype float32
  python tools/export_hf.py runs/stage2 exports/mine --push-to-hub me/mine      # private, unless --public

OUTPUT is written under a hidden name, checked and renamed, so it is whole or absent; killed and started again, it
begins anew. The check opens OUTPUT in a process without this project and compares a forward pass with the megatron
model; it needs the model in memory and is left out, with a word, where that is not free.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("source", type=Path, help="a run's folder (its latest checkpoint) or an iter_... folder")
    result.add_argument("output", type=Path, help="the new folder")
    result.add_argument("--weights", choices=("ema", "raw"), help="default: ema where there is one")
    result.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 for a run in bf16, else float32")
    result.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of a file of weights (default: 5GB)")
    result.add_argument(
        "--components",
        choices=MODES,
        help="copy all encoders or refer to them by name; default: copy what is local, refer to what is on the hub",
    )
    result.add_argument("--license", help="identifier for the model card, as apache-2.0; default: the card names none")
    result.add_argument("--skip-hashes", action="store_true", help="compare the source's file sizes alone, not digests")
    result.add_argument("--skip-verify", action="store_true", help="leave out the check at the end")
    result.add_argument("--overwrite", action="store_true", help="replace an export that is at OUTPUT")
    result.add_argument("--push-to-hub", metavar="REPO", help="upload to this repository, as me/mine")
    result.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    return result


def export(args: argparse.Namespace) -> str:
    """What the command line asks for; returns what to tell the user.

    Raises:
        UserError: see `open_source`, `write_export` and `verify`; or the upload failed.
    """
    check_license(args.license)
    if args.public and not args.push_to_hub:
        raise UserError("--public says how --push-to-hub makes a repository; give both or none")
    options = Options(
        args.weights, args.dtype, args.max_shard_size, args.components, not args.skip_hashes, args.overwrite
    )
    source = open_source(args.source, options)
    said: list[str] = []
    bar = tqdm(total=source.nbytes, desc="write", unit="B", unit_scale=True, unit_divisor=1024, mininterval=0.5)

    def finish(folder: Path, index: dict) -> None:
        bar.close()
        said.extend(unreachable(source, index))
        verified = None if args.skip_verify else checked(source, folder, said)
        if args.skip_verify:
            said.append("not verified (--skip-verify)")
        write_card(
            folder, source, index, name=args.push_to_hub or args.output.name, command=command_line(args),
            license_name=args.license, verified=verified,
        )  # fmt: skip

    with bar:
        write_export(source, args.output, options, finish, lambda what, nbytes: bar.update(nbytes))
    kind = f"{source.weights} weights of iteration {source.state['iteration']}"
    files = len(source.split.filename_to_tensors)
    dtype = str(source.dtype).removeprefix("torch.")
    said.insert(0, f"wrote {args.output}: {kind}, {dtype}, {size(source.nbytes)} in {files} file(s)")
    if args.push_to_hub:
        said.append(f"uploaded to {push(args.output, args.push_to_hub, private=not args.public)}")
    return "; ".join(said)


def unreachable(source: Source, index: dict) -> list[str]:
    """A word on every encoder that the export refers to by a path of this machine."""
    names = source.config.conditioning
    fields = {"vae": names.vae, "text_encoder": names.text_encoder, "image_encoder": names.vision_encoder}
    return [
        f"its {component} is not in it but at {name} on this machine (--components copy takes it along)"
        for component, name in fields.items()
        if index[component] == ABSENT and Path(name).exists()
    ]


def checked(source: Source, folder: Path, said: list[str]) -> Verified | None:
    """Verify if memory allows it; says either."""
    needed, free = needed_memory(source, folder), free_memory()
    if needed > free:
        said.append(f"not verified: that takes about {size(needed)} of memory and {size(free)} are free")
        return None
    verified = verify(source, folder)
    count = sum(verified.tensors.values())
    whole = "it makes a video" if verified.pipeline else "encoders that it refers to were not loaded"
    said.append(
        f"verified: {count} tensors read back without this project, {whole}, velocities within "
        f"{verified.difference:.2g} of the training model's (up to {verified.scale:.3g})"
    )
    return verified


def command_line(args: argparse.Namespace) -> str:
    """How this export is made again; folders by name alone."""
    words = ["python", "tools/export_hf.py", args.source.resolve().name, args.output.name]
    for name in ("weights", "dtype", "components", "license"):
        if getattr(args, name):
            words += [f"--{name}", getattr(args, name)]
    if args.max_shard_size != "5GB":
        words += ["--max-shard-size", args.max_shard_size]
    return shlex.join(words)


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload a whole export; returns its address.

    Raises:
        UserError: it failed; the export is still there.
    """
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export")
    except Exception as error:  # the hub's client raises nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{folder} is whole, but was not uploaded: {reason}; try `hf upload {repository} {folder}`"
        ) from None
    return str(url)


def main() -> None:
    """Parse arguments and export."""
    print(export(parser().parse_args()))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"export_hf: {error}")
