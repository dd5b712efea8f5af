"""Draw a sheet for each clip of a curation, to annotate it by hand or to check its annotation: frames, grid, boxes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from phantom_mega.curation.annotations import Annotations
from phantom_mega.curation.engine.tables import Table
from phantom_mega.curation.pipeline import TABLES, parts_of
from phantom_mega.curation.sheets import clip_sheet, in_order, sheet_name, skeleton
from phantom_mega.curation.video import VideoError
from phantom_mega.errors import UserError

EXAMPLES = """examples:
  python tools/annotation_sheets.py --curated curated --output sheets --skeleton annotations.jsonl
  python tools/annotation_sheets.py --curated curated --output sheets --annotations annotations.jsonl

A line of the skeleton is filled in from the sheet of the same number, and goes into captions.caption_file. Boxes are
x0, y0, x1, y1 as fractions of the picture; the format is described in docs/curation.md.
"""


def main() -> None:
    """Parse arguments, draw, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--curated", type=Path, required=True, help="output of launchers/curate.py")
    parser.add_argument("--output", type=Path, required=True, help="folder of the sheets")
    parser.add_argument("--annotations", type=Path, help="JSON lines whose boxes and captions are drawn")
    parser.add_argument("--skeleton", type=Path, help="write a JSON line to be filled in for every clip (a new file)")
    parser.add_argument("--only-annotated", action="store_true", help="skip clips without an annotation")
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of the sheets (default: jpg)")
    args = parser.parse_args()
    if args.skeleton and args.skeleton.exists():
        raise UserError(f"--skeleton {args.skeleton} exists; work by hand is not overwritten")
    clips = selected_clips(args.curated)
    annotations = Annotations(args.annotations) if args.annotations else None
    args.output.mkdir(parents=True, exist_ok=True)
    lines, drawn = [], 0
    for number, clip in enumerate(tqdm(clips, unit=" sheets", file=sys.stderr)):
        name = Path(clip["path"]).name
        found = annotations.find(clip["path"], clip["start"], clip["end"]) if annotations else None
        lines.append(skeleton(name, clip["start"], clip["end"]))
        if args.only_annotated and found is None:
            continue
        title = f"{number:04d}  {name}  {clip['start']:.2f} to {clip['end']:.2f} s"
        try:
            sheet = clip_sheet(clip["path"], clip["start"], clip["end"], title, found)
        except VideoError as error:
            tqdm.write(f"{clip['path']} {error}", file=sys.stderr)
            continue
        sheet.save(args.output / f"{number:04d}_{sheet_name(clip['clip_id'])}.{args.format}", quality=88)
        drawn += 1
    if args.skeleton:
        args.skeleton.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(f"{drawn} sheets in {args.output}" + (f", {len(lines)} lines in {args.skeleton}" if args.skeleton else ""))


def selected_clips(curated: Path) -> list[dict]:
    """Clips that were selected, by video and time.

    Raises:
        UserError: the stages up to `selected` have not run there.
    """
    folder, parts = curated / TABLES, parts_of(curated)
    chosen = set(Table(folder, "selected", parts).read(["clip_id"], accepted=True)["clip_id"].to_pylist())
    columns = ["clip_id", "video_id", "path", "start", "end"]
    clips = Table(folder, "clips", parts).read(columns, accepted=True).to_pylist()
    return in_order([clip for clip in clips if clip["clip_id"] in chosen])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"annotation_sheets: {error}")
