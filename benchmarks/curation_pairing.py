"""Measure cross-video pairing on synthetic crops: seconds and peak memory of the stages, recall of the search, and
precision and recall of the pairs against identities that are known.

Writes tables of crops, clips, embeddings and (empty) faces as the stages before would, and runs the real stages
`neighbours` and `pairs` in a process of their own each.

Fifty identities are of a kind (taxis, say) and differ from it by little or much. A crop is its kind, what is particular
to its identity, one of four sides, and noise, which is little in some crops and much in others, so that some cannot be
told from their like by any threshold. Some crops are copies of others: the same footage in another video.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import faiss
import numpy as np
import pyarrow as pa

from phantom_mega.curation.columns import fields_of
from phantom_mega.curation.engine.stage import Stage
from phantom_mega.curation.engine.tables import Table, completed, split_table
from phantom_mega.curation.search import in_blocks
from phantom_mega.data.schema import CATEGORIES

REPOSITORY = Path(__file__).resolve().parents[1]
OF_A_KIND = 50  # identities
SHARES = (0.5, 0.1, 0.1, 0.15, 0.05, 0.02, 0.08)  # of the categories: people are half
EXAMPLES = """examples:
  python benchmarks/curation_pairing.py --subjects 10000
  OMP_NUM_THREADS=2 python benchmarks/curation_pairing.py --folder /scratch --json pairing.json      # a million
  python benchmarks/curation_pairing.py --subjects 100000 --exact-below 0 --probes 4 8 16 32       # recall of probes
