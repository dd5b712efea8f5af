"""tools/annotation_sheets.py on the tables of a curation: a sheet and a line for each selected clip."""

import json
import subprocess
import sys

from PIL import Image

from phantom_mega.curation.annotations import Annotations
from tests.curation.clips import noise, write_video
from tests.curation.tables import PARTS, write_table
from tests.training.conftest import REPOSITORY, environment


def draw(*words):
    command = [sys.executable, "tools/annotation_sheets.py", *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=120)


def test_selected_clips_get_a_sheet_and_a_line_and_work_by_hand_is_kept(tmp_path):
    path = write_video(tmp_path / "a film.mp4", noise(1, 60))
    clip = {"video_id": "v", "path": str(path), "fps": 25.0, "width": 160, "height": 90}
    spans = [(1.2, 2.2), (0.1, 1.1), (2.2, 2.4)]
    clips = [clip | {"clip_id": f"v-{i}", "start": a, "end": b, "shot_id": "s"} for i, (a, b) in enumerate(spans)]
    tables = tmp_path / "out/tables"
    write_table(tables, "clips", clips)
    write_table(tables, "selected", [{"clip_id": "v-0"}, {"clip_id": "v-1"}])
    (tables / "layout.json").write_text(json.dumps({"parts": PARTS}))
    sheets, lines = tmp_path / "sheets", tmp_path / "lines.jsonl"
    done = draw("--curated", tmp_path / "out", "--output", sheets, "--skeleton", lines)
    assert done.returncode == 0 and "2 sheets" in done.stdout, done.stderr
    assert [name.name for name in sorted(sheets.iterdir())] == ["0000_v-1.jpg", "0001_v-0.jpg"], "in the film's order"
    filled = lines.read_text().replace('"phrase": ""', '"phrase": "a wall"').replace('"caption": ""', '"caption": "x"')
    (tmp_path / "done.jsonl").write_text(filled.splitlines()[0])
    found = Annotations(tmp_path / "done.jsonl").find(str(path), 0.1, 1.1)
    assert [round(box.time, 2) for box in found.subjects[0].boxes] == [0.15, 0.6, 1.05]
    again = draw("--curated", tmp_path / "out", "--output", sheets, "--skeleton", lines)
    assert again.returncode and "is not overwritten" in again.stderr and "Traceback" not in again.stderr
    drawn = draw("--curated", tmp_path / "out", "--output", tmp_path / "check", "--annotations",
                 tmp_path / "done.jsonl", "--only-annotated", "--format", "png")  # fmt: skip
    assert drawn.returncode == 0 and [p.name for p in (tmp_path / "check").iterdir()] == ["0000_v-1.png"]
    with Image.open(tmp_path / "check/0000_v-1.png") as sheet:
        assert sheet.width == 828
    wrong = draw("--curated", tmp_path, "--output", sheets)
    assert wrong.returncode and "is no output of launchers/curate.py" in wrong.stderr
