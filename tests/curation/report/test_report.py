"""The page and the picture: complete, of bounded size, harmless whatever names the data have, the same each time."""

import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from phantom_mega.curation.report import PAGE_NAME, PICTURE_NAME, page, write_report
from phantom_mega.curation.report.candidates import Chosen
from phantom_mega.curation.report.figures import svg
from phantom_mega.curation.report.grid import image_parts, read_grid
from phantom_mega.curation.report.reading import Tables, shown
from phantom_mega.curation.video import read_frames, to_rgb
from phantom_mega.data.encode import encode_image
from phantom_mega.errors import UserError
from tests.curation.clips import real
from tests.curation.report.stages import MADE, STAGES
from tests.curation.tables import PARTS, write_stage

HOSTILE = "\"><script>alert('1')</script> $x_{$ & \u202e日本\x00 {{ 7*7 }} --> ]]>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Text, elements and references of a page; complains of elements that do not fit into each other."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.links = [], Counter(), [], []
        self.feed(text)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        # the end of an element that HTML lets go without one
        while self.open[-1] != tag and self.open[-1] in ("tr", "td", "th", "thead"):
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)


def report(output, config=None, **cuts):
    counts = write_report(output, list(STAGES.values()), config or {}, PARTS, made=MADE, **cuts)
    return counts, Page((output / PAGE_NAME).read_text(encoding="utf-8"))


def harmless(text, found):
    """Nothing is loaded from elsewhere, nothing runs."""
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in found.links)
    assert not re.search(r"url\((?!#)|@import|https?://(?!…)", text) and not found.tags["script"]
    assert not set(found.tags) & {"iframe", "object", "embed", "link", "base", "form", "foreignobject"}
    assert not re.search(r"<[^>]*\son\w+=", text)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return real(tmp_path_factory.mktemp("film"), "bikes")


def curated(output, film, name="x", count=12):
    """Two videos, subjects `Ann` and `Ben`; pairs over a range of similarity, crops of real pictures."""
    folder = output / "tables"
    frame = Image.fromarray(to_rgb(next(iter(read_frames(film, 1.0)))[1]))
    clips, subjects, crops, pairs = [], [], [], []
    for i in range(count):
        clip = {"clip_id": f"{name}{i}", "video_id": f"{name}v{i % 2}", "path": str(film), "start": 1.0, "end": 2.0}
        clips.append(clip | {"shot_id": f"{name}s{i}", "fps": 25.0, "width": 640, "height": 272})
        who = "Ann" if i % 3 else "Ben"
        subject = {"phrase": f"{name} {who}", "category": "human", "appearance": "", "identity": who}
        subjects.append({"clip_id": clip["clip_id"], "subjects": [subject]})
        image = frame.crop((i * 10, 0, i * 10 + 90, 120))
        crops.append({k: clip[k] for k in ("clip_id", "video_id", "path")} | {
            "crop_id": f"{name}{i}_0", "subject": 0, "phrase": f"{name} {who}", "category": "human", "time": 1.5,
            "box": [0.1, 0.1, 0.5, 0.9], "width": 90, "height": 120, "image": encode_image(image), "mask": None,
        })  # fmt: skip
        reason = None if i % 4 else "too different"
        pairs.append({
            "pair_id": f"{name}p{i}", "clip_id": clip["clip_id"], "subject": 0, "crop_id": f"{name}{(i + 3) % count}_0",
            "kind": "cross", "similarity": 0.5 + i / 30, "accepted": reason is None, "reason": reason,
            "score": 0.5 + i / 30, "detail": f"{name} of pair",
        })  # fmt: skip
    rows = {"clips": clips, "subjects": subjects, "crops": crops, "pairs": pairs}
    rows["captions"] = [
        {"clip_id": clips[0]["clip_id"], "accepted": False, "reason": "failed", "detail": f"{name} away"}
    ]
    for table, made in rows.items():
        write_stage(folder, STAGES[table], made, by="clip_id")  # as the stages leave them


