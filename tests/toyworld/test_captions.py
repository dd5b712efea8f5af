"""Captions: what they say is read back, distinct ones tell actors apart, vague ones name no appearance."""

import pytest

from phantom_mega.errors import UserError
from phantom_mega.toyworld.captions import STYLES, describe, parse_caption, phrase
from phantom_mega.toyworld.samples import make_sample
from phantom_mega.toyworld.scenes import Actor, Scene
from phantom_mega.toyworld.subjects import HUES, PARTS, SHAPES, TEXTURES, Subject, colour_name

ORANGE = Subject("star", "hat", "dots", (250, 130, 20), (40, 60, 240))


def test_captions_are_plain_english():
    scene = Scene("meadow", "dim", "pan", (Actor(ORANGE, "moves left", (0.5, 0.5), 0.0, 0.4, False),))
    ending = "moves left in the meadow, dim light, panning camera"
    assert describe(scene) == f"an orange star {ending}"
    assert describe(scene, "distinct") == f"an orange star with blue dots and hat {ending}"
    assert describe(scene, "vague") == f"a creature {ending}"


@pytest.mark.parametrize(
    ("part", "texture", "words", "colourless"),
    [
        ("none", "plain", "a plain orange star", "a plain star"),
        ("hat", "plain", "a plain orange star with blue hat", "a plain star with hat"),
        ("none", "dots", "an orange star with blue dots", "a star with dots"),
        ("horns", "dots", "an orange star with blue dots and horns", "a star with dots and horns"),
    ],
)
def test_distinct_phrases_tell_texture_and_part_with_and_without_colours(part, texture, words, colourless):
    subject = Subject("star", part, texture, ORANGE.body, ORANGE.accent)
    assert phrase(subject, "distinct") == words
    assert phrase(subject, "distinct", colours=False) == colourless


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("actors", [1, 2, 4])
def test_captions_are_read_back(style, actors):
    for number in range(60):
        scene = make_sample(0, number, actors=actors, style=style).scene
        read = parse_caption(describe(scene, style))
        assert (read["background"], read["light"], read["camera"]) == (scene.background, scene.light, scene.camera)
        assert read["style"] == style and [a["motion"] for a in read["actors"]] == [a.motion for a in scene.actors]
        for told, actor in zip(read["actors"], scene.actors, strict=True):
            subject = actor.subject
            assert told["phrase"] == phrase(subject, style)
            expected = {"colour": colour_name(subject.body), "shape": subject.shape}
            distinct = {"texture": subject.texture, "part": subject.part}
            if subject.texture != "plain" or subject.part != "none":
                distinct["accent"] = colour_name(subject.accent)
            expected = {"vague": {}, "plain": expected, "distinct": expected | distinct}[style]
            assert {name: word for name, word in told.items() if name not in ("phrase", "motion")} == expected


@pytest.mark.parametrize("style", ["plain", "distinct"])
def test_the_phrases_of_a_scene_tell_its_actors_apart(style):
    for number in range(150):
        actors = make_sample(4, number, actors=4).scene.actors
        assert len({phrase(actor.subject, style) for actor in actors}) == 4


def test_vague_captions_name_no_appearance():
    words = {*HUES, *SHAPES, *PARTS, *TEXTURES} - {"plain", "none"}
    for number in range(50):
        assert not words & set(make_sample(0, number, actors=2, style="vague").caption.replace(",", "").split())


def test_captions_are_short():
    for number in range(100):
        caption = make_sample(0, number, actors=2).caption
        assert len(caption.split()) <= 2 * 16


@pytest.mark.parametrize(
    "text",
    ["", "a red star", "a red star sings in the meadow, dim light, panning camera", "a mauve star spins on the sea"],
)
def test_other_texts_are_refused(text):
    with pytest.raises(UserError, match="is no caption of the toy world"):
        parse_caption(text)


def test_an_unknown_style_is_named():
    with pytest.raises(UserError, match="caption style 'loud' is unknown; use one of plain, distinct, vague"):
        phrase(ORANGE, "loud")
