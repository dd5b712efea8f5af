"""Scores on readings without error, whose values follow from the definitions."""

from dataclasses import replace

import numpy as np
import pytest

from phantom_mega.toyworld import scores
from phantom_mega.toyworld.reading import Track
from phantom_mega.toyworld.samples import make_sample
from phantom_mega.toyworld.scenes import Actor, Scene
from phantom_mega.toyworld.subjects import draw_subject
from tests.toyworld.ideal import BLUE_CIRCLE, FRAMES, GREEN_SQUARE, RED_STAR, read_scene, read_subject, two_actors


def test_identity_distance_is_zero_of_itself_and_one_of_what_shares_nothing():
    opposite = replace(BLUE_CIRCLE, body=(25, 225, 225), accent=(5, 25, 195))
    assert scores.identity_distance(RED_STAR, RED_STAR) == 0
    assert scores.identity_score(RED_STAR, opposite) == 0


@pytest.mark.parametrize(
    "attribute, value", [("shape", "heart"), ("texture", "plain"), ("part", "none"), ("body", (230, 230, 255))]
)
def test_each_attribute_weighs_what_the_table_says(attribute, value):
    assert sum(scores.IDENTITY_WEIGHTS.values()) == pytest.approx(1)
    distance = scores.identity_distance(replace(RED_STAR, **{attribute: value}), RED_STAR)
    assert distance == pytest.approx(scores.IDENTITY_WEIGHTS[attribute])


def test_an_accent_that_is_nowhere_drawn_does_not_count():
    plain = replace(RED_STAR, texture="plain", part="none")
    assert scores.identity_distance(replace(plain, accent=(0, 0, 255)), plain) == 0
    # The other weights grow in its place.
    assert scores.identity_distance(replace(plain, shape="heart"), plain) == pytest.approx(0.3 / 0.85)


def test_an_unsure_reading_is_as_far_as_it_is_improbable():
    shown = read_subject(two_actors(), 0)
    shown = replace(shown, shape=np.full(8, 1 / 8))
    assert scores.identity_distance(shown, RED_STAR) == pytest.approx(0.3 * 7 / 8)


def test_half_a_colour_reach_is_half_a_distance():
    assert scores.colour_distance((0, 0, 0), (127.5, 0, 0)) == pytest.approx(0.5)
    assert scores.colour_distance((0, 0, 0), (255, 255, 255)) == 1


def test_the_right_identity_is_retrieved_among_many_and_a_twin_is_not():
    others = [draw_subject(np.random.default_rng(seed)) for seed in range(49)]
    shown = read_subject(two_actors(), 0)
    assert scores.retrieval(shown, RED_STAR, others)
    assert not scores.retrieval(shown, RED_STAR, [*others, RED_STAR])
    assert not scores.retrieval(shown, BLUE_CIRCLE, [*others, RED_STAR])


def test_true_videos_score_one_everywhere():
    for number in range(40):
        sample = make_sample(3, number, actors=1 + number % 4)
        reading = read_scene(sample.scene)
        assert set(scores.prompt_scores(reading, sample.scene).values()) == {1.0}
        bound = scores.binding(reading, sample.scene)
        assert (bound["success"], bound["confused"], bound["missing"], bound["swapped"]) == (1, 0, 0, 0)
        assert all(scores.best_identity_score(reading, actor.subject) == 1 for actor in sample.scene.actors)
        copied = scores.copy_paste(reading, sample.references, sample.scene)
        assert copied["copied"] == 0 and copied["background"] == copied["light"] == 0


def test_a_prompt_is_followed_in_part():
    scene = two_actors()
    other = replace(scene, light="warm", actors=(replace(scene.actors[0], motion="spins"), scene.actors[1]))
    told = scores.prompt_scores(read_scene(other), scene)
    assert told == {"background": 1, "light": 0, "camera": 1, "count": 1, "motion": 0.5, "prompt": pytest.approx(0.7)}


def test_a_missing_actor_does_not_move():
    scene = two_actors()
    told = scores.prompt_scores(read_scene(scene, (None,)), scene)
    assert told["count"] == 0 and told["motion"] == 0.5


def test_places_decide_who_is_meant_not_looks():
    scene = two_actors()
    reading = read_scene(scene, (BLUE_CIRCLE, RED_STAR))
    assert scores.match_places(reading, scene).tolist() == [0, 1]
    turned = replace(reading, subjects=reading.subjects[::-1])
    assert scores.match_places(turned, scene).tolist() == [1, 0]
    assert scores.match_places(replace(reading, subjects=()), scene).tolist() == [-1, -1]


def test_swapped_identities_are_confused():
    scene = two_actors()
    bound = scores.binding(read_scene(scene, (BLUE_CIRCLE, RED_STAR)), scene)
    assert (bound["success"], bound["confused"], bound["swapped"], bound["leak"]) == (0, 1, 1, 1)


def test_the_same_identity_twice_is_confused_but_not_swapped():
    scene = two_actors()
    bound = scores.binding(read_scene(scene, (RED_STAR, RED_STAR)), scene)
    assert (bound["confused"], bound["success"], bound["swapped"]) == (1, 0, 0)


def test_a_blend_that_is_still_nearest_to_its_own_is_confused():
    scene = two_actors()
    blend = replace(RED_STAR, texture=BLUE_CIRCLE.texture, body=BLUE_CIRCLE.body)
    assert scores.identity_distance(blend, RED_STAR) < scores.identity_distance(blend, BLUE_CIRCLE)
    bound = scores.binding(read_scene(scene, (blend, None)), scene)
    assert (bound["confused"], bound["success"], bound["leak"]) == (1, 0, pytest.approx(0.4))


