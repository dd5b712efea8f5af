"""Totals of published rows follow from their components, cases without a result count, files come back as written."""

import json

import pytest

from phantom_mega.errors import UserError
from phantom_mega.evaluation import opens2v
from phantom_mega.evaluation.opens2v import COMPONENTS, summarise, summarise_as_published, total_score, weights
from phantom_mega.generation.cases import Case
from tests.evaluation.published_rows import ROWS

# One of the benchmark's own uploads (leaderboard/file_v1.1/model_name_Open-Domain.json): unrounded.
UPLOAD = {
    "total_score": 0.562269546381486,
    "aes_score": 0.44594517904800374,
    "motion_smoothness": 0.8693211435903602,
    "motion_amplitude": 0.4160163568750958,
    "facesim_cur": 0.4010164068564032,
    "gme_score": 0.6620000359470859,
    "nexus_score": 0.4588851569398767,
    "natural_score": 0.745910020449898,
}
CASES = [
    Case("singleface_1", "p", labels=("Man",)),
    Case("faceobj_2", "p", labels=("Woman", "Cup")),
    Case("singleobj_3", "p", labels=("Dog",)),
]
BEST = {name: part.high for name, part in COMPONENTS.items()}


@pytest.mark.parametrize(("split", "model"), [(split, model) for split, rows in ROWS.items() for model in rows])
def test_published_totals_follow_from_their_components(split, model):
    published, *components = ROWS[split][model]
    # Components are rounded to 0.01, and so is the total.
    assert total_score(dict(zip(weights(split), components, strict=True)), split) == pytest.approx(
        published, abs=0.0101
    )


def test_an_unrounded_upload_has_its_exact_total():
    assert total_score(UPLOAD, "Open-Domain") == pytest.approx(UPLOAD["total_score"], abs=1e-12)


@pytest.mark.parametrize("split", opens2v.SPLITS)
def test_weights_add_up_and_only_human_domain_has_no_nexus_score(split):
    assert sum(weights(split).values()) == pytest.approx(1)
    assert ("nexus_score" in weights(split)) == (split != "Human-Domain")


def results(**changed):
    """The best results of every case, each only where it is measured."""
    found = {case.id: {name: BEST[name] for name in COMPONENTS if opens2v.applies(name, case)} for case in CASES}
    for id, parts in changed.items():
        found[id] |= parts
    return found


def test_the_best_and_the_worst_numbers_are_one_and_zero():
    assert summarise(results(), CASES, "Open-Domain").total == pytest.approx(1)
    worst = {case.id: {name: part.low for name, part in COMPONENTS.items()} for case in CASES}
    assert summarise(worst, CASES, "Open-Domain").total == 0


def test_numbers_beyond_their_range_count_as_its_ends():
    above = results(singleobj_3={"aes_score": 9.0, "nexus_score": 0.4, "motion_amplitude": -3.0, "natural_score": 7.0})
    assert summarise(above, CASES, "Open-Domain").total == pytest.approx(1)
    below = results(singleobj_3={"aes_score": 2.0, "natural_score": 0.0})
    found = summarise(below, CASES, "Open-Domain").components
    assert found["aes_score"] == pytest.approx(2 / 3) and found["natural_score"] == pytest.approx(2 / 3)


def test_a_component_counts_the_cases_that_it_measures_alone():
    found = summarise(results(), CASES, "Open-Domain")
    assert (found.counted["facesim_cur"], found.counted["nexus_score"], found.counted["gme_score"]) == (2, 2, 3)
    assert not found.missing


def test_cases_without_a_result_count_as_zero_by_name_and_the_published_way_drops_them():
    given = results(faceobj_2={"nexus_score": 0.0})
    del given["singleobj_3"]
    ours, published = summarise(given, CASES, "Open-Domain"), summarise_as_published(given, "Open-Domain")
    assert ours.components["gme_score"] == pytest.approx(2 / 3) and published.components["gme_score"] == 1
    assert ours.missing["gme_score"] == ("singleobj_3",)
    assert ours.components["nexus_score"] == 0 and ours.missing["nexus_score"] == ("faceobj_2", "singleobj_3")
    assert ours.components["facesim_cur"] == 1 and "facesim_cur" not in ours.missing
    assert published.counted["nexus_score"] == 0 and published.counted["gme_score"] == 2


def test_the_published_way_drops_a_nexus_score_of_zero():
    given = results(faceobj_2={"nexus_score": 0.0}, singleobj_3={"nexus_score": 0.02})
    assert summarise_as_published(given, "Open-Domain").components["nexus_score"] == pytest.approx(0.4)
    assert summarise(given, CASES, "Open-Domain").components["nexus_score"] == pytest.approx(0.2)