def test_a_report_tells_all_that_is_there_and_stands_alone(tmp_path, film):
    curated(tmp_path, film)
    counts, found = report(tmp_path, cuts=(0.6, 0.9))
    text = (tmp_path / PAGE_NAME).read_text()
    harmless(text, found)
    assert (counts.precision.right, counts.precision.total) == (9, 9), "every third is the same one"
    for words in (
        "2026-05-04 12:30 UTC", "too different 3 · 25.0%", "9 accepted · 75.0%", "9 of 9 are shown, 0 are left out",
        "3 of 3 are shown", "9 of 9 cross pairs with labels by hand are right: precision 1.000", "x0 failed x away",
        "reference: xv1 at 1.5 s", "Similarity of images", "Left out files has not run", "Subjects per clip",
        "0.833", "There are no boxes.",
    ):  # fmt: skip
        assert words in found.text, words
    pictures = [link for link in found.links if link.startswith("data:")]
    assert len(pictures) == 9 * 3 + 3 * 2 and "min 0.6" not in found.text, "labels of figures are drawn"
    with Image.open(tmp_path / PICTURE_NAME) as image:
        assert image.format == "PNG" and 1000 < image.width < 2000 and 600 < image.height < 6000
    assert not list(tmp_path.glob(".*"))


def test_the_same_tables_give_the_same_report(tmp_path, film):
    curated(tmp_path, film)
    report(tmp_path)
    first = [(tmp_path / name).read_bytes() for name in (PAGE_NAME, PICTURE_NAME)]
    report(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in (PAGE_NAME, PICTURE_NAME)] == first


def test_names_are_shown_and_never_obeyed(tmp_path, film):
    output = tmp_path / "<b> out"
    curated(output, film, HOSTILE, 4)
    _, found = report(output, config={"a": {"b": HOSTILE + "\udcff"}})
    text = (output / PAGE_NAME).read_text(encoding="utf-8")
    harmless(text, found)
    assert "<script>alert('1')</script>" in found.text and "{{ 7*7 }}" in found.text and "<b> out" in found.text
    assert "\u202e" not in text and "\x00" not in text


def test_hostile_names_of_categories_and_reasons_are_drawn(tmp_path):
    rows = [{"clip_id": f"c{i}", "subjects": [{"category": HOSTILE[i:]}]} for i in range(30)]
    write_stage(tmp_path / "tables", STAGES["subjects"], rows)
    reasons = [{"clip_id": f"c{i}", "accepted": False, "reason": HOSTILE[i:]} for i in range(30)]
    write_stage(tmp_path / "tables", STAGES["selected"], reasons)
    _, found = report(tmp_path)
    harmless((tmp_path / PAGE_NAME).read_text(encoding="utf-8"), found)
    assert "10 rarer reasons are left out." in found.text


@pytest.mark.parametrize("kept", [[], list(STAGES)])
def test_nothing_and_empty_tables_make_a_report_that_says_so(tmp_path, kept):
    for name in kept:
        write_stage(tmp_path / "tables", STAGES[name], [])
    counts, found = report(tmp_path)
    assert [one.stage for one in counts.stages] == kept
    assert ("No stage has run." in found.text) == (not kept) and "No row failed." in found.text
    assert ("pairs has not run" in found.text) == (not kept) and ("No pair was accepted." in found.text) == bool(kept)
    assert (tmp_path / PICTURE_NAME).stat().st_size > 1000


def test_pictures_that_are_gone_or_damaged_are_told_and_stop_nothing(tmp_path, film):
    curated(tmp_path, film, count=4)
    crops = Tables(tmp_path / "tables", [STAGES["crops"]], PARTS).there["crops"].read().to_pylist()
    broken = [row | {"image": b"\xff\xd8 no", "path": "/gone.mp4"} for row in crops]
    write_stage(tmp_path / "tables", STAGES["crops"], broken[1:])
    write_stage(
        tmp_path / "tables", STAGES["clips"], [{"clip_id": "x1", "path": "/gone.mp4", "start": 0.0, "end": 1.0}]
    )
    _, found = report(tmp_path)
    assert found.text.count("no reference") == 4 and not found.tags["img"] and "no frame" in found.text


