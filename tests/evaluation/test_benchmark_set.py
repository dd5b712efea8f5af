"""Sets have the paper's counts, are a function of their seed, and show each subject as often as they say."""

import json
import random
from collections import Counter

import pytest

from phantom_mega.data.schema import CATEGORIES
from phantom_mega.errors import UserError
from phantom_mega.evaluation.benchmark_set import (
    LabelledImage,
    SetSettings,
    balanced,
    choose_groups,
    named,
    plan_cases,
    read_references,
    read_templates,
)
from phantom_mega.evaluation.opens2v import applies
from phantom_mega.generation.cases import Case

TEMPLATES = read_templates()


def labelled(each: int = 12, portraits: int = 50) -> list[LabelledImage]:
    found = [
        LabelledImage(f"{category}/thing {i % 6}/{i}.png", category, f"{category} {i % 6}")
        for category in CATEGORIES
        for i in range(each)
    ]
    return found + [LabelledImage(f"portrait/p{i}/1.png", "human", "woman", True) for i in range(portraits)]


def test_the_papers_set_has_450_videos_of_50_references_50_groups_and_50_portraits():
    cases = plan_cases(labelled(), TEMPLATES, SetSettings())
    assert Counter(case.track for case in cases) == {"single": 450, "multi": 50, "portrait": 50}
    assert len({case.id for case in cases}) == len(cases)
    for track in ("single", "multi", "portrait"):
        assert len({case.subject for case in cases if case.track == track}) == 50
    single = [case for case in cases if case.track == "single"]
    assert set(Counter(case.subject for case in single).values()) == {9}
    assert {len({c.prompt for c in single if c.subject == case.subject}) for case in single} == {3}
    assert Counter(case.seed for case in single) == {0: 150, 1: 150, 2: 150}
    assert not any(image.portrait for case in cases if case.track != "portrait" for image in case.references)


def test_a_set_is_a_function_of_its_seed_and_a_track_of_no_other_track():
    first = plan_cases(labelled(), TEMPLATES, SetSettings(seed=1))
    assert first == plan_cases(list(labelled()), TEMPLATES, SetSettings(seed=1))
    assert first != plan_cases(labelled(), TEMPLATES, SetSettings(seed=2))
    alone = plan_cases(labelled(), TEMPLATES, SetSettings(seed=1, tracks=("multi",)))
    assert alone == [case for case in first if case.track == "multi"]


def test_references_are_taken_from_all_categories_and_labels_alike():
    chosen = balanced(labelled(), 42, random.Random(0))
    assert set(Counter(image.category for image in chosen).values()) == {6}
    assert set(Counter(image.label for image in chosen if not image.portrait).values()) == {1}


def test_groups_are_of_different_subjects_and_of_many_kinds():
    groups = choose_groups(labelled(portraits=0), list(TEMPLATES["groups"]), 50, random.Random(0))
    assert len({frozenset(image.path for image in group) for group in groups}) == 50
    assert all(len({image.label for image in group}) == len(group) >= 2 for group in groups)
    kinds = Counter("+".join(image.category for image in group) for group in groups)
    assert set(kinds) == set(TEMPLATES["groups"]) and max(kinds.values()) <= 3


def test_every_group_there_is_is_found_once():
    images = [LabelledImage(f"animal/{label}/1.png", "animal", label) for label in ("cat", "dog", "cow")]
    groups = choose_groups(images, ["animal+animal"], 50, random.Random(0))
    pairs = {frozenset(image.label for image in group) for group in groups}
    assert len(groups) == 3 and pairs == {frozenset(p) for p in (("cat", "dog"), ("cat", "cow"), ("dog", "cow"))}
    same = [LabelledImage(f"animal/cat/{i}.png", "animal", "cat") for i in range(4)]
    assert choose_groups(same, ["animal+animal"], 50, random.Random(0)) == []


def test_prompts_name_every_reference_of_their_case():
    for case in plan_cases(labelled(), TEMPLATES, SetSettings()):
        for image in case.references:
            assert named(image.label).lower() in case.prompt.lower()
        assert case.prompt[0].isupper() and "{" not in case.prompt


def test_ids_say_which_scores_are_measured():
    cases = plan_cases(labelled(), TEMPLATES, SetSettings())
    for case in cases:
        humans = [image.category for image in case.references].count("human")
        shown = Case(case.id, case.prompt, labels=tuple(image.label for image in case.references))
        assert applies("facesim_cur", shown) == (humans == 1)


