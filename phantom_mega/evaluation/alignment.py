"""Where a frame repeats a reference image: the one turn, scale and shift that lays the frame onto the reference best.

Two searches propose it. Matched SIFT keypoints (Lowe 2004) with RANSAC find textured pictures at any scale and turn;
correlation over a ladder of scales finds smooth ones, upright, from the frame's size down to a fifth of it. Neither
mirrors nor stretches. The proposal whose pixels agree best with the reference wins, so a bad one costs nothing.

h w: the reference, after shrinking. H W: the frame, after shrinking.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

REFERENCE_SIDE, FRAME_SIDE, COARSE_SIDE = 192, 512, 128
SCALES = (0.15, 4.0)  # of the shrunk reference in the shrunk frame; beyond them there is nothing to see
SMALLEST, LADDER = 0.2, 12  # of the largest scale that fits the frame; coarse scales of the correlation
WHITE = 250
RATIO, TOLERANCE, LEAST_INLIERS = 0.8, 4.0, 6  # of keypoint matches; the tolerance in pixels


@dataclass(frozen=True)
class Alignment:
    """A frame laid onto a reference.

    Attributes:
        reference: uint8 [h, w, 3].
        area: bool [h, w], where the reference shows something (`subject_area`).
        frame: uint8 [h, w, 3], the frame's pixels at the reference's places.
        inside: bool [h, w], where there are such pixels, within the area.
        degrees: by which the frame's copy is turned, -180 to 180.
    """

    reference: np.ndarray
    area: np.ndarray
    frame: np.ndarray
    inside: np.ndarray
    degrees: float


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """An image whose longer side is at most `side` pixels."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def grey(image: np.ndarray) -> np.ndarray:
    """Luminance uint8 [h, w] of RGB."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def subject_area(reference: np.ndarray) -> np.ndarray:
    """Where a reference shows something: white that reaches its border is a background that was cut away or padded.

    Args:
        reference: uint8 [h, w, 3].

    Returns:
        bool [h, w]; all of it where nothing else would be left.
    """
    white = (reference >= WHITE).all(2)
    _, labels = cv2.connectedComponents(white.astype(np.uint8))
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    shown = ~(white & np.isin(labels, np.unique(border)))
    return shown if shown.any() else np.ones_like(shown)


def correlation(one: np.ndarray, two: np.ndarray, where: np.ndarray) -> float:
    """Normalized correlation of two pictures, -1 to 1, blind to brightness and contrast.

    Args:
        one, two: [h, w].
        where: bool [h, w], the pixels that count.

    Returns:
        0 where one of them is flat, or nothing counts.
    """
    if not where.any():
        return 0.0
    one, two = (image[where].astype(np.float64) for image in (one, two))
    one, two = one - one.mean(), two - two.mean()
    size = math.sqrt((one @ one) * (two @ two))
    return float(one @ two / size) if size > 1e-9 else 0.0


def _similarity(matrix: np.ndarray) -> tuple[float, float]:
    """(scale, degrees) of a matrix [2, 3] of a turn, a scale and a shift."""
    return math.hypot(matrix[0, 0], matrix[1, 0]), math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))


class Keypoints:
    """SIFT's keypoints of a picture, found once and matched often.

    Args:
        picture: uint8 [h, w].
        area: bool [h, w], where they may lie; anywhere if None.
    """

    def __init__(self, picture: np.ndarray, area: np.ndarray | None = None):
        # a low contrast threshold: rendered films are smooth
        sift = cv2.SIFT_create(nfeatures=2000, contrastThreshold=0.015)
        points, self.descriptors = sift.detectAndCompute(picture, None if area is None else area.astype(np.uint8))
        self.points = np.array([point.pt for point in points], np.float32).reshape(-1, 2)


def by_keypoints(reference: Keypoints, frame: Keypoints) -> np.ndarray | None:
    """The matrix [2, 3] from the reference's pixels to the frame's that most matched keypoints agree on, or None."""
    if len(reference.points) < LEAST_INLIERS or len(frame.points) < LEAST_INLIERS:
        return None
    pairs = cv2.BFMatcher().knnMatch(reference.descriptors, frame.descriptors, k=2)
    good = [a for a, b in (pair for pair in pairs if len(pair) == 2) if a.distance < RATIO * b.distance]
    if len(good) < LEAST_INLIERS:
        return None
    source = reference.points[[match.queryIdx for match in good]]
    target = frame.points[[match.trainIdx for match in good]]
    matrix, inliers = cv2.estimateAffinePartial2D(source, target, ransacReprojThreshold=TOLERANCE, maxIters=5000)
    if matrix is None or inliers.sum() < LEAST_INLIERS or not SCALES[0] <= _similarity(matrix)[0] <= SCALES[1]:
        return None
    return matrix


def _best_place(
    reference: np.ndarray, area: np.ndarray, frame: np.ndarray, scales: np.ndarray
) -> tuple[float, np.ndarray] | None:
    """(correlation, matrix) of the scale and place where a reference fits a frame best; see `by_correlation`."""
    best = None
    for scale in scales:
        size = [max(4, round(side * scale)) for side in reference.shape]
        if size[0] > frame.shape[0] or size[1] > frame.shape[1]:
            continue
        template = cv2.resize(reference, size[::-1], interpolation=cv2.INTER_AREA)
        mask = None if area.all() else cv2.resize(area.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
        if template[... if mask is None else mask > 0.5].std() < 1:  # flat: it would correlate with anything
            continue
        if mask is None:
            found = cv2.matchTemplate(frame, template, cv2.TM_CCOEFF_NORMED)
        else:
            found = cv2.matchTemplate(frame, template, cv2.TM_CCOEFF_NORMED, mask=(mask > 0.5).astype(np.uint8))
            found[~(np.abs(found) <= 1 + 1e-3)] = -1  # flat places of the frame divide by zero
        _, value, _, (x, y) = cv2.minMaxLoc(found)
        if best is None or value > best[0]:
            sx, sy = size[1] / reference.shape[1], size[0] / reference.shape[0]
            # centres of pixels lie at half integers
            best = value, np.array([[sx, 0, x + (sx - 1) / 2], [0, sy, y + (sy - 1) / 2]])
    return best


def by_correlation(reference: np.ndarray, area: np.ndarray, frame: np.ndarray) -> np.ndarray | None:
    """The matrix [2, 3] of the place where an upright reference correlates best with a frame, or None.

    Args:
        reference: uint8 [h, w], grey.
        area: bool [h, w], the pixels that count.
        frame: uint8 [H, W], grey.
    """
    coarse = shrink(frame, COARSE_SIDE)
    ratio = coarse.shape[1] / frame.shape[1]
    largest = min(frame.shape[0] / reference.shape[0], frame.shape[1] / reference.shape[1])
    smallest = max(SCALES[0], SMALLEST * largest)
    if smallest > largest:
        return None
    found = _best_place(reference, area, coarse, np.geomspace(smallest, largest, LADDER) * ratio)
    if found is None:
        return None
    scale = found[1][0, 0] / ratio
    step = (largest / smallest) ** (0.5 / (LADDER - 1))
    fine = np.minimum(np.geomspace(scale / step, scale * step, 7), largest)
    middle = found[1] @ [reference.shape[1] / 2, reference.shape[0] / 2, 1] / ratio
    margin = 0.5 * scale * step * np.array(reference.shape[::-1]) + 3 / ratio  # a coarse pixel or two around
    left, top = np.maximum(0, np.floor(middle - margin)).astype(int)
    right, bottom = np.ceil(middle + margin).astype(int)
    found = _best_place(reference, area, frame[top:bottom, left:right], fine)
    if found is None:
        return None
    found[1][:, 2] += left, top
    return found[1]


def lay(reference: np.ndarray, area: np.ndarray, frame: np.ndarray, matrix: np.ndarray) -> Alignment:
    """A frame laid onto a reference.

    Args:
        reference: uint8 [h, w, 3].
        area: bool [h, w], where it shows something.
        frame: uint8 [H, W, 3].
        matrix: [2, 3] from the reference's pixels to the frame's.
    """
    size, (scale, degrees) = reference.shape[1::-1], _similarity(matrix)
    if scale > 1:  # the warp reads single pixels: what is finer than the reference's would alias
        frame = cv2.GaussianBlur(frame, (0, 0), 0.5 * math.sqrt(scale**2 - 1))
    backwards = cv2.WARP_INVERSE_MAP
    laid = cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_LINEAR | backwards, borderMode=cv2.BORDER_REPLICATE)
    whole = np.ones(frame.shape[:2], np.uint8)
    inside = cv2.warpAffine(whole, matrix, size, flags=cv2.INTER_NEAREST | backwards).astype(bool)
    return Alignment(reference, area, laid, inside & area, degrees)


class Frame:
    """A frame with what every reference is looked for by.

    Args:
        image: uint8 [., ., 3], of any size.
    """

    def __init__(self, image: np.ndarray):
        self.image = shrink(image, FRAME_SIDE)
        self.grey = grey(self.image)
        self.keypoints = Keypoints(self.grey)


class Aligner:
    """Lays frames onto one reference.

    Args:
        reference: uint8 [., ., 3], of any size.
    """

    def __init__(self, reference: np.ndarray):
        self.reference = shrink(reference, REFERENCE_SIDE)
        self.area = subject_area(self.reference)
        self.grey = grey(self.reference)
        self.keypoints = Keypoints(self.grey, self.area)

    def align(self, frame: Frame) -> Alignment | None:
        """The best alignment with a frame, or None where nothing fits at all."""
        proposals = (
            by_keypoints(self.keypoints, frame.keypoints),
            by_correlation(self.grey, self.area, frame.grey),
        )
        found = [lay(self.reference, self.area, frame.image, matrix) for matrix in proposals if matrix is not None]
        return max(found, key=self._agreement, default=None)

    def _agreement(self, found: Alignment) -> float:
        return correlation(self.grey, grey(found.frame), found.inside) * float(found.inside.sum() / self.area.sum())