def test_fewer_subjects_than_actors_is_missing():
    scene = two_actors()
    bound = scores.binding(read_scene(scene, (None,)), scene)
    assert (bound["missing"], bound["success"], bound["confused"]) == (1, 0, 0) and np.isnan(bound["leak"])


def test_strangers_are_neither_success_nor_confused():
    scene = two_actors()
    stranger = replace(GREEN_SQUARE, part="tail")
    bound = scores.binding(read_scene(scene, (stranger, None)), scene)
    assert (bound["unlike"], bound["success"], bound["confused"], bound["missing"]) == (1, 0, 0, 0)


def test_a_pasted_reference_keeps_the_identity_and_copies_all_that_can_be_told():
    told = {name: [] for name in (*scores.COPY_ATTRIBUTES, "copied")}
    for number in range(60):
        sample = make_sample(5, number)
        reference = sample.references[0]
        pasted = scores.reference_pose(reference)
        still = Actor(
            reference.subject, "stands still", tuple(pasted.centre + 0.5), pasted.angle, pasted.size, pasted.flip
        )
        reading = read_scene(Scene(reference.scene.background, reference.scene.light, "static", (still,)))
        assert scores.best_identity_score(reading, reference.subject) == 1
        assert scores.prompt_scores(reading, sample.scene)["background"] == 0
        for name, value in scores.copy_paste(reading, sample.references, sample.scene).items():
            told[name].append(value)
    for name, values in told.items():
        assert np.nanmin(values) == 1, name
        assert np.isfinite(values).sum() >= 5, name


def test_what_a_reference_shares_with_the_scene_is_not_copied():
    sample = make_sample(5, 1, kind="in")
    copied = scores.copy_paste(read_scene(sample.scene), sample.references, sample.scene)
    assert np.isnan([copied["background"], copied["light"], copied["flip"]]).all()


def test_frames_without_the_subject_tell_nothing():
    sample = next(make_sample(5, n) for n in range(99) if make_sample(5, n).scene.actors[0].motion == "moves left")
    reading = read_scene(sample.scene)
    track, seen = reading.subjects[0].track, np.arange(FRAMES) < 3
    gone = Track(
        np.where(seen[:, None], track.centre, np.nan), np.where(seen, track.size, np.nan),
        np.where(seen, track.angle, np.nan), seen,
    )  # fmt: skip
    reading = replace(reading, subjects=(replace(reading.subjects[0], track=gone),))
    assert scores.match_places(reading, sample.scene).tolist() == [0]
    assert scores.copy_paste(reading, sample.references, sample.scene)["copied"] == 0


def test_turns_go_the_short_way_round():
    assert scores.turn_between(170, -170) == -20
    assert scores.turn_between(np.array([0, -170]), np.array([350, 170])).tolist() == [10, 20]


def test_actors_that_differ_little_are_confused_if_each_is_nearer_to_the_other():
    scene = two_actors()
    darker = replace(RED_STAR, body=(170, 30, 30))
    scene = replace(scene, actors=(scene.actors[0], replace(scene.actors[1], subject=darker)))
    assert scores.binding(read_scene(scene), scene)["success"] == 1
    bound = scores.binding(read_scene(scene, (darker, RED_STAR)), scene)
    assert (bound["confused"], bound["leak"]) == (1, 0)


def leaning(sample, angle):
    """A reading of the sample's clip with its actor leaning as told in every frame."""
    reading = read_scene(sample.scene)
    track = replace(reading.subjects[0].track, angle=np.full(FRAMES, float(angle)))
    return replace(reading, subjects=(replace(reading.subjects[0], track=track),))


def test_only_an_angle_near_the_references_is_a_copy():
    sample = next(
        sample for sample in (make_sample(5, number) for number in range(200))
        if sample.scene.actors[0].motion == "rises" and sample.references[0].scene.actors[0].angle > 38
        and sample.scene.actors[0].angle < 5 and sample.scene.actors[0].subject.part != "none"
    )  # fmt: skip
    angle = sample.references[0].scene.actors[0].angle
    for shown, copied in ((angle, 1), (angle - 7, 1), (angle - 8, 0), (angle + 8, 0), (0, 0)):
        assert scores.copy_paste(leaning(sample, shown), sample.references, sample.scene)["angle"] == copied


def test_a_reference_that_leans_as_the_scene_does_tells_nothing_of_copying():
    sample = next(s for s in (make_sample(5, n, kind="in") for n in range(99)) if s.scene.actors[0].motion == "rises")
    angle = sample.scene.actors[0].angle
    assert np.isnan(scores.copy_paste(leaning(sample, angle), sample.references, sample.scene)["angle"])


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("kind", ["cross", "in"])
def test_the_pose_of_a_reference_is_where_its_mask_lies(kind, width):
    checked = 0
    for number in range(120):
        sample = make_sample(5, number, kind=kind, width=width, actors=1 if width == 32 else 2)
        for reference in sample.references:
            if reference.subject.part != "none" or reference.subject.shape not in ("circle", "square", "cross"):
                continue
            shown = scores.reference_pose(reference, 32, width)
            height = 32 / max(reference.image.shape[0], reference.image.shape[1] * 32 / width)
            rows, columns = np.nonzero(reference.mask)
            middle = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) - np.array(reference.image.shape[1::-1]) / 2
            assert np.linalg.norm(middle * height / 32 - shown.centre) < 0.06
            checked += 1
    assert checked >= 5
