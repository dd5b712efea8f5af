from phantom_mega.curation.categories import category_of
from phantom_mega.data.schema import CATEGORIES


def test_phrases_have_the_category_of_their_head():
    found = {
        phrase: category_of(phrase)
        for phrase in ("A woman's red dress", "two Dogs", "an old man in a suit", "quasar", "")
    }
    assert list(found.values()) == ["clothes", "animal", "human", "others", "others"]
    assert set(found.values()) < set(CATEGORIES)
