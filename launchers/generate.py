"""Generate videos of given subjects from an export or a training checkpoint.

Examples:
  python launchers/generate.py --checkpoint runs/s2 --ref-image cat.png,hat.jpg --prompt "A cat puts on a hat." \\
      --size 832*480 --frame-num 81 --output cat.mp4
  python launchers/generate.py --checkpoint phantom_7b --cases cases.json --output videos
  torchrun --nproc-per-node 8 launchers/generate.py --checkpoint phantom_7b --cases cases.json --output videos
  torchrun --nproc-per-node 4 launchers/generate.py --checkpoint phantom_7b --ranks-per-video 4 --prompt "..." ...

--cases reads OpenS2V-Eval's input ({id: {img_paths, prompt, class_label}}) and writes <id>.mp4; what is there already
is kept, a case that fails is recorded in <id>.error.json and the rest is done. Under torchrun or srun cases are spread
over the processes. Exit code: 0 all done, 1 some cases failed, 2 bad input.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.errors import SetupError, UserError
from phantom_mega.generation.rephrase import add_arguments, from_arguments

OFFLOAD = ("none", "model", "sequential")


def parse_size(text: str) -> tuple[int, int]:
    """`WIDTH*HEIGHT` (or with an x) to (width, height).

    Raises:
        UserError: it is something else.
    """
    match = re.fullmatch(r"(\d+)\s*[*xX]\s*(\d+)", text.strip())
    if not match:
        raise UserError(f"--size {text!r} is not WIDTH*HEIGHT, e.g. 832*480")
    return int(match[1]), int(match[2])


def build_parser() -> argparse.ArgumentParser:
    """All options; those of sampling have the names that users of Phantom know."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, help="an export, a training run, or one of its iter_... folders")
    add("--weights", choices=("ema", "raw"), help="of a training checkpoint; default: the average where there is one")
    add("--prompt", help="what happens, and how the subjects look")
    add("--ref-image", default="", help="0 to 4 reference images, separated by commas")
    add("--cases", type=Path, help="many videos: a JSON file in OpenS2V-Eval's input schema")
    add("--image-root", type=Path, help="folder of the cases' images; default: the JSON file's")
    add("--output", required=True, type=Path, help="a .mp4 file, or with --cases a folder")
    add("--negative-prompt", default="", help="what the unguided branches read; default: empty")
    add("--size", default="832*480", help="WIDTH*HEIGHT, multiples of 16; default: 832*480")
    add("--frame-num", type=int, default=81, help="frames, 4k+1; default: 81")
    add("--fps", type=float, help="frames per second of the file; default: of the training clips")
    add("--seed", type=int, default=0, help="of the noise; default: 0")
    add("--sample-steps", type=int, default=50, help="Euler steps; default: 50")
    add("--sample-guide-scale-img", type=float, default=3.0, help="guidance by the references; default: 3")
    add("--sample-guide-scale-text", type=float, default=7.5, help="guidance by the prompt; default: 7.5")
    add("--guidance-batching", default="batched", help="`sequential` takes a third of the memory; default: batched")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, float32 on the CPU")
    add("--offload", choices=OFFLOAD, default="none", help="keep weights on the CPU: whole models, or single layers")
    add("--vae-tiling", action="store_true", help="decode tile by tile; less memory, also below 720p")
    add("--ranks-per-video", type=int, default=1, help="processes that share one video (by attention heads)")
    add("--overwrite", action="store_true", help="replace videos that were made with other settings")
    add("--skip-hashes", action="store_true", help="do not compare a checkpoint's files with their digests")
    add_arguments(parser)
    return parser


def collect_cases(args: argparse.Namespace) -> tuple[list, Path]:
    """(cases, output folder) that the command line asks for.

    Raises:
        UserError: neither or both of --prompt and --cases, an unusable file.
    """
    from phantom_mega.generation.cases import Case, read_cases

    if (args.prompt is None) == (args.cases is None):
        raise UserError("give either --prompt (with --ref-image) or --cases")
    if args.cases is not None:
        if args.ref_image:
            raise UserError("--ref-image goes with --prompt; a case names its images itself")
        if args.output.suffix == ".mp4":
            raise UserError(f"--output {args.output}: with --cases name a folder")
        return read_cases(args.cases, args.image_root), args.output
    if args.output.suffix != ".mp4":
        raise UserError(f"--output {args.output}: name a .mp4 file")
    images = tuple(path.strip() for path in args.ref_image.split(",") if path.strip())
    return [Case(args.output.stem, args.prompt, images)], args.output.parent


