"""All metrics by name, their settings, the paper's tables, and which cases a metric applies to."""

import dataclasses
import re
from pathlib import Path

import pytest

from phantom_mega.errors import UserError
from phantom_mega.evaluation import clip_t, facesim, registry, viclip_t
from phantom_mega.evaluation.clip_i_seg import ClipISegSettings
from phantom_mega.evaluation.config import EVALUATION, load_config
from phantom_mega.evaluation.image_similarity import ImageSimilarity
from phantom_mega.evaluation.metric import Metric
from phantom_mega.evaluation.registry import METRICS, TABLES, applies, check_names, stages, track_of
from phantom_mega.generation.cases import Case

SOURCES = Path(registry.__file__).parent


def test_every_metric_of_the_package_is_registered():
    modules = [path for path in SOURCES.glob("*.py") if re.search(r"^METRICS = ", path.read_text(), re.M)]
    named = {module.__name__.rpartition(".")[2] for module in registry._MODULES}
    assert {path.stem for path in modules} - {"registry"} == named and set(METRICS) == set(registry._BUILDERS)


def test_titles_and_directions_are_those_of_the_metrics_themselves():
    for module in registry._MODULES:
        for found in vars(module).values():
            if isinstance(found, type) and isinstance(getattr(found, "title", None), str) and found is not Metric:
                entry = METRICS[found.name]
                assert (entry.title, entry.higher_is_better) == (found.title, found.higher_is_better)
    assert {name: METRICS[name].title for name in facesim._RECOGNIZERS} == {
        name: title for name, (title, _) in facesim._RECOGNIZERS.items()
    }
    for name in ("clip_i", "dino_i", "clip_i_seg", "dino_i_seg"):
        assert f'"{name}", "{METRICS[name].title}"' in (SOURCES / f"{name}.py").read_text()
    assert ImageSimilarity.higher_is_better and facesim.FaceSim.higher_is_better
    assert METRICS["viclip_t"].most == METRICS["clip_t"].most and {viclip_t.ViClipT.name, clip_t.ClipT.name} <= set(
        METRICS
    )


def test_every_metric_is_in_exactly_one_stage_and_in_a_table_of_all_cases():
    staged = [name for stage in stages(list(METRICS)) for name in stage]
    assert sorted(staged) == sorted(METRICS)
    assert sorted(name for table in TABLES if not table.track for name in table.metrics) == sorted(METRICS)
    assert stages(["facesim_cur", "copy_paste", "facesim_arc"])[0] == ["facesim_arc", "facesim_cur"]


def test_the_papers_tables_have_its_columns():
    columns = {table.track: [METRICS[name].title for name in table.metrics] for table in TABLES if table.track}
    assert columns == {
        "portrait": ["FaceSim-Arc", "FaceSim-Cur", "FaceSim-glint", "ViCLIP-T"],
        "single": ["CLIP-I", "DINO-I", "CLIP-I-Seg", "DINO-I-Seg", "ViCLIP-T"],
        "multi": ["CLIP-I", "DINO-I", "ViCLIP-T"],
    }


def test_a_case_without_a_video_counts_with_the_worst_value():
    assert METRICS["clip_i"].worst == 0 and METRICS["copy_paste"].worst == 1


@pytest.mark.parametrize(("id", "images", "track"), [
    ("singleface_1", ("a",), "portrait"), ("singleobj_1", ("a",), "single"), ("x", ("a", "b"), "multi"),
    ("x", (), "none"),
])  # fmt: skip
def test_tracks_are_told_by_ids_and_references(id, images, track):
    assert track_of(Case(id, "p", images)) == track


def test_metrics_of_references_apply_to_cases_that_have_some_and_those_of_faces_to_persons():
    text, cat, man = Case("t", "p"), Case("c", "p", ("a",), ("cat",)), Case("m", "p", ("a",), ("man",))
    assert [applies(name, text) for name in ("clip_i", "copy_paste", "facesim_arc", "viclip_t")] == [0, 0, 0, 1]
    assert [applies("facesim_cur", case) for case in (cat, man, Case("u", "p", ("a",)))] == [False, True, True]
    assert applies("dino_i_seg", cat)


def test_names_keep_the_registrys_order_and_mistakes_name_the_nearest():
    assert check_names(["copy_paste", "clip_i"]) == ["clip_i", "copy_paste"]
    with pytest.raises(UserError, match="there is no metric 'clip-i'; did you mean clip_i"):
        check_names(["clip-i"])
    with pytest.raises(UserError, match="no metric is named"):
        check_names([])


def test_every_setting_of_every_metric_is_documented_and_can_be_set():
    expected = {
        f"{name}.{field.name}" for name, entry in METRICS.items() for field in dataclasses.fields(entry.settings)
    }
    documented = {path for path in EVALUATION.fields if not path.startswith("evaluation.")}
    assert documented == expected and all(len(doc) > 10 for doc in EVALUATION.fields.values())
    config = load_config("default", ["clip_i_seg.threshold=0.4", "dino_i.model=x", "clip_i.fit=pad"])
    assert config.clip_i_seg == dataclasses.replace(ClipISegSettings(), threshold=0.4)
    assert (config.dino_i.model, config.dino_i_seg.model, config.clip_i.fit) == ("x", "facebook/dinov2-base", "pad")


def test_the_default_recipe_is_the_defaults_of_the_code_and_the_tiny_one_needs_no_model():
    assert load_config("default", []) == EVALUATION.root() and "clip_t" not in EVALUATION.root().evaluation.metrics
    tiny = load_config("tiny", [])
    for name in tiny.evaluation.metrics:
        assert METRICS[name].build(getattr(tiny, name), "cpu").name == name


@pytest.mark.parametrize(("words", "message"), [
    (["clip_i.modle=x"], "unknown field clip_i.modle; did you mean clip_i.model"),
    (["clop_i.model=x"], "unknown section 'clop_i'; did you mean clip_i"),
    (["--model", "x"], "unknown flag --model: several sections have it; write clip_i.model="),
    (["evaluation.confidence=95"], "evaluation.confidence=95.0; it must be between 0 and 1"),
    (["evaluation.resamples=1"], "evaluation.resamples=1; it must be at least 99"),
    (["evaluation.metrics=[clip]"], "there is no metric 'clip'; did you mean clip_t"),
])  # fmt: skip
def test_mistakes_in_settings_name_the_right_word(words, message):
    with pytest.raises(UserError, match=message):
        load_config("tiny", words)