"""
# Runs one stage and prints its seconds, rows, reasons, CPU seconds, and peak resident memory in KiB.
_STAGE = """
import json, resource, sys, time
from pathlib import Path
from phantom_mega.curation import neighbours, pairs
from phantom_mega.curation.engine.run import run_stage
made, settings, folder, parts = json.loads(sys.argv[1])
module, kind = {"neighbours": (neighbours, neighbours.NeighbourSettings), "pairs": (pairs, pairs.PairSettings)}[made]
result = run_stage(module.stage(kind(**settings)), Path(folder), parts, quiet=True)
used = resource.getrusage(resource.RUSAGE_SELF)
cpu = used.ru_utime + used.ru_stime
print(json.dumps([result.seconds, result.rows, result.accepted, result.reasons, cpu, used.ru_maxrss]))
"""


# -- the crops


def identities(count: int, each: float, rng: np.random.Generator) -> np.ndarray:
    """int [count]: who each crop shows; from 1 to a few crops of each, `each` on average."""
    sizes = rng.geometric(1 / each, size=count)
    found = np.repeat(np.arange(count), sizes)[:count]
    return rng.permutation(found)


def directions(count: int, width: int, seed: int, *about: int) -> np.ndarray:
    """float32 [count, width] of length about 1, random."""
    rng = np.random.default_rng([seed, *about])
    return rng.standard_normal((count, width), dtype=np.float32) / np.float32(width**0.5)


def vectors(identity: np.ndarray, twin: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    """float32 [n, width] of length 1: kind, identity, side, noise."""
    width, seed, people = options.width, options.seed, int(identity.max()) + 1
    rng = np.random.default_rng([seed, 9])
    kinds = directions(people // OF_A_KIND + 1, width, seed, 2)
    centres = directions(people, width, seed, 1) * rng.uniform(0.3, 1.2, (people, 1)).astype(np.float32)
    sides = 0.3 * directions(4096, width, seed, 3)
    side = (identity * 4 + rng.integers(4, size=len(identity))) % 4096
    noise = (options.noise * rng.lognormal(0, 0.4, (len(identity), 1))).astype(np.float32)
    made = np.empty((len(identity), width), np.float32)

    def block(start: int, stop: int) -> None:
        part = slice(start, stop)
        made[part] = kinds[identity[part] // OF_A_KIND] + centres[identity[part]] + sides[side[part]]
        made[part] += noise[part] * directions(stop - start, width, seed, 4, start)

    in_blocks(block, len(identity), 8192)
    same = np.flatnonzero(twin >= 0)
    made[same] = made[twin[same]] + 0.1 * directions(len(same), width, seed, 5)
    faiss.normalize_L2(made)
    return made


def write_tables(folder: Path, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """The input tables, two subjects a clip; what is known of each crop."""
    rng, count = np.random.default_rng(options.seed), options.subjects
    identity = identities(count, options.crops_per_identity, rng)
    shares = np.array(SHARES)
    category = rng.choice(len(CATEGORIES), size=count, p=shares / shares.sum())[identity // OF_A_KIND]
    twin = np.full(count, -1)
    copies = np.sort(rng.choice(np.arange(count // 2, count), int(count * options.duplicates), replace=False))
    twin[copies] = rng.integers(0, count // 2, len(copies))
    identity[copies], category[copies] = identity[twin[copies]], category[twin[copies]]
    made = vectors(identity, twin, options)

    names = pa.array([f"video{i // 20:07d}.mp4/{i // 2:08d}/{i % 2}" for i in range(count)])
    clips = pa.array([f"video{i // 20:07d}.mp4/{i // 2:08d}" for i in range(count)])
    videos = pa.array([f"video{i // 20:07d}.mp4" for i in range(count)])
    kinds = pa.array(CATEGORIES).take(pa.array(category))
    embeddings = pa.FixedSizeListArray.from_arrays(made.reshape(-1), options.width)
    of_clips = clips.unique()
    _write(folder, "clips", {"clip_id": of_clips, "shot_id": of_clips}, options.parts)
    sizes = pa.repeat(pa.scalar(256, pa.int32()), count)
    _write(folder, "crops", {
        "crop_id": names, "clip_id": clips, "video_id": videos, "phrase": kinds, "category": kinds, "width": sizes,
        "height": sizes, "subject": pa.array(np.arange(count, dtype=np.int32) % 2),
    }, options.parts)  # fmt: skip
    _write(folder, "faces", {"crop_id": names.slice(0, 0)}, options.parts)
    _write(folder, "embeddings", {"crop_id": names, "embedding": embeddings}, options.parts)
    np.savez(folder / "known.npz", identity=identity, twin=twin)
    return {"identity": identity, "twin": twin, "category": category, "vectors": made}


def _write(folder: Path, name: str, columns: dict, parts: int) -> None:
    stage = Stage(name, fields_of(name), {}, None, None)
    target = pa.schema([field for field in stage.columns if field.name in columns])
    pieces = []
    for start in range(0, len(columns["crop_id" if "crop_id" in columns else "clip_id"]), 65_536):
        some = {field.name: columns[field.name].slice(start, 65_536).cast(field.type) for field in target}
        pieces.append(pa.record_batch(some, target))
    table = completed(pa.Table.from_batches(pieces, target), stage)
    for part, rows in enumerate(split_table(table, stage, parts)):
        Table(folder, name, parts).write_table(part, rows, b"synthetic")


# -- the measures


def run(made: str, settings: dict, folder: Path, parts: int) -> dict:
    """Run a stage; its seconds, rows and peak memory. CPU seconds tell what others on the machine cannot change."""
    argument = json.dumps([made, settings, str(folder), parts])
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", _STAGE, argument]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    seconds, rows, accepted, reasons, cpu, peak = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": seconds, "cpu_seconds": cpu, "rows": rows, "accepted": accepted, "reasons": reasons,
            "peak_gib": peak / 2**20}  # fmt: skip


def recall_of_search(folder: Path, known: dict, options: argparse.Namespace, kept: int) -> float:
    """Share of the true nearest crops of other clips that the stage found, of a sample of the crops."""
    count = options.subjects
    sample = np.sort(np.random.default_rng(1).choice(count, min(count, options.sample), replace=False))
    table = Table(folder, "neighbours", options.parts).read(["crop_id", "near"]).sort_by("crop_id")
    names = np.array([f"video{i // 20:07d}.mp4/{i // 2:08d}/{i % 2}" for i in sample])
    rows = table["crop_id"].combine_chunks()
    assert rows.take(pa.array(sample)).to_pylist() == names.tolist(), "crops are named in their order"
    near = table.take(pa.array(sample))["near"].to_pylist()
    hits = total = 0
    for category in np.unique(known["category"][sample]):
        members = np.flatnonzero(known["category"] == category)
        index = faiss.IndexFlatIP(options.width)
        index.add(known["vectors"][members])
        queries = np.flatnonzero(known["category"][sample] == category)
        _, found = index.search(known["vectors"][sample[queries]], min(kept + 2, len(members)))
        for query, row in zip(queries, members[found]):
            true = [i for i in row if i // 2 != sample[query] // 2][:kept]
            listed = {int(name[-10:-2]) * 2 + int(name[-1]) for name in near[query]}
            hits, total = hits + len(listed & set(map(int, true))), total + len(true)
    return hits / total


def quality(folder: Path, known: dict, parts: int) -> dict:
    """Precision of accepted cross pairs, and the share of subjects with another picture of them that got a pair."""
    table = Table(folder, "pairs", parts).read(["clip_id", "subject", "crop_id", "kind", "similarity"], accepted=True)
    table = table.filter(pa.compute.equal(table["kind"], "cross"))
    clip = pa.compute.utf8_slice_codeunits(table["clip_id"], -8).cast(pa.int64()).to_numpy()
    one = clip * 2 + table["subject"].to_numpy()
    crop = table["crop_id"]
    other = pa.compute.utf8_slice_codeunits(crop, -10, -2).cast(pa.int64()).to_numpy() * 2
    other = other + pa.compute.utf8_slice_codeunits(crop, -1).cast(pa.int64()).to_numpy()
    identity, origin = known["identity"], np.where(known["twin"] >= 0, known["twin"], np.arange(len(known["twin"])))
    right, copied = identity[one] == identity[other], origin[one] == origin[other]
    # Pictures of each identity that are not copies of each other: a subject can be paired if there are two.
    pictures = np.bincount(identity[np.unique(origin)], minlength=identity.max() + 1)
    can = pictures[identity] > 1
    paired = np.zeros(len(identity), bool)
    paired[one[right & ~copied]] = True
    return {"pairs": len(one), "precision": float((right & ~copied).mean()) if len(one) else 0.0,
            "near_duplicates": int(copied.sum()), "subjects_that_have_a_reference": int(can.sum()),
            "recall": float(paired[can].mean())}  # fmt: skip


def measure(folder: Path, options: argparse.Namespace, probes: int, known: dict) -> dict:
    """One run of both stages."""
    neighbours = {"probes": probes, "exact_below": options.exact_below, "neighbours_kept": options.neighbours_kept}
    pairs = {name: getattr(options, name) for name in ("min_similarity", "max_similarity", "mutual")}
    searched = run("neighbours", neighbours, folder, options.parts)
    paired = run("pairs", pairs, folder, options.parts)
    recall = recall_of_search(folder, known, options, 8)
    return {"subjects": options.subjects, "width": options.width, "threads": faiss.omp_get_max_threads(),
            "probes": probes, "neighbours": searched, "pairs": paired, "search_recall_at_8": recall,
            "quality": quality(folder, known, options.parts)}  # fmt: skip


def table_line(found: dict) -> str:
    """For people."""
    searched, paired, good = found["neighbours"], found["pairs"], found["quality"]
    return (
        f"{found['subjects']:>9,} x {found['width']}  probes {found['probes']:>3}  "
        f"neighbours {searched['seconds']:.1f} s (CPU {searched['cpu_seconds']:.1f}) {searched['peak_gib']:.2f} GiB  "
        f"pairs {paired['seconds']:.1f} s (CPU {paired['cpu_seconds']:.1f}) {paired['peak_gib']:.2f} GiB  "
        f"search recall@8 {found['search_recall_at_8']:.4f}  "
        f"pairs {good['pairs']:,}: precision {good['precision']:.4f}, recall {good['recall']:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subjects", type=int, default=1_000_000, help="crops, one of each subject of a clip")
    parser.add_argument("--width", type=int, default=768, help="numbers of an embedding")
    parser.add_argument("--crops-per-identity", type=float, default=4.0, help="on average")
    parser.add_argument("--noise", type=float, default=0.5, help="median length of it, where a kind's direction has 1")
    parser.add_argument("--duplicates", type=float, default=0.02, help="share of crops that are copies of others")
    parser.add_argument("--probes", type=int, nargs="+", default=[16], help="of the search, one run for each")
    parser.add_argument("--exact-below", type=int, default=50_000, help="crops of a category")
    parser.add_argument("--neighbours-kept", type=int, default=32)
    parser.add_argument("--min-similarity", type=float, default=0.75)
    parser.add_argument("--max-similarity", type=float, default=0.97)
    parser.add_argument("--mutual", type=int, default=0)
    parser.add_argument("--sample", type=int, default=2000, help="crops that are compared with all, for the recall")
    parser.add_argument("--parts", type=int, default=64, help="files of a table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for the tables, about 4 KB a crop; a temporary one by default")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder, started = Path(temporary), time.monotonic()
        known = write_tables(folder, options)
        print(f"tables written in {time.monotonic() - started:.1f} s", flush=True)
        if len(known["vectors"]) * options.width * 4 > 1 << 30:  # the stages need the memory
            known["vectors"].tofile(folder / "vectors")
            shape = known["vectors"].shape
            known["vectors"] = np.memmap(folder / "vectors", np.float32, "r", shape=shape)
        results = []
        for probes in options.probes:
            results.append(measure(folder, options, probes, known))
            print(table_line(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