def make_rephrase(args: argparse.Namespace, placement, group):
    """From a case to its prompt for the model; None for `--rephrase none`.

    Ranks that share a video get the prompt of the one that leads: asked twice, a model may answer otherwise.
    """
    if args.rephrase == "none":
        from_arguments(args)
        return None
    from PIL import Image

    from phantom_mega.images import open_reference

    rephraser = from_arguments(args, placement.device(args.device)) if placement.leads else None

    def rephrase(case):
        # An unreadable image is the pipeline's to tell, on every rank alike.
        images = [Image.fromarray(open_reference(path, i + 1)) for i, path in enumerate(case.images)]
        found = [None]
        if placement.leads:
            try:
                found = [rephraser.rephrase(case.prompt, images, case.labels)]
            except SetupError as error:
                found = [str(error)]
        if group is not None:
            import torch.distributed as dist

            first = placement.group * placement.ranks_per_video
            dist.broadcast_object_list(found, src=first, group=group)
        if isinstance(found[0], str):
            raise SetupError(found[0])
        return found[0]

    return rephrase


def prepare(args: argparse.Namespace, placement) -> tuple:
    """(pipeline on its device, settings that name its weights, group of ranks that share a video or None).

    Raises:
        UserError: the checkpoint or the device cannot be used.
    """
    import torch

    from phantom_mega.generation.load import load_pipeline

    device = placement.device(args.device)
    name = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    pipe, origin = load_pipeline(args.checkpoint, getattr(torch, name), args.weights, verify=not args.skip_hashes)
    if args.offload != "none" and device.type != "cuda":
        raise UserError(f"--offload {args.offload} needs a GPU; there is none to spare memory of")
    if args.offload == "model":
        pipe.enable_model_cpu_offload(gpu_id=device.index)
    elif args.offload == "sequential":
        pipe.enable_sequential_cpu_offload(gpu_id=device.index)
    else:
        pipe.to(device)
    pipe.load_missing()
    if args.vae_tiling:
        pipe.enable_vae_tiling()
    group = placement.open_group(device) if placement.ranks_per_video > 1 else None
    if group is not None:
        pipe.transformer.enable_head_parallel(group)
    pipe.set_progress_bar_config(disable=not (placement.leads and sys.stderr.isatty()), leave=False)
    return pipe, origin | {"dtype": name}, group


def main() -> int:
    """Parse, load, generate; returns the exit code."""
    args = build_parser().parse_args()
    width, height = parse_size(args.size)
    cases, output = collect_cases(args)

    from phantom_mega.generation.placement import Placement
    from phantom_mega.generation.run import Job, draw_sheet, generate_cases

    placement = Placement.from_environment(args.ranks_per_video)
    pipe, origin, group = prepare(args, placement)
    sampling = {
        "negative_prompt": args.negative_prompt,
        "num_inference_steps": args.sample_steps,
        "image_guidance_scale": args.sample_guide_scale_img,
        "text_guidance_scale": args.sample_guide_scale_text,
        "guidance_batching": args.guidance_batching,
    }
    job = Job(
        output, height, width, args.frame_num, sampling, args.seed, args.fps or pipe.config.frame_rate, origin,
        rephrase=make_rephrase(args, placement, group),
        rephraser={"backend": args.rephrase, "model": args.rephrase_model},
        overwrite=args.overwrite, leads=placement.leads,
        report=lambda line: print(line, flush=True) if placement.leads else None,
    )  # fmt: skip
    # What holds for every video is refused before the first.
    pipe.check_inputs(
        "", args.negative_prompt, [], (height, width, args.frame_num), args.sample_steps, args.guidance_batching, "np"
    )
    todo = job.todo(cases)
    if placement.ranks_per_video > 1:
        import torch.distributed as dist

        dist.barrier()  # nobody writes before everybody has looked
    # Shared out before looking at what is done: a process that starts late sees the others' first videos.
    share = cases[placement.group :: placement.groups]
    mine = [case for case in share if case in todo]
    job.report(f"{len(cases)} case(s), {len(share)} for this process, {len(share) - len(mine)} of them done before")
    failed = generate_cases(pipe, mine, job, strict=placement.ranks_per_video > 1)
    if placement.leads:
        sheet = draw_sheet(cases, output) if args.cases else None  # one video's card is its sheet
        job.report(f"{len(mine) - len(failed)} done, {len(failed)} failed" + (f"; {sheet}" if sheet else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what is left", file=sys.stderr)
        sys.exit(130)