def test_a_split_without_its_cases_and_results_of_other_cases_are_refused():
    with pytest.raises(UserError, match="none of the 1 cases is one that FaceSim"):
        summarise({}, CASES[2:], "Open-Domain")
    with pytest.raises(UserError, match="1 results are of no case of the file: singleobj_9"):
        summarise(results() | {"singleobj_9": {}}, CASES, "Open-Domain")
    with pytest.raises(UserError, match="no split 'Closed'; it has Open-Domain"):
        summarise_as_published({}, "Closed")


def test_result_files_come_back_as_they_were_written(tmp_path):
    given = results(singleobj_3={"aes_score": 4.811809062957764})
    names = {path.name for path in opens2v.write_results(given, tmp_path)}
    assert names == {
        "aesthetic_score.json", "motion_smoothness.json", "motion_amplitude.json", "facesim.json", "gmescore.json",
        "nexusscore.json", "naturalscore_1.json",
    }  # fmt: skip
    assert opens2v.read_results(tmp_path) == given
    assert json.loads((tmp_path / "aesthetic_score.json").read_text())["singleobj_3"] == {
        "aes_score": 4.811809062957764
    }


def test_result_files_of_the_benchmarks_own_scripts_are_read(tmp_path):
    files = {
        "facesim": {"singleface_1": {"cur_score": 0.9, "arc_score": 0.8}},
        "motion_amplitude": {"singleface_1": {"motion_fb": 0.25, "motion_lk": 7.2}},
        "naturalscore_1": {"singleface_1": "4", "singleobj_3": "3"},
        "naturalscore_2": {"singleface_1": "3", "singleobj_3": "error"},
        "naturalscore_3": {"singleface_1": "5"},
        "something_else": [1],
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert opens2v.read_results(tmp_path) == {
        "singleface_1": {"motion_amplitude": 0.25, "facesim_cur": 0.9, "natural_score": 4.0},
        "singleobj_3": {"natural_score": 3.0},
    }


def test_written_results_are_not_averaged_with_older_answers(tmp_path):
    (tmp_path / "naturalscore_2.json").write_text('{"singleobj_3": "1"}')
    opens2v.write_results(results(), tmp_path)
    assert opens2v.read_results(tmp_path)["singleobj_3"]["natural_score"] == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must be an object"), ("{", "is not JSON"), ('{"a": {"gme_score": "x"}}', '"x" is no number'),
        ('{"a": {"gme_score": NaN}}', "not a finite number"), ('{"a": {"gme_score": true}}', "true is no number"),
    ],
)  # fmt: skip
def test_a_broken_result_file_is_one_message_that_names_it(tmp_path, content, message):
    (tmp_path / "gmescore.json").write_text(content)
    with pytest.raises(UserError, match=f"gmescore.json.*{message}"):
        opens2v.read_results(tmp_path)


def test_a_folder_without_results_is_refused_with_the_files_names(tmp_path):
    with pytest.raises(UserError, match=r"holds no result.*aesthetic_score\.json"):
        opens2v.read_results(tmp_path)


def test_a_leaderboards_row_is_what_the_leaderboard_prints(tmp_path):
    row = opens2v.leaderboard_row(UPLOAD, "Open-Domain", "[Kling1.6](https://a)", "Closed-Source", "OpenS2V Team")
    assert ",".join(row) == (
        "Model,Venue,Evaluated by,TotalScore↑,Aesthetics↑,MotionSmoothness↑,MotionAmplitude↑,FaceSim↑,GmeScore↑,"
        "NexusScore↑,NaturalScore↑"
    )
    assert " ".join(list(row.values())[3:]) == "56.23% 44.59% 86.93% 41.60% 40.10% 66.20% 45.89% 74.59%"
    assert opens2v.row_scores(row, "Open-Domain")["total_score"] == pytest.approx(0.5623)
    path = opens2v.write_leaderboard([row, row], "Open-Domain", tmp_path / "results_Open-Domain.csv")
    assert opens2v.read_leaderboard(path, "Open-Domain") == [row, row]
    with pytest.raises(UserError, match="is no leaderboard of Human-Domain"):
        opens2v.read_leaderboard(path, "Human-Domain")
    with pytest.raises(UserError, match="GmeScore↑ is 'n/a', no percentage"):
        opens2v.row_scores(row | {"GmeScore↑": "n/a"}, "Open-Domain")


def test_a_submission_comes_back_as_written_and_lacks_nothing(tmp_path):
    summary = summarise(results(), CASES, "Human-Domain")
    path = opens2v.write_submission(summary, tmp_path / "model_Human-Domain.json")
    assert opens2v.read_submission(path, "Human-Domain") == pytest.approx(opens2v.submission(summary))
    with pytest.raises(UserError, match="no submission to Open-Domain: it has no nexus_score"):
        opens2v.read_submission(path, "Open-Domain")
