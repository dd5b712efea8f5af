"""Cases: the same for every arm, with references that are theirs, another's, or pasted."""

import numpy as np

from phantom_mega.reproduction.arms import Condition
from phantom_mega.reproduction.cases import line_up, make_cases
from phantom_mega.toyworld.judge_accuracy import paste
from phantom_mega.toyworld.subjects import held_out


def test_cases_show_held_out_subjects_alone_and_do_not_depend_on_the_arm():
    cases = make_cases(Condition("a", "a"), 6)
    assert all(held_out(actor.subject) for case in cases for actor in case.sample.scene.actors)
    other = make_cases(Condition("b", "b", arm="append"), 6)
    assert [case.sample.key for case in cases] == [case.sample.key for case in other]
    assert all(np.array_equal(a.images[0], b.images[0]) for a, b in zip(cases, other))


def test_shuffled_references_show_another_subject():
    for case in make_cases(Condition("s", "s", references="shuffled"), 6):
        assert case.given[0].subject != case.sample.scene.actors[0].subject


def test_the_order_of_two_references_does_not_tell_who_stands_where():
    first = [case.given[0].subject == case.sample.scene.actors[0].subject
             for case in make_cases(Condition("p", "p", arm="pair", style="distinct"), 6)]  # fmt: skip
    assert first == [True, False] * 3


def test_words_change_with_the_style_and_scenes_do_not():
    distinct, vague = (make_cases(Condition("p", "p", arm="pair", style=style), 3) for style in ("distinct", "vague"))
    for one, other in zip(distinct, vague):
        assert one.sample.scene == other.sample.scene and "creature" in other.sample.caption
        assert one.sample.caption != other.sample.caption


def test_a_pasted_reference_stands_still_and_fills_the_height():
    (case,) = make_cases(Condition("x", "x", references="pasted"), 1)
    video = paste(case.images)
    assert video.shape == (17, 32, 32, 3) and (video == video[:1]).all()
    two = make_cases(Condition("y", "y", arm="pair", references="pasted"), 1)[0]
    assert paste(two.images, 17, 32, 64).shape == (17, 32, 64, 3)


def test_the_line_up_holds_each_identity_once():
    subjects = line_up(make_cases(Condition("a", "a"), 60))
    assert len(set(subjects)) == len(subjects) == 50