def test_the_frame_of_a_pair_bears_the_box_of_its_subject(tmp_path, film):
    curated(tmp_path, film, count=2)
    tables = Tables(tmp_path / "tables", list(STAGES.values()), PARTS)
    (pair,) = read_grid(tables, Chosen([0], 2), image_parts(tables), True)
    width, height = pair.frame.size
    box = np.asarray(pair.frame)[round(0.1 * height) + 1, round(0.15 * width) : round(0.45 * width)]
    assert (np.abs(box.astype(int) - (0xC2, 0x41, 0x0C)) < 3).all(), "orange along its upper edge"
    assert pair.reference.size == (90, 120) and pair.subject is not None
    none = read_grid(tables, Chosen([0], 2), set(), False)[0]
    assert none.reference is None and none.frame is None and none.source == pair.source
    assert len(image_parts(tables, 1)) == 1 and image_parts(tables, 1 << 30) == {0, 1}


def test_size_and_memory_do_not_grow_with_the_rows(tmp_path):
    rng = np.random.default_rng(0)
    count = 60_000
    similarity = rng.uniform(0, 1, count)
    rows = [
        {"pair_id": f"p{i}", "clip_id": f"c{i}", "subject": 0, "crop_id": f"x{i}", "kind": "cross",
         "similarity": float(similarity[i]), "accepted": similarity[i] > 0.7,
         "reason": None if similarity[i] > 0.7 else "too different"}
        for i in range(count)
    ]  # fmt: skip
    write_stage(tmp_path / "tables", STAGES["pairs"], rows)
    failed = [{"clip_id": f"c{i}", "accepted": False, "reason": "failed", "detail": "x" * 5000} for i in range(5000)]
    write_stage(tmp_path / "tables", STAGES["captions"], failed)
    write_stage(tmp_path / "tables", STAGES["crops"], [])
    counts, found = report(tmp_path, cuts=(0.7, 0.95))
    accepted = int((similarity > 0.7).sum())
    assert f"24 of {accepted:,} are shown, {accepted - 24:,} are left out" in found.text
    assert "4,980 more are left out" in found.text and counts.stages[0].failed == 5000
    assert (tmp_path / PAGE_NAME).stat().st_size < 300_000


def test_a_report_that_cannot_be_written_is_told_and_leaves_nothing_half(tmp_path):
    (tmp_path / PICTURE_NAME).mkdir()
    with pytest.raises(UserError, match=r"report\.png could not be written"):
        report(tmp_path)
    assert not list(tmp_path.glob(".*")) and not list((tmp_path / PICTURE_NAME).iterdir())


def test_text_is_made_fit_to_be_shown():
    assert shown("a\tb\n c\x00\udcff\u202e") == "a b c\ufffd\ufffd\ufffd" and shown("x" * 999, 10) == "x" * 9 + "…"
    assert shown("see https://me:pass@host/v1, a@b.c") == "see https://…@host/v1, a@b.c"


def test_figures_follow_the_colours_of_the_page_and_share_no_names():
    panel = page.figures.Panel("<t>", "", lambda axes: page.figures.bars(axes, ["$a_{$"], [3], ["--> <b>"]))
    first, second = svg(panel, 1), svg(panel, 2)
    assert "var(--c1)" in first and "#0b66c3" not in first and 'aria-label="&lt;t&gt;"' in first
    names = [set(re.findall(r'\bid="([^"]+)"', one)) for one in (first, second)]
    assert names[0] and not names[0] & names[1]
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', first))
    assert {a or b for a, b in used} <= names[0]


def test_numbers_are_written_for_a_reader():
    assert [page.number(1234), page.number(None), page.share(1, 3), page.share(0, 0)] == ["1,234", "–", "33.3%", "–"]
    assert [page.decimal(0.12345), page.decimal(None), page.decimal(1234.5)] == ["0.123", "–", "1,234.5"]
    hours = page.figures.hours_of
    assert [hours(1234.5), hours(0.5), hours(0.001)] == ["1,234.5 h", "30.0 min", "3.6 s"]
    assert [page.figures.short(n) for n in (12, 1500, 2_000_000)] == ["12", "1.5k", "2M"]
