"""Cases: OpenS2V-Eval's schema is read, anything else is refused by name, settings decide what is done again."""

import json
from pathlib import Path

import pytest

from phantom_mega.errors import UserError
from phantom_mega.generation.cases import Case, read_cases, settings_of


def write(folder, cases):
    path = folder / "cases.json"
    path.write_text(cases if isinstance(cases, str) else json.dumps(cases))
    return path


def test_the_schema_of_opens2v_eval_is_read_with_images_beside_the_file(tmp_path):
    path = write(tmp_path, {
        "humanobj_1": {"img_paths": ["Images/a.png", "/data/b.png"], "prompt": "A man.", "class_label": ["man", "cup"]},
        "alone-2": {"img_paths": [], "prompt": "A hill.", "class_label": "hill"},
        "seeded": {"prompt": "A sea.", "seed": 7, "face": True},
    })  # fmt: skip
    first, second, third = read_cases(path)
    assert first == Case("humanobj_1", "A man.", (str(tmp_path / "Images/a.png"), "/data/b.png"), ("man", "cup"))
    assert second == Case("alone-2", "A hill.", (), ("hill",)) and third.seed == 7
    assert read_cases(path, Path("/elsewhere"))[0].images[0] == "/elsewhere/Images/a.png"


@pytest.mark.parametrize(("cases", "message"), [
    ("{not json", "is not JSON"),
    ([1], "must be an object"),
    ({}, "must be an object"),
    ({"../up": {"prompt": "x"}}, "case '../up': its id must be a file's name"),
    ({".": {"prompt": "x"}, "a/b": {"prompt": "x"}}, "case '.*': its id must be a file's name"),
    ({"a": {"img_paths": []}}, 'case \'a\': it needs a "prompt"'),
    ({"a": "a cat"}, 'it needs a "prompt"'),
    ({"a": {"prompt": "x", "img_paths": "a.png"}}, '"img_paths" must be a list of texts'),
    ({"a": {"prompt": "x", "class_label": [1]}}, '"class_label" must be a list of texts'),
    ({"a": {"prompt": "x", "img_paths": list("abcde")}}, "it has 5 reference images; the model takes at most 4"),
    ({"a": {"prompt": "x", "seed": "1"}}, '"seed" must be a whole number'),
])  # fmt: skip
def test_another_file_is_refused_and_names_the_case(tmp_path, cases, message):
    with pytest.raises(UserError, match=message):
        read_cases(write(tmp_path, cases))


def test_a_missing_file_is_one_message(tmp_path):
    with pytest.raises(UserError, match=r"none\.json cannot be read: No such file"):
        read_cases(tmp_path / "none.json")


def test_settings_tell_changed_images_from_moved_ones(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "b.png").write_bytes(b"1")
    (tmp_path / "c.png").write_bytes(b"2")
    a, b, c = (settings_of(Case("x", "p", (str(tmp_path / f"{name}.png"),)), {"seed": 1}) for name in "abc")
    assert a == b and a != c
    assert settings_of(Case("x", "p"), {"steps": 1}) != settings_of(Case("x", "p"), {"steps": 2})
    assert json.loads(json.dumps(a)) == a
