"""The rephraser: a prompt that tells the subjects apart by what the reference images show (paper 3.3, supplement 3)."""

from __future__ import annotations

import argparse

from phantom_mega.errors import UserError
from phantom_mega.generation.rephrase.base import Rephrased, Rephraser
from phantom_mega.vlm import BACKENDS, Options, open_model

__all__ = ["Rephrased", "Rephraser", "add_arguments", "from_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a command that can rephrase."""
    group = parser.add_argument_group("rephraser (docs/rephraser.md)")
    group.add_argument(
        "--rephrase", choices=BACKENDS, default="none", help="who writes the prompt again; default: none"
    )
    group.add_argument("--rephrase-endpoint", metavar="URL", help="of openai, as http://localhost:8000/v1")
    group.add_argument("--rephrase-model", metavar="NAME", help="name at the endpoint, or a model of transformers")
    group.add_argument(
        "--rephrase-key-env", metavar="VARIABLE", default="OPENAI_API_KEY",
        help="environment variable that holds the key; default: OPENAI_API_KEY",
    )  # fmt: skip
    group.add_argument("--rephrase-timeout", type=float, default=120.0, help="seconds for an answer; default: 120")


def from_arguments(args: argparse.Namespace, device="cpu", dtype=None) -> Rephraser:
    """The rephraser that the command line names.

    Args:
        args: parsed options of `add_arguments`.
        device, dtype: of a model in this process.

    Raises:
        UserError: something is missing or of no use.
    """
    if args.rephrase == "none" and (args.rephrase_endpoint or args.rephrase_model):
        raise UserError("--rephrase-endpoint and --rephrase-model need --rephrase openai or transformers")
    options = Options(
        args.rephrase, args.rephrase_model, args.rephrase_endpoint, args.rephrase_key_env, args.rephrase_timeout
    )
    return Rephraser(open_model(options, "--rephrase", device, dtype))
