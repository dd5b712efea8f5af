"""Categories by words: the head decides, not what it wears, holds or is in."""

import pytest

from phantom_mega.curation.categories import CATEGORY_WORDS, category_of, head_words
from phantom_mega.data.schema import CATEGORIES


@pytest.mark.parametrize(("phrase", "category"), [
    ("A woman's red dress", "clothes"), ("two Dogs", "animal"), ("an old man in a suit", "human"),
    ("quasar", "others"), ("", "others"), ("...", "others"), ("a pair of shoes", "clothes"), ("puppies", "animal"),
    ("a bottle of water", "product"), ("a stone statue of a lion", "landmark"), ("buses", "product"),
    ("a boy riding a bicycle", "human"), ("a glass of wine", "product"), ("glasses", "clothes"),
    ("a group of people", "human"), ("a pink butterfly", "animal"), ("a red-haired girl", "human"),
    # ones that somebody made
    ("a fat grey cartoon rabbit", "ip_character"), ("an animated character", "ip_character"),
    ("Mickey Mouse", "ip_character"), ("Spider-Man in his red suit", "ip_character"), ("the mascot", "ip_character"),
    ("a cartoon house", "landmark"), ("a Batman shirt", "clothes"), ("a man in a Batman costume", "human"),
    ("a man beside a cartoon rabbit", "human"), ("a mouse", "others"),
])  # fmt: skip
def test_phrases_have_the_category_of_their_head(phrase, category):
    assert category_of(phrase) == category


def test_no_word_has_two_categories_and_each_category_is_known():
    words = [word for words in CATEGORY_WORDS.values() for word in words.split()]
    assert len(words) == len(set(words)) and set(CATEGORY_WORDS) == set(CATEGORIES) - {"others"}


def test_the_head_ends_where_its_surroundings_begin():
    assert head_words("A tall man in a red coat") == ["a", "tall", "man"] and head_words("in the park") == []