def test_too_few_references_are_one_message_with_all_counts_and_what_would_do():
    with pytest.raises(UserError, match=r"there are 14 references, 50 groups of references, 5 portraits.*--subjects 5"):
        plan_cases(labelled(each=2, portraits=5), TEMPLATES, SetSettings())
    assert plan_cases(labelled(each=2, portraits=5), TEMPLATES, SetSettings(subjects=5))
    animals = [LabelledImage(f"animal/{i}/1.png", "animal", f"a{i}") for i in range(50)]
    with pytest.raises(UserError, match="0 portraits: add references, or leave the track portrait out of --tracks"):
        plan_cases(animals, TEMPLATES, SetSettings())
    with pytest.raises(UserError, match="99 different prompts are asked for, there are"):
        plan_cases(labelled(), TEMPLATES, SetSettings(prompts=99))
    with pytest.raises(UserError, match="at least one"):
        plan_cases(labelled(), TEMPLATES, SetSettings(subjects=0))


def test_without_marked_portraits_humans_are_the_portraits():
    cases = plan_cases(labelled(portraits=0), TEMPLATES, SetSettings(subjects=12, tracks=("portrait",)))
    assert {case.references[0].category for case in cases} == {"human"} and len(cases) == 12


def test_the_packages_templates_cover_every_category_with_eight_or_more():
    assert set(TEMPLATES["single"]) == {*CATEGORIES, "portrait"}
    for templates in TEMPLATES["single"].values():
        assert len(set(templates)) == len(templates) >= 8
    for key, templates in TEMPLATES["groups"].items():
        assert len(set(templates)) >= 2 and 2 <= len(key.split("+")) <= 4
    assert {category for key in TEMPLATES["groups"] for category in key.split("+")} == set(CATEGORIES)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("corgi", "a corgi"), ("owl", "an owl"), ("jeans", "the jeans"), ("dress", "a dress"), ("the moon", "the moon"),
        ("Eiffel Tower", "Eiffel Tower"), ("a red hat", "a red hat"),
    ],
)  # fmt: skip
def test_labels_become_words_of_a_sentence(label, words):
    assert named(label) == words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"single": {}}', 'needs "single" and "groups"'),
        ('{"single": {"pet": ["{0}"]}, "groups": {}}', "'pet' is no category"),
        ('{"single": {"animal": ["a cat"]}, "groups": {}}', r"'a cat' must name \{0\}"),
        ('{"single": {}, "groups": {"human+animal": ["{0} runs"]}}', r"must name \{0\}, \{1\}"),
        ('{"single": {}, "groups": {"human+animal": ["{0} {1} {2}"]}}', r"must name \{0\}, \{1\}"),
    ],
)
def test_broken_templates_are_named(tmp_path, content, message):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_templates(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a.png": {"category": "animal"}}', "a.png.*it needs a"),
        ('{"a.png": {"category": "pet", "label": "cat"}}', "'pet' is no category; they are human, animal"),
        ('{"../a.png": {"category": "animal", "label": "cat"}}', "lie in the folder of references"),
        ('{"/a.png": {"category": "animal", "label": "cat"}}', "lie in the folder of references"),
        ("[]", "must be an object"), ("{}", "holds no references"),
    ],
)  # fmt: skip
def test_a_broken_list_of_references_is_named(tmp_path, content, message):
    (tmp_path / "references.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_references(tmp_path)


def test_references_are_listed_relative_to_their_folder(tmp_path):
    listed = {str(tmp_path / "a.png"): {"category": "animal", "label": "cat"}}
    (tmp_path / "references.json").write_text(json.dumps(listed))
    with pytest.raises(UserError, match="named relative to it"):
        read_references(tmp_path)


def test_folders_and_lists_give_the_same_references(tmp_path):
    for path in ("animal/welsh_corgi/1.png", "animal/welsh_corgi/2.JPG", "portrait/woman/a.jpeg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    (tmp_path / "animal/welsh_corgi/notes.txt").write_text("")
    by_folders = read_references(tmp_path)
    assert by_folders == [
        LabelledImage("animal/welsh_corgi/1.png", "animal", "welsh corgi"),
        LabelledImage("animal/welsh_corgi/2.JPG", "animal", "welsh corgi"),
        LabelledImage("portrait/woman/a.jpeg", "human", "woman", portrait=True),
    ]
    (tmp_path / "references.json").write_text(
        '{"animal/welsh_corgi/2.JPG": {"category": "animal", "label": "welsh corgi"},'
        '"animal/welsh_corgi/1.png": {"category": "animal", "label": "welsh corgi"},'
        '"portrait/woman/a.jpeg": {"category": "human", "label": "woman", "portrait": true}}'
    )
    assert read_references(tmp_path) == by_folders


def test_unknown_categories_and_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="is no folder of references"):
        read_references(tmp_path / "none")
    (tmp_path / "cats/tom").mkdir(parents=True)
    (tmp_path / "cats/tom/1.png").write_bytes(b"")
    with pytest.raises(UserError, match="'cats' is no category; they are human"):
        read_references(tmp_path)
