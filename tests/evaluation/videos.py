"""Folders of small videos with their cases, as `launchers/generate.py` leaves them."""

import json

import numpy as np
from PIL import Image

from phantom_mega.generation.video import write_mp4
from tests.evaluation.items import texture

FRAMES, HEIGHT, WIDTH = 6, 72, 96


def write_cases(folder, count=4):
    """`cases.json` of two prompts for each of some references, and the references."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = {}
    for i in range(count):
        Image.fromarray(texture(60, 60, seed=i // 2)).save(folder / f"{i // 2}.png")
        prompt = f"A thing & its {i} <friends> move."
        cases[f"singleobj_{i}"] = {"img_paths": [f"{i // 2}.png"], "prompt": prompt, "class_label": ["thing"]}
    (folder / "cases.json").write_text(json.dumps(cases))
    return folder / "cases.json"


def write_video(path, seed, noise=0):
    """A reference's picture that moves through a frame, with some noise that flickers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    picture = texture(HEIGHT, WIDTH, seed=seed + 100)
    frames = np.stack([np.roll(picture, 2 * i, 1) for i in range(FRAMES)]).astype(np.int16)
    frames[:, 6:66, 18:78] = texture(60, 60, seed=seed // 2)
    frames += rng.integers(-noise, noise + 1, frames.shape, dtype=np.int16)
    write_mp4(frames.clip(0, 255).astype(np.uint8), path, 8)


def write_videos(folder, count=4, noise=0):
    """A video of each case of `write_cases`."""
    for i in range(count):
        write_video(folder / f"singleobj_{i}.mp4", i, noise)
    return folder
