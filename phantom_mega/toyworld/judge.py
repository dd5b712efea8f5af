"""A judge reads videos of the toy world, also blurred and broken ones: who is where, what is done, under which light.

Cells of the picture vote for the place of the subject that covers them (after Panoptic-DeepLab, Cheng et al. 2020,
with one vote for all frames of a video): where votes meet, there is a subject, and its track with it. Who it is, is
read from crops that the track turns upright.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.special import expit, softmax
from torch import nn

from phantom_mega.errors import UserError
from phantom_mega.files import whole_file
from phantom_mega.toyworld.colours import fit_colours
from phantom_mega.toyworld.identity_network import IdentityNetwork, cut_upright, refined
from phantom_mega.toyworld.judge_network import FRAMES, STRIDE, JudgeNetwork, cell_places
from phantom_mega.toyworld.reading import Reading, SubjectReading, Track
from phantom_mega.toyworld.scenes import LIGHTS
from phantom_mega.toyworld.shapes import flips_visibly
from phantom_mega.toyworld.subjects import PARTS, SHAPES, TEXTURES

HEIGHT = 32  # lines of a frame that the network sees
BATCH_VIDEOS = 32
REFINEMENTS = 4  # times that a crop is cut and corrected
LEAST_SIZE = 0.05  # of a body, in frame heights
LEAST_COVER = 0.5  # probability from which on a cell belongs to a subject
LEAST_CELLS = 2.0  # cells that a subject covers, on average over the frames
VOTE_STEP = 1 / 32  # of the grid that votes are counted on, in frame heights
VOTE_BLUR = 0.06  # standard deviation, in frame heights
VOTE_REACH = 0.15  # frame heights; subjects whose middles are nearer than this are one


class Judge:
    """Reads videos.

    Args:
        network: finds subjects and reads scenes, trained by `judge_training`.
        identity: reads whom crops show, trained by `identity_training`.
    """

    def __init__(self, network: JudgeNetwork, identity: IdentityNetwork):
        self.network = network.eval().requires_grad_(False)
        self.identity = identity.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path | str) -> Judge:
        """Load what `save` wrote.

        Raises:
            UserError: there is no such file, or it holds something else.
        """
        judge = cls(JudgeNetwork(), IdentityNetwork())
        try:
            judge._both.load_state_dict(load_file(path))
        except FileNotFoundError:
            raise UserError(f"{path} is not there; tools/make_toy_models.py makes a judge") from None
        except (SafetensorError, RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is no judge of this version ({reason}); make one anew") from None
        return judge

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all."""
        with whole_file(Path(path)) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in self._both.state_dict().items()}, temporary)

    @property
    def _both(self) -> nn.ModuleDict:
        return nn.ModuleDict({"network": self.network, "identity": self.identity})

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    def read(self, videos: Sequence[np.ndarray]) -> list[Reading]:
        """Read videos, each uint8 [F, H, W, 3] of any length and size.

        Five frames are read, spread evenly, scaled to 32 lines.

        Raises:
            UserError: one is no such array.
        """
        inputs = [_prepare(video, f"video {number}") for number, video in enumerate(videos)]
        readings: list[Reading | None] = [None] * len(inputs)
        sizes: dict[tuple, list[int]] = {}
        for number, video in enumerate(inputs):
            sizes.setdefault(video.shape, []).append(number)
        for numbers in sizes.values():
            for at in range(0, len(numbers), BATCH_VIDEOS):
                some = numbers[at : at + BATCH_VIDEOS]
                for number, reading in zip(some, self._read_batch(torch.stack([inputs[n] for n in some]))):
                    readings[number] = reading
        return readings

    def read_image(self, image: np.ndarray) -> Reading:
        """Read a reference image, uint8 [h, w, 3]: a video that stands still."""
        return self.read([np.asarray(image)[None]])[0]

    @torch.no_grad()
    def _read_batch(self, videos: torch.Tensor) -> list[Reading]:
        """Of [B, K, 3, H, W] in [-1, 1]."""
        videos = videos.to(self.device)
        cells, whole = self.network.features(videos)
        told = self.network.cells(cells)
        covered = told["covered"][:, :, 0].sigmoid()
        scenes = {name: logits.softmax(-1) for name, logits in self.network.scene(whole).items()}
        votes = told["anchor"].movedim(2, -1) + cell_places(*covered.shape[2:], self.device)
        readings = []
        for number, video in enumerate(videos):
            masks = find_subjects(covered[number].cpu().numpy(), votes[number].cpu().numpy())
            light = list(LIGHTS)[int(scenes["light"][number].argmax())]
            found = self._subjects(video, cells[number], covered[number], masks, light)
            told_scene = (scenes[name][number].cpu().numpy() for name in ("background", "light", "camera"))
            readings.append(Reading(found, *told_scene))
        return readings

    def _subjects(
        self, video: torch.Tensor, cells: torch.Tensor, covered: torch.Tensor, masks: np.ndarray, light: str
    ) -> tuple[SubjectReading, ...]:
        """The subjects in masks bool [A, K, h, w], from the left to the right."""
        if not len(masks):
            return ()
        cover = covered[:, None] * torch.from_numpy(masks.swapaxes(0, 1).copy()).to(covered)
        pooled, area, middle = self.network.pool(cells[None], cover[None])
        told = {name: value[0] for name, value in self.network.subjects(pooled).items()}
        motion = self.network.motion(pooled, area, middle)[0].softmax(-1).cpu().numpy()
        shape, area = area.shape[1:], area[0].cpu().numpy()
        frames = video.repeat_interleave(len(masks), 0)
        size = told["size"].flatten().clamp(min=LEAST_SIZE)
        where = ((middle[0] + told["centre"]).flatten(0, 1), size, torch.atan2(*told["angle"].unbind(-1)).flatten())
        for _ in range(REFINEMENTS):
            looks = self.identity(cut_upright(frames, *where))
            where = refined(looks, *where)
        crops = (cut_upright(frames, *where).unflatten(0, shape).cpu().numpy() + 1) * 127.5
        looks = {name: value.unflatten(0, shape).cpu().numpy() for name, value in looks.items()}
        where = tuple(value.unflatten(0, shape).cpu().numpy() for value in where)
        found = []
        for number, mask in enumerate(masks):
            # Frames where more is seen say more.
            weight = area[:, number] / area[:, number].sum()
            mean = {name: weight @ value[:, number] for name, value in looks.items()}
            kinds = {name: softmax(mean[name]) for name in ("shape", "texture", "part")}
            look = tuple(names[int(kinds[name].argmax())] for name, names in
                         (("shape", SHAPES), ("part", PARTS), ("texture", TEXTURES)))  # fmt: skip
            flip = float(expit(mean["flip"][0]))
            colours = fit_colours(crops[:, number], weight, look, flip >= 0.5 and flips_visibly(*look), light)
            track = _track(mask, *(value[:, number] for value in where))
            found.append(SubjectReading(*kinds.values(), *colours, motion[number], flip, track, mask))
        return tuple(sorted(found, key=lambda subject: float(np.nanmean(subject.track.centre[:, 0]))))


