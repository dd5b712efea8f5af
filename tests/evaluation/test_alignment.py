"""Frames laid onto a reference: a pasted one is found at any size, turned, cut out on white; a mirrored one is not."""

import cv2
import numpy as np
import pytest

from phantom_mega.evaluation.alignment import (
    REFERENCE_SIDE,
    Aligner,
    Frame,
    by_correlation,
    correlation,
    grey,
    lay,
    shrink,
    subject_area,
)
from tests.evaluation.items import texture


def pasted(reference, scale, left, top, seed=9):
    """A 512 pixels wide frame with a reference in it, other soft blobs around."""
    frame = texture(360, 512, seed)
    copy = cv2.resize(
        reference, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    )
    frame[top : top + copy.shape[0], left : left + copy.shape[1]] = copy
    return frame


def agreement(found):
    return correlation(grey(found.reference), grey(found.frame), found.inside)


@pytest.mark.parametrize(("scale", "left", "top"), [(0.5, 300, 200), (1.0, 7, 11), (1.8, 60, 30)])
def test_a_pasted_reference_is_found_at_any_size_and_place(scale, left, top):
    found = Aligner(texture(150, 170)).align(Frame(pasted(texture(150, 170), scale, left, top)))
    assert agreement(found) > 0.95 and found.inside.mean() > 0.97 and abs(found.degrees) < 1


def test_a_smooth_picture_without_keypoints_is_found_by_correlation():
    y, x = np.mgrid[:120, :160] / 100
    smooth = np.stack([80 + 60 * np.sin(x * 4 + c) * np.cos(y * 3) for c in range(3)], 2).astype(np.uint8)
    frame = np.full((360, 512, 3), 90, np.uint8)
    frame[100:220, 200:360] = smooth
    aligner = Aligner(smooth)
    assert len(aligner.keypoints.points) < 6
    assert agreement(aligner.align(Frame(frame))) > 0.98


def test_centres_of_pixels_lie_at_half_integers():
    reference = grey(texture(40, 50))
    frame = cv2.resize(reference, (200, 160), interpolation=cv2.INTER_LINEAR)
    found = by_correlation(reference, np.ones((40, 50), bool), frame)
    np.testing.assert_allclose(found, [[4, 0, 1.5], [0, 4, 1.5]], atol=0.2)


def test_a_turned_copy_is_found_with_its_angle():
    reference = texture(150, 170)
    turn = cv2.getRotationMatrix2D((250, 180), 25, 1)  # counterclockwise, y pointing down
    frame = cv2.warpAffine(pasted(reference, 1.0, 160, 100), turn, (512, 360))
    found = Aligner(reference).align(Frame(frame))
    assert agreement(found) > 0.9 and found.degrees == pytest.approx(-25, abs=1)


def test_a_mirrored_copy_is_not_found():
    reference = texture(150, 170)
    found = Aligner(reference).align(Frame(pasted(np.ascontiguousarray(reference[:, ::-1]), 1.0, 100, 50)))
    assert found is None or agreement(found) < 0.5


def test_a_subject_cut_out_on_white_is_found_before_another_background():
    picture, mask = texture(150, 170), np.zeros((150, 170), np.uint8)
    cv2.ellipse(mask, (85, 75), (60, 50), 0, 0, 360, 1, -1)
    cut_out = np.where(mask[..., None] == 1, picture, 255).astype(np.uint8)
    frame = texture(360, 512, 9)
    frame[80:230, 120:290] = np.where(mask[..., None] == 1, picture, frame[80:230, 120:290])
    found = Aligner(cut_out).align(Frame(frame))
    assert found.area.mean() == pytest.approx(mask.mean(), abs=0.02)
    assert agreement(found) > 0.95
    assert not found.inside[~found.area].any()


def test_white_counts_as_background_only_where_it_reaches_the_border():
    picture = np.full((40, 60, 3), 90, np.uint8)
    picture[:, :10] = 255
    picture[15:25, 30:40] = 255  # a white shirt
    area = subject_area(picture)
    assert not area[:, :10].any() and area[:, 10:].all()
    assert subject_area(np.full((5, 5, 3), 255, np.uint8)).all()


def test_what_lies_outside_the_frame_is_not_inside():
    reference, frame = texture(100, 100), texture(100, 100)
    shifted = lay(reference, np.ones((100, 100), bool), frame, np.array([[1.0, 0, 40], [0, 1.0, 0]]))
    assert shifted.inside.mean() == pytest.approx(0.6, abs=0.01) and shifted.inside[:, :60].all()
    np.testing.assert_array_equal(shifted.frame[:, :60], frame[:, 40:])


def test_odd_pictures_are_no_trouble():
    frame = texture(90, 120)
    for reference in (np.zeros((200, 200, 3), np.uint8), texture(2, 3), texture(1, 400), texture(900, 40)):
        found = Aligner(reference).align(Frame(frame))
        assert found is None or found.frame.shape == found.reference.shape
    assert max(shrink(texture(900, 40), REFERENCE_SIDE).shape) == REFERENCE_SIDE
    black = Aligner(texture(40, 40)).align(Frame(np.zeros((64, 64, 3), np.uint8)))
    assert black is None or agreement(black) == 0


def test_correlation_is_blind_to_brightness_and_contrast_and_zero_on_what_is_flat():
    picture, everywhere = grey(texture(30, 30)).astype(float), np.ones((30, 30), bool)
    assert correlation(picture, 0.3 * picture + 40, everywhere) == pytest.approx(1)
    assert correlation(picture, -picture, everywhere) == pytest.approx(-1)
    assert correlation(picture, np.full((30, 30), 7.0), everywhere) == 0
    assert correlation(picture, picture, ~everywhere) == 0
