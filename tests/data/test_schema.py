"""The schema: JSON comes back as it went, and what is missing, impossible or of another version is named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_mega.data.schema import CATEGORIES, SCHEMA_VERSION, Reference, ReferenceSource, Triplet, from_json, to_json
from phantom_mega.errors import UserError
from tests.data.helpers import make_triplet

texts = st.text(max_size=30)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
sources = st.builds(
    ReferenceSource,
    texts,
    st.integers(0, 10**6),
    st.tuples(st.floats(0, 100), st.floats(0, 100), st.floats(101, 4000), st.floats(101, 4000)),
)
sizes = st.integers(1, 8000)
references = st.builds(
    Reference,
    texts,
    st.sampled_from(CATEGORIES),
    st.sampled_from(["cross", "in"]),
    sources,
    sizes,
    sizes,
    st.booleans(),
)
triplets = st.builds(
    Triplet,
    key=st.from_regex(r"[A-Za-z0-9_\-]{1,80}", fullmatch=True),
    caption=texts,
    video_id=texts,
    frames=st.integers(1, 10**5),
    fps=st.floats(1, 240),
    height=sizes,
    width=sizes,
    codec=st.sampled_from(["vp9", "h264", "png"]),
    references=st.lists(references, max_size=4).map(tuple),
    text_tokens=st.integers(0, 1000),
    scores=st.dictionaries(texts, numbers, max_size=3),
)


@given(triplets)
def test_every_triplet_comes_back_from_its_json(triplet):
    data = to_json(triplet)
    assert data["schema_version"] == SCHEMA_VERSION
    assert from_json(json.loads(json.dumps(data, ensure_ascii=False, allow_nan=False))) == triplet


def test_optional_fields_may_be_missing():
    data = to_json(make_triplet(references=0))
    for name in ("text_tokens", "references", "scores"):
        del data[name]
    assert from_json(data) == Triplet("clip_0", "A caption of clip_0", "video_a", 33, 24.0, 480, 832, "vp9")


@pytest.mark.parametrize("name", ["key", "caption", "video_id", "frames", "fps", "height", "width", "codec"])
def test_missing_fields_are_named(name):
    data = to_json(make_triplet())
    del data[name]
    with pytest.raises(UserError, match=f"lacks the field '{name}'"):
        from_json(data)


@pytest.mark.parametrize("name", ["phrase", "category", "kind", "source", "height", "width"])
def test_missing_fields_of_references_are_named(name):
    data = to_json(make_triplet())
    del data["references"][0][name]
    with pytest.raises(UserError, match=f"lacks the field '{name}'"):
        from_json(data)


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_other_schema_versions_are_refused(version):
    with pytest.raises(UserError, match=f"schema version {version!r} is not {SCHEMA_VERSION}"):
        from_json(to_json(make_triplet()) | {"schema_version": version})


@pytest.mark.parametrize(
    "change",
    [
        {"frames": "many"}, {"frames": float("inf")}, {"fps": None}, {"references": 3}, {"references": [None]},
        {"scores": [1]},
    ],
)  # fmt: skip
def test_fields_of_the_wrong_kind_are_refused(change):
    with pytest.raises(UserError, match="wrong kind"):
        from_json(to_json(make_triplet()) | change)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_json_that_is_no_object_is_refused(data):
    with pytest.raises(UserError, match="not an object"):
        from_json(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "a/b"}, "the key may hold"), ({"key": "../a"}, "the key may hold"),
        ({"key": "a.b"}, "the key may hold"), ({"key": ""}, "the key may hold"),
        ({"frames": 0}, "at least 1"), ({"height": -1}, "at least 1"),
        ({"fps": 0.0}, "must be positive"), ({"fps": float("nan")}, "must be positive"),
        ({"fps": float("inf")}, "must be positive"), ({"references": 5}, "at most 4"),
        ({"kind": "self"}, "kind 'self'"), ({"tokens": -1}, "text_tokens=-1"),
    ],
)  # fmt: skip
def test_impossible_triplets_are_refused(change, message):
    with pytest.raises(UserError, match=f"sample '.*': .*{message}"):
        make_triplet(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "thing"}, "category 'thing' is unknown; use one of human"),
        ({"height": 0}, "height=0, width=20 must be at least 1"),
        ({"source": {"video_id": "v", "frame": 0, "box": [5, 0, 5, 9]}}, "box .* is empty"),
        ({"source": {"video_id": "v", "frame": 0, "box": [5, 0, 9]}}, "box .* is empty"),
        ({"source": {"video_id": "v", "frame": -1, "box": [0, 0, 9, 9]}}, "frame -1"),
    ],
)
def test_impossible_references_are_refused_by_number(change, message):
    data = to_json(make_triplet(references=2))
    data["references"] = [data["references"][0], data["references"][1] | change]
    with pytest.raises(UserError, match=f"^sample 'clip_0': reference 1: {message}"):
        from_json(data)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="score 'q' is nan"):
        from_json(to_json(make_triplet()) | {"scores": {"q": float("nan")}})
