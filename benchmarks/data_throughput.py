"""Decode, resize and pack: this project's loader with each decoder, beside PyAV + torchvision, in one run on one CPU.

Examples:
  python tools/fetch_samples.py --output samples
  python benchmarks/data_throughput.py --video samples/bbb.mp4
  python benchmarks/data_throughput.py --video film.mp4 --clips 24 --frames 81 --threads 8 --json data.json

A data set is cut from the video first: clips at the video's own size, in VP9 and in H.264, each with one reference.
Then every way to read takes the same planned samples of 480p: `loader, pyav` and `loader, dali` are what training runs
(`PackLoader`: read from the shard, probe, decode, scale, crop, plan of packs), `PyAV + torchvision` is what a trainer
without it would write: decode every frame by PyAV, select, `torchvision` resize and crop, in as many threads. On a CPU
DALI decodes VP9 and no H.264. The ways take turns, round after round; their frames are compared first.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
PEER = "PyAV + torchvision"
CODECS = {"vp9": ("libvpx-vp9", "webm"), "h264": ("libx264", "mp4")}


def cut(video: Path, codec: str, clips: int, frames: int, folder: Path) -> None:
    """Write a data set of clips that follow each other, from a tenth of the video on."""
    import av
    from PIL import Image

    from phantom_mega.data.schema import Reference, ReferenceSource, Triplet
    from phantom_mega.data.shards import ShardWriter

    with av.open(str(video)) as container, ShardWriter(folder, tokenizer="none") as writer:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        container.seek(container.duration // 10)
        images = (frame.to_ndarray(format="rgb24") for frame in container.decode(stream))
        rate = round(float(stream.average_rate))
        for number in range(clips):
            group = list(itertools.islice(images, frames))
            if len(group) < frames:
                raise SystemExit(f"{video} is too short for {clips} clips of {frames} frames; ask for fewer")
            height, width = group[0].shape[:2]
            still = io.BytesIO()
            Image.fromarray(group[frames // 2][: height // 2, : width // 2]).save(still, "JPEG")
            source = ReferenceSource("video", number, (0, 0, width // 2, height // 2))
            described = (Reference("a corner", "others", "in", source, height // 2, width // 2),)
            triplet = Triplet(f"{codec}_{number:03d}", "a clip", f"part {number}", frames, float(rate), height, width,
                              codec, described, 4)  # fmt: skip
            writer.write(triplet, encode(group, codec, rate), CODECS[codec][1], [(still.getvalue(), "jpg")])


def encode(images: list, codec: str, rate: int) -> bytes:
    """Frames as an encoded clip."""
    import av

    name, form = CODECS[codec]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as output:
        stream = output.add_stream(name, rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"deadline": "realtime", "cpu-used": "8"} if codec == "vp9" else {"preset": "veryfast"}
        for image in images:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def peer_video(sample, raw):
    """float32 [3, F, height, width] of a planned sample by PyAV and torchvision."""
    import av
    import torch
    from torchvision.transforms.v2 import functional as V

    with av.open(io.BytesIO(raw.clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    video = torch.stack([torch.from_numpy(frames[i]) for i in sample.frame_indices]).permute(0, 3, 1, 2)
    scale = max(sample.height / video.shape[2], sample.width / video.shape[3])
    size = [max(sample.height, round(video.shape[2] * scale)), max(sample.width, round(video.shape[3] * scale))]
    video = V.center_crop(V.resize(video, size, antialias=True), [sample.height, sample.width])
    return video.permute(1, 0, 2, 3).float() / 127.5 - 1


def peer_sample(sample, raw):
    """The clip and its references, as a trainer without this project's loader would read them."""
    import numpy as np
    import torch
    from PIL import Image
    from torchvision.transforms.v2 import functional as V

    references = []
    for number in sample.references:
        image = torch.from_numpy(np.array(Image.open(io.BytesIO(raw.references[number])).convert("RGB")))
        scale = min(sample.height / image.shape[0], sample.width / image.shape[1])
        size = [round(side * scale) for side in image.shape[:2]]
        image = V.resize(image.permute(2, 0, 1), size, antialias=True)
        left, top = (sample.width - size[1]) // 2, (sample.height - size[0]) // 2
        padding = [left, top, sample.width - size[1] - left, sample.height - size[0] - top]
        references.append(V.pad(image, padding, fill=255).float() / 127.5 - 1)
    return peer_video(sample, raw), references


def settings(args, decoder: str):
    """Data settings of stage 1's 480p, one resolution and one length."""
    from phantom_mega.config import DataConfig, ResolutionConfig

    return DataConfig(
        seq_length=40960, text_seq_length=16384, resolutions={"480p": ResolutionConfig(399360, [args.frames], 1.0)},
        decoder=decoder, decode_threads=args.threads, prefetch_packs=4, packing_lookahead=args.clips, frame_rate=60.0,
        max_upscale=4.0, augment_per_epoch=False,
    )  # fmt: skip


