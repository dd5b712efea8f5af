"""Subjects of captions: what they are called, what kind they are, and that none is taken for another."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_mega.curation import subjects
from phantom_mega.curation.captions import CaptionSettings
from phantom_mega.curation.captions import stage as caption_stage
from phantom_mega.curation.engine.stage import Rejection, Stage
from phantom_mega.curation.engine.tables import Table, split
from phantom_mega.curation.subjects import SubjectSettings, confused, parse, settle
from phantom_mega.errors import SetupError, UserError
from phantom_mega.vlm.asking import UnusableAnswerError
from tests import loopback
from tests.curation.tables import PARTS
from tests.curation.vlm import asked, run_alone, says, write_clips
from tests.tiny_models import write_qwen

CAPTION = "A tall man in a red coat walks a small brown dog past a stone tower."


def write_captions(folder, rows):
    """Table `captions` of (clip, caption, described)."""
    stage = Stage("captions", caption_stage(CaptionSettings()).columns, {}, None, None)
    names = ("clip_id", "caption", "described")
    made = [{"accepted": True, "_input": bytes(16)} | dict(zip(names, row, strict=True)) for row in rows]
    for part, members in enumerate(split(made, stage, PARTS)):
        Table(folder, "captions", PARTS).write(part, members, stage.schema, b"by hand")


def described(*phrases):
    return [{"phrase": phrase, "appearance": f"looks of {phrase}"} for phrase in phrases]


def found(row):
    return [(one["phrase"], one["category"]) for one in row["subjects"]]


@pytest.mark.parametrize(("phrases", "alike"), [
    (["a man", "a man in red"], {0: 1}),
    (["a man in red", "a woman", "the red man"], {0: 2, 2: 0}),
    (["a man", "another man"], {0: 1, 1: 0}),
    (["a man", "a woman"], {}),
    (["a man in a red coat", "a red coat"], {}),
    (["a man", "the man's dog"], {}),
    (["a dog", "a small brown dog running"], {0: 1}),
    (["young man with a dog", "old man with a dog"], {}),
    (["男人", "高个子男人"], {0: 1}),
])  # fmt: skip
def test_a_phrase_that_also_fits_another_subject_is_not_told_apart(phrases, alike):
    assert confused(phrases) == alike


@given(st.lists(st.lists(st.sampled_from(["red", "big", "man", "dog", "coat", "in", "a"]), max_size=5), max_size=6))
def test_what_is_left_is_told_apart_whatever_was_said(phrases):
    rows = [{"phrase": " ".join(words), "appearance": ""} for words in phrases]
    try:
        row = settle("c", rows, 9)
    except Rejection as rejection:
        assert rejection.reason in ("no subject", "not told apart")
        return
    assert row["subjects"] and confused([one["phrase"] for one in row["subjects"]]) == {}


def test_subjects_are_what_the_captions_model_listed_and_who_is_dropped_is_told(tmp_path):
    write_captions(tmp_path, [
        ("good", "x", described("a tall man", "a small dog", "a castle", "a cartoon cat")),
        ("alike", "x", described("a man", "a man in red", "a dog", "a dog")),
        ("same", "x", described("a man", "the man")),
        ("none", "x", []), ("unlisted", "x", None), ("empty", "x", described("of the")),
    ])  # fmt: skip
    rows = run_alone(subjects.stage(SubjectSettings(max_subjects=3)), tmp_path)
    assert found(rows["good"]) == [("a tall man", "human"), ("a small dog", "animal"), ("a castle", "landmark")]
    assert rows["good"]["subjects"][0]["appearance"] == "looks of a tall man"
    assert rows["good"]["subjects"][0]["identity"] is None and rows["good"]["detail"] == "too many: a cartoon cat"
    assert found(rows["alike"]) == [("a man in red", "human")] and rows["alike"]["accepted"]
    assert rows["alike"]["detail"] == (
        "not told apart: a man (fits a man in red); not told apart: a dog (fits a dog); not told apart: a dog (fits a "
        "dog)"
    )
    assert rows["same"]["reason"] == "not told apart" and "fits the man" in rows["same"]["detail"]
    assert {rows[name]["reason"] for name in ("none", "unlisted", "empty")} == {"no subject"}


def test_noun_phrases_become_subjects(tmp_path):
    captions = [
        ("one", CAPTION, None),
        ("none", "It is raining.", None),
        ("hostile", "<script> {}; \u202e " * 40, None),
    ]
    write_captions(tmp_path, captions)
    rows = run_alone(subjects.stage(SubjectSettings("spacy")), tmp_path)
    assert found(rows["one"]) == [
        ("A tall man in a red coat", "human"), ("a red coat", "clothes"), ("a small brown dog", "animal"),
        ("a stone tower", "landmark"),
    ]  # fmt: skip
    assert rows["none"]["reason"] == "no subject" and rows["hostile"]["reason"] != "failed"


MAN = {"phrase": "a tall man in a red coat", "category": "ip_character", "appearance": "tall, red coat"}


def test_a_model_is_asked_for_subjects_and_told_what_was_wrong(tmp_path):
    write_captions(tmp_path, [("one", CAPTION, None)])
    with loopback.serving(says({"subjects": [MAN | {"category": "wizard"}]}), says({"subjects": [MAN]})) as server:
        given = SubjectSettings("openai", "llm", server.address)
        row = run_alone(subjects.stage(given), tmp_path)["one"]
    assert found(row) == [("a tall man in a red coat", "ip_character")], "the answer's category, not that of its words"
    assert asked(server, 0)[1]["content"] == f"Caption: {CAPTION}"
    assert "the category of 'a tall man in a red coat' must be one of human, animal" in asked(server)[3]["content"]


@pytest.mark.parametrize(("text", "wrong"), [
    ("no", "holds no JSON object"),
    ('{"subjects": {}}', '"subjects" must be a list of objects'),
    ('{"subjects": [1]}', '"subjects" must be a list of objects'),
    (json.dumps({"subjects": [MAN] * 31}), "there are 31 subjects"),
    (json.dumps({"subjects": [MAN | {"phrase": "a tall wizard"}]}), "'a tall wizard' has words that the caption"),
    (json.dumps({"subjects": [MAN | {"phrase": "the"}]}), "'the' has words"),
    (json.dumps({"subjects": [MAN | {"phrase": "red " * 99}]}), "'phrase' has 395 characters; 200 are the most"),
    (json.dumps({"subjects": [MAN | {"category": ["human"]}]}), "must be one of human"),
    (json.dumps({"subjects": [{"phrase": "a tall man"}]}), "'appearance' must be a text"),
])  # fmt: skip
def test_answers_that_cannot_be_used_are_told(text, wrong):
    with pytest.raises(UnusableAnswerError, match=wrong):
        parse(text, CAPTION)
    assert parse('{"subjects": []}', CAPTION) == []


def test_an_endpoint_that_is_down_or_says_rubbish_costs_its_rows_alone(tmp_path):
    write_captions(tmp_path, [("one", CAPTION, None), ("two", CAPTION, None), ("three", CAPTION, None)])
    down = (503, {"Retry-After": "0"}, "")
    with loopback.serving(says({"subjects": [MAN]}), says("rubbish"), down) as server:
        given = SubjectSettings("openai", "llm", server.address, subject_attempts=1)
        reasons = {str(row["reason"]) for row in run_alone(subjects.stage(given), tmp_path).values()}
    assert reasons == {"None", "no usable subjects", "model unavailable"}
    with loopback.serving((401, {}, "")) as server, pytest.raises(SetupError, match="it refuses"):
        run_alone(subjects.stage(SubjectSettings("openai", "llm", server.address)), tmp_path)


def test_a_model_in_this_process_is_asked(tmp_path):
    write_captions(tmp_path, [("one", CAPTION, None)])
    (tmp_path / "llm").mkdir()
    given = SubjectSettings("transformers", str(write_qwen(tmp_path / "llm")), subject_attempts=1)
    assert run_alone(subjects.stage(given), tmp_path)["one"]["reason"] == "no usable subjects"


def test_annotations_are_taken_with_their_categories_and_identities(tmp_path):
    write_clips(tmp_path, "one", "two", "three")
    write_captions(tmp_path, [(name, CAPTION, None) for name in ("one", "two", "three")])
    rabbit = {"phrase": "a fat rabbit", "category": "ip_character", "identity": "Bunny", "appearance": "grey"}
    line = {"video": "one.mp4", "time": 1.0, "subjects": [rabbit, {"phrase": "a butterfly"}]}
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, (line, {"video": "two.mp4", "time": 1.0}))))
    rows = run_alone(subjects.stage(SubjectSettings("file", subject_file=str(path))), tmp_path)
    assert rows["one"]["subjects"] == [
        rabbit, {"phrase": "a butterfly", "category": "animal", "identity": None, "appearance": ""}
    ]  # fmt: skip
    assert (rows["two"]["reason"], rows["three"]["reason"]) == ("no subject", "not annotated")


@pytest.mark.parametrize(("given", "message"), [
    ({"subject_backend": "none"}, "subjects.subject_backend=none is unknown; use one of described, spacy, openai"),
    ({"max_subjects": 0}, "subjects.max_subjects=0"),
    ({"subject_backend": "openai", "subject_model": ""}, "subjects.subject openai needs subjects.subject_model"),
    ({"subject_backend": "openai"}, "needs subjects.subject_endpoint"),
    ({"subject_backend": "spacy", "subject_model": "nope"}, "subjects.subject_model=nope cannot be loaded"),
    ({"subject_backend": "file"}, "annotations .* cannot be read"),
])  # fmt: skip
def test_settings_that_miss_something_say_what(given, message):
    with pytest.raises(UserError, match=message):
        subjects.open_subjects(SubjectSettings(**given))
