"""Tables, figures and the page: means, comparisons, what is missing, and names that nobody should trust."""

import html.parser
import json
import re

import numpy as np
import pytest
from PIL import Image

from phantom_mega.evaluation import opens2v
from phantom_mega.evaluation.config import load_config
from phantom_mega.evaluation.figures import choose, place, radar
from phantom_mega.evaluation.image_similarity import NO_REFERENCE
from phantom_mega.evaluation.metric import Measured
from phantom_mega.evaluation.records import Record
from phantom_mega.evaluation.registry import METRICS
from phantom_mega.evaluation.report import write_reports
from phantom_mega.evaluation.results import ALL, collect, opens2v_scores, summarise, tables_of
from phantom_mega.evaluation.run import Task
from phantom_mega.evaluation.tables import cell, markdown, p_value
from phantom_mega.evaluation.videos import find_videos
from phantom_mega.generation.cases import read_cases
from tests.evaluation.videos import write_cases, write_videos

HOSTILE = "<script>alert(1)</script>"
NAMES = ["clip_i", "viclip_t", "temporal_flickering", "copy_paste"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(cases, [folder of steady videos, folder of noisy ones with a hostile name and a hostile video])."""
    folder = tmp_path_factory.mktemp("report")
    cases = read_cases(write_cases(folder, 6))
    found = [write_videos(folder / "steady", 6), write_videos(folder / "a|b<i>.`x`", 6, noise=50)]
    (found[1] / "<img src=x onerror=alert(2)>.mp4").write_bytes(b"")
    return cases, found


@pytest.fixture(scope="module")
def config():
    return load_config("tiny", [f"evaluation.metrics=[{','.join(NAMES)}]", "evaluation.resamples=199"])


@pytest.fixture(scope="module")
def results(folders, config):
    """Values by hand: the second method is worse by 0.1 in CLIP-I, equal in ViCLIP-T; one face of noise is missing."""
    cases, videos = folders
    methods = [find_videos(folder, cases) for folder in videos]
    tasks, records = [], {name: {} for name in METRICS}
    for number, method in enumerate(methods):
        for i, case in enumerate(cases):
            task = Task(case, method.videos[case.id], {name: f"{name}{number}{i}" for name in NAMES})
            tasks.append(task)
            values = {"clip_i": 0.8 + 0.01 * i - 0.1 * number, "viclip_t": 20.0 + i, "copy_paste": 0.2 + 0.1 * number,
                      "temporal_flickering": 0.9}  # fmt: skip
            for name in NAMES:
                missing = f"{HOSTILE} not detected" if (name, number, i) == ("clip_i", 1, 2) else ""
                records[name][task.digests[name]] = Record("", case.id, Measured(values[name], missing))
    return collect(methods, cases, config, tasks, records, {"dino_i": f"no model of {HOSTILE}"})


@pytest.fixture(scope="module")
def tables(results, config):
    return tables_of(results, config, "Open-Domain")


@pytest.fixture(scope="module")
def output(tables, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("output")
    write_reports(tables, config, folder)
    return folder


class Page(html.parser.HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_intervals_are_of_subjects_and_means_of_their_means(results, tables):
    method = results.methods[0].name
    summary = tables.summaries[method, "clip_i", ALL]
    assert (summary.interval.count, summary.videos, summary.missing) == (3, 6, 0)  # six cases of three references
    assert summary.interval.mean == pytest.approx(0.825) and summary.interval.low < 0.825 < summary.interval.high
    assert cell(summary, "clip_i").startswith("0.825 [0.8")
    assert cell(tables.summaries[method, "viclip_t", ALL], "viclip_t").startswith("22.50 [")


def test_methods_are_compared_subject_by_subject(results, tables):
    other = results.methods[1].name
    clip, text = tables.comparisons[other, "clip_i"], tables.comparisons[other, "viclip_t"]
    assert clip.difference.mean == pytest.approx(0.1) and (clip.wins, clip.losses) == (3, 0)
    assert clip.p_value == pytest.approx(2 / 2**3)  # exact: two of eight signs
    assert text.difference.mean == 0 and text.p_value == 1
    assert p_value(0.0002) == "< 0.001" and p_value(0.25) == "0.250"


def test_a_value_that_lacks_makes_no_report(folders, config):
    cases, videos = folders
    method = find_videos(videos[0], cases)
    tasks = [Task(case, method.videos[case.id], {name: name for name in NAMES}) for case in cases]
    assert collect([method], cases, config, tasks, {name: {} for name in METRICS}, {}) is None


def test_cases_that_a_metric_does_not_apply_to_are_left_out_alike_for_all_methods(folders, config):
    cases, videos = folders
    methods = [find_videos(folder, cases, name) for folder, name in zip(videos, "ab")]
    del methods[1].videos[cases[0].id]  # whose video the second method lacks
    tasks, records = [], {name: {} for name in METRICS}
    for method in methods:
        for case in cases:
            if case.id in method.videos:
                key = f"{method.name}{case.id}"
                tasks.append(Task(case, method.videos[case.id], dict.fromkeys(NAMES, key)))
                reason = NO_REFERENCE if case is cases[0] else ""
                for name in NAMES:
                    records[name][key] = Record(key, case.id, Measured(0.5, reason))
    found = collect(methods, cases, config, tasks, records, {})
    for name in "ab":
        assert cases[0].id not in found.counted(name, "clip_i") and len(found.counted(name, "clip_i")) == 5
        assert summarise(found, config, name, "clip_i").missing == 0
    assert tables_of(found, config, "Open-Domain").comparisons["b", "clip_i"].difference.mean == 0


def test_the_page_needs_no_other_file_and_shows_hostile_names_as_text(output):
    text = (output / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags and "i" not in page.tags and "link" not in page.tags
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert not re.search(r"https?://|url\(|@import", text)
    words = " ".join(page.words)
    for hostile in (HOSTILE, "<img src=x onerror=alert(2)>.mp4", "a|b<i>.`x`"):
        assert hostile in words
    assert "0.825" in words and "+0.100" in words and "missing in 1 of 6" in words
    assert "DINO-I was left out" in words and "2: single subjects" in words


def test_markdown_keeps_its_columns_whatever_names_hold(output, tables):
    text = (output / "table.md").read_text()
    assert text == markdown(tables, 0.95) and "<" not in text.replace("&lt;", "").replace("p < 0", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    blocks = text.split("\n\n")
    for block in blocks:
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) <= 1
    assert any("CLIP-I ↑" in row and "ViCLIP-T ↑" in row for row in rows)
    assert any("Copy-paste ↓" in row for row in rows)


def test_pictures_show_every_method(output, results, tables):
    for name in ("radar.png", "grid.png"):
        picture = np.asarray(Image.open(output / name).convert("RGB"))
        assert picture.shape[0] > 300 and len(np.unique(picture[::9, ::9].reshape(-1, 3), axis=0)) > 20
    two = radar(tables)
    assert two is not None and place("copy_paste", 0.25) == 0.75 and place("viclip_t", 20.0) == 0.5
    few = tables_of(results, load_config("tiny", ["evaluation.resamples=99"]), "Open-Domain")
    few.results.metrics = ["clip_i", "copy_paste"]
    assert radar(few) is None
    few.results.metrics = NAMES


def test_cases_worth_a_look_are_best_median_and_worst_and_none_twice(folders, config, results):
    chosen = choose(results)
    ids = [one.case for one in chosen if one.metric == "clip_i"]
    assert len(ids) == len(set(ids)) and {one.metric for one in chosen} == set(NAMES)
    cases, _ = folders
    alone = results.__class__(cases, results.methods[:1], ["clip_i"], {}, results.values)
    assert [(one.rank, one.case) for one in choose(alone)] == [
        ("best", "singleobj_5"), ("median", "singleobj_2"), ("worst", "singleobj_0"),
    ]  # fmt: skip


def test_results_are_plain_json_with_every_value(output, results):
    raw = json.loads((output / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    method = raw["methods"][results.methods[1].name]
    assert method["cases"]["singleobj_2"]["clip_i"]["missing"] == f"{HOSTILE} not detected"
    assert method["extra_videos"] == ["<img src=x onerror=alert(2)>.mp4"]
    assert raw["metrics"]["clip_i"]["settings"]["model"] == "ViT-B-32-quickgelu"
    assert raw["comparisons"][0]["a"] == "steady" and raw["comparisons"][0]["difference"]["mean"] == pytest.approx(0.1)


def test_the_total_of_opens2v_needs_all_components_and_takes_those_of_its_own_scripts(results):
    method = results.methods[0]
    scores = opens2v_scores(results, method, "Open-Domain")
    assert scores.summary is None and "no results of aes_score" in scores.why
    published = {
        case.id: dict.fromkeys(opens2v.COMPONENTS, 1.0) | {"facesim_cur": 0.5, "aes_score": 5.5}
        for case in results.cases
    }
    scores = opens2v_scores(results, method, "Open-Domain", published)
    assert scores.summary is None and "none of the 6 cases" in scores.why  # no case asks for a face
    renamed = {id.replace("singleobj", "singlehuman"): parts for id, parts in published.items()}
    cases = [case.__class__(case.id.replace("singleobj", "singlehuman"), "p", case.images) for case in results.cases]
    values = {method.name: {"facesim_cur": {}}}
    other = results.__class__(cases, [method], [], {}, values)
    found = opens2v_scores(other, method, "Open-Domain", renamed)
    assert found.summary.components["facesim_cur"] == 0.5 and found.summary.components["aes_score"] == pytest.approx(
        0.5
    )
    assert found.summary.total == pytest.approx(0.16 * 0.5 + 0.06 + 0.02 + 0.2 * 0.5 + 0.12 + 0.2 + 0)