def plan_of(folder: Path, data):
    """The plan of packs and a reader of the samples."""
    from phantom_mega.config import ModelConfig
    from phantom_mega.data.index import TripletIndex
    from phantom_mega.data.plan import PackPlan
    from phantom_mega.data.shards import ShardReader

    index = TripletIndex.open(folder)
    return PackPlan(index, data, ModelConfig(), clip_tokens=16, seed=1), ShardReader(index)


def read_with_loader(folder: Path, data, packs: int) -> tuple[list, float]:
    """All samples of the packs after the first one, and the seconds between: what it reads ahead before, it does after.

    Raises:
        SystemExit: a clip cannot be read.
    """
    from phantom_mega.data.loader import PackLoader

    plan, reader = plan_of(folder, data)
    with PackLoader(plan, reader, data) as loader:
        loader.take()
        started = time.monotonic()
        found = [item for _ in range(packs - 1) for item in loader.take()[1]]
        seconds = time.monotonic() - started
    if errors := [item.error for item in found if item.error]:
        raise SystemExit(errors[0])
    return found, seconds


def read_with_peer(folder: Path, data, packs: int) -> tuple[list, float]:
    """The same samples by PyAV and torchvision."""
    plan, reader = plan_of(folder, data)
    samples = [sample for number in range(1, packs) for sample in plan.locate(number)[1]]
    started = time.monotonic()
    with ThreadPoolExecutor(data.decode_threads) as pool:
        found = list(pool.map(lambda sample: peer_sample(sample, reader.read(sample.row)), samples))
    return found, time.monotonic() - started


def compare(mine: list, peers: list) -> float:
    """Largest mean difference of a clip's pixels, of 255."""
    return max((one.video - video).abs().mean().item() * 127.5 for one, (video, _) in zip(mine, peers, strict=True))


def measure(args, folder: Path, say: Callable[[str], None]) -> dict[str, dict]:
    """Seconds of each way to read the data set, round after round."""
    ways = {"loader, pyav": (read_with_loader, settings(args, "pyav")),
            PEER: (read_with_peer, settings(args, "pyav"))}  # fmt: skip
    if folder.name == "vp9":
        ways["loader, dali"] = (read_with_loader, settings(args, "dali"))
    packs = len(plan_of(folder, settings(args, "pyav"))[0])
    first = {name: read(folder, data, packs)[0] for name, (read, data) in ways.items()}  # warms up, too
    samples = [item.sample for item in first["loader, pyav"]]
    counts = {"clips": len(samples), "frames": sum(sample.num_frames for sample in samples),
              "visual_tokens": sum(sample.shape.visual_tokens for sample in samples), "packs": packs - 1}  # fmt: skip
    found = {name: counts | {"seconds": []} for name in ways}
    for name in ways.keys() - {PEER}:
        found[name]["difference"] = compare(first[name], first[PEER])
    del first
    for number in range(args.rounds):
        for name, (read, data) in ways.items():
            found[name]["seconds"].append(read(folder, data, packs)[1])
            say(f"round {number + 1} of {args.rounds}, {folder.name}, {name}: {found[name]['seconds'][-1]:.1f} s")
    return found


def table(results: dict[str, dict[str, dict]]) -> str:
    """Markdown: a line for each codec and way."""
    lines = ["| clips | way | clips/s | frames/s | tokens/s | range, clips/s | over the peer | pixels differ by |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for codec, found in results.items():
        peer = statistics.median(found[PEER]["seconds"])
        for name, one in found.items():
            middle, rates = statistics.median(one["seconds"]), [one["clips"] / each for each in one["seconds"]]
            per_second = [f"{one[key] / middle:,.3g}" for key in ("clips", "frames")]
            differ = f"{one['difference']:.2f} of 255" if "difference" in one else ""
            cells = [codec, name, *per_second, f"{one['visual_tokens'] / middle:,.0f}",
                     f"{min(rates):.3g} to {max(rates):.3g}", f"{peer / middle:.2f}", differ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, required=True, help="clips are cut from it")
    parser.add_argument("--clips", type=int, default=12, help="of each codec (default: 12)")
    parser.add_argument("--frames", type=int, default=81, help="of a clip, 4k+1 (default: 81)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each way (default: one per core)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    import av
    import nvidia.dali
    import torch
    import torchvision

    torch.set_num_threads(1)  # threads are those of the decoders
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for codec in CODECS:
            print(f"cutting {args.clips} clips of {args.frames} frames, {codec}", flush=True)
            cut(args.video, codec, args.clips, args.frames, Path(folder) / codec)
            results[codec] = measure(args, Path(folder) / codec, lambda line: print(line, flush=True))
    about = {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "threads": args.threads,
             "machine": platform.machine(), "av": av.__version__, "torch": torch.__version__,
             "torchvision": torchvision.__version__, "dali": nvidia.dali.__version__}  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"about": about, "results": results}, indent=1))
    print(f"\n{', '.join(f'{key} {value}' for key, value in about.items())}\n\n{table(results)}")


if __name__ == "__main__":
    main()
