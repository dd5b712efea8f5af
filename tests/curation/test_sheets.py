"""Sheets for annotating by hand show the frames that detection looks at, and boxes where they are annotated."""

import numpy as np
from PIL import Image

from phantom_mega.curation.annotations import Annotation, Box, Subject
from phantom_mega.curation.sheets import POSITIONS, clip_sheet, draw_boxes, draw_grid, sheet_name, skeleton
from tests.curation.clips import write_video


def test_lines_of_the_grid_lie_at_the_tenths():
    drawn = np.asarray(draw_grid(Image.new("RGB", (400, 200))))
    middle = drawn[15]  # a row without labels' numbers
    assert [x for x in range(40, 400) if middle[x].any() and x % 40 == 0] == list(range(40, 400, 40))
    assert not middle[60].any() and drawn[100, 333].any() and not drawn[110, 333].any()


def test_boxes_are_drawn_at_their_moment_alone():
    annotation = Annotation("a.mp4", 1.0, subjects=(Subject("a cat", boxes=(Box(1.0, (0.25, 0.5, 0.75, 1.0)),)),))
    at = np.asarray(draw_boxes(Image.new("RGB", (400, 200)), annotation, 1.04))
    assert at[150, 100].any() and at[150, 300].any() and not at[150, 90].any() and not at[150, 200].any()
    assert not np.asarray(draw_boxes(Image.new("RGB", (400, 200)), annotation, 2.0)).any()


def test_a_sheet_shows_the_frames_of_the_moments_that_it_names(tmp_path):
    shades = [np.full((90, 160, 3), 10 * i + 5, np.uint8) for i in range(25)]
    path = write_video(tmp_path / "a.mp4", shades)
    sheet = np.asarray(clip_sheet(path, 0.0, 1.0, "title", None))
    height = 450 + 24
    shown = [sheet[34 + 18 + i * height + 20, 14 + 120] for i in range(len(POSITIONS))]
    expected = [10 * int(25 * position) + 5 for position in POSITIONS]
    assert np.abs(np.mean(shown, 1) - expected).max() < 4
    described = Annotation("a.mp4", 0.5, "A grey wall. " * 30, subjects=(Subject("a wall"),))
    assert clip_sheet(path, 0.0, 1.0, "title", described).height > sheet.shape[0]


def test_a_line_of_the_skeleton_has_the_moments_of_the_sheet():
    line = skeleton("a.mp4", 10.0, 12.0)
    assert line["time"] == 11.0 and [box["time"] for box in line["subjects"][0]["boxes"]] == [10.1, 11.0, 11.9]


def test_names_of_files_are_harmless():
    assert sheet_name("../../etc/passwd; rm") == "-..-etc-passwd--rm" and len(sheet_name("x" * 500)) == 120