def _track(mask: np.ndarray, centre: np.ndarray, size: np.ndarray, angle: np.ndarray) -> Track:
    """Of what is read in each frame: centre from the frame's middle in frame heights, angle in radians."""
    seen, (rows, columns) = mask.any((1, 2)), mask.shape[1:]
    degrees = (np.degrees(angle) + 180) % 360 - 180
    return Track(
        np.where(seen[:, None], centre / (columns / rows, 1) + 0.5, np.nan), np.where(seen, size, np.nan),
        np.where(seen, degrees, np.nan), seen,
    )  # fmt: skip


def find_subjects(covered: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """Masks of the subjects whose cells vote for one place.

    Args:
        covered: float [K, h, w], the probability that a subject covers a cell.
        votes: float [K, h, w, 2], (x, y) from the frame's middle in frame heights.

    Returns:
        bool [A, K, h, w], no cell in two of them.
    """
    frames, rows, columns = covered.shape
    half = np.array([columns / rows, 1]) / 2 + VOTE_REACH
    shape = tuple(np.ceil(2 * half / VOTE_STEP).astype(int))
    chosen = covered >= LEAST_COVER
    bins = np.clip(((votes[chosen] + half) / VOTE_STEP).astype(int), 0, np.array(shape) - 1)
    counts = np.bincount(bins[:, 0] * shape[1] + bins[:, 1], covered[chosen], shape[0] * shape[1]).reshape(shape)
    density = gaussian_filter(counts, VOTE_BLUR / VOTE_STEP, mode="constant")
    peaks = (density == maximum_filter(density, 2 * round(VOTE_REACH / VOTE_STEP) + 1)) & (density > 0)
    places = (np.argwhere(peaks) + 0.5) * VOTE_STEP - half
    if not len(places):
        return np.zeros((0, *covered.shape), bool)
    distance = np.linalg.norm(votes[..., None, :] - places, axis=-1)
    nearest = np.where(chosen & (distance.min(-1) <= VOTE_REACH), distance.argmin(-1), -1)
    masks = nearest == np.arange(len(places))[:, None, None, None]
    mass = (masks * covered).sum((1, 2, 3))
    return masks[mass >= LEAST_CELLS * frames]


def _prepare(video: np.ndarray, name: str) -> torch.Tensor:
    """float32 [K, 3, H, W] in [-1, 1], H = 32, W a multiple of 8."""
    video = np.asarray(video)
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8 or not video.size:
        raise UserError(f"{name} is {video.dtype} {list(video.shape)}; uint8 [frames, height, width, 3] is needed")
    picked = video[np.linspace(0, len(video) - 1, FRAMES).round().astype(int)]
    frames = torch.from_numpy(picked.copy()).movedim(-1, 1).float() / 127.5 - 1
    height, width = frames.shape[2:]
    size = (HEIGHT, max(1, round(width * HEIGHT / height / STRIDE)) * STRIDE)
    if (height, width) != size:
        frames = F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)
    return frames
