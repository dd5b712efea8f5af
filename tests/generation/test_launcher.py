"""`launchers/generate.py` as a user starts it: alone, again, on several processes, and with mistakes."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from phantom_mega.errors import UserError
from tests.generation.rephrase.test_endpoint import ok, serve  # noqa: F401 (a fixture)
from tests.generation.test_video import read
from tests.scripts import run_script
from tests.training.conftest import REPOSITORY, environment

LAUNCHER = str(REPOSITORY / "launchers/generate.py")
SMALL = ["--size", "48*32", "--frame-num", "5", "--sample-steps", "2"]


def start(*words, ranks=1, code=0, env=None):
    """Run the launcher; returns what it printed."""
    done = run_script(LAUNCHER, *words, env=environment() | (env or {}), ranks=ranks)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def cases(images, tmp_path_factory):
    """Three cases, one without its image."""
    path = tmp_path_factory.mktemp("cases") / "cases.json"
    path.write_text(json.dumps({
        "one": {"img_paths": ["a.png", "b.jpg"], "prompt": "a red thing beside a wide one", "class_label": ["x", "y"]},
        "broken": {"img_paths": ["missing.png"], "prompt": "nothing", "class_label": ["z"]},
        "none": {"img_paths": [], "prompt": "a hill"},
    }))  # fmt: skip
    return path


def test_one_video_becomes_a_file_with_its_card_and_settings(run, images, tmp_path):
    words = ["--checkpoint", run, *SMALL, "--ref-image", f"{images}/a.png, {images}/b.jpg", "--prompt", "a red thing"]
    printed = start(*words, "--output", tmp_path / "out/v.mp4", "--seed", 3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["v.json", "v.mp4", "v.png"]
    assert "1 done, 0 failed" in printed and "Traceback" not in printed
    assert json.loads((tmp_path / "out/v.json").read_text())["seed"] == 3
    frames, codec, rate, _ = read(tmp_path / "out/v.mp4")
    assert frames.shape == (5, 32, 48, 3) and codec == "h264" and rate == 30


@pytest.mark.slow
def test_cases_are_spread_over_processes_and_one_over_several_gives_the_same_videos(run, cases, images, tmp_path):
    words = ["--checkpoint", run, *SMALL, "--cases", cases, "--image-root", images]
    printed = start(*words, "--output", tmp_path / "spread", ranks=2, code=1)
    assert "failed: reference image 1" in printed
    again = start(*words, "--output", tmp_path / "spread", code=1)
    assert "3 case(s), 3 for this process, 2 of them done before" in again
    start(*words, "--output", tmp_path / "shared", "--ranks-per-video", 2, ranks=2, code=1)
    for folder in ("spread", "shared"):
        names = sorted(path.name for path in (tmp_path / folder).iterdir())
        assert names == ["broken.error.json", "contact_sheet.png", "none.json", "none.mp4", "none.png",
                         "one.json", "one.mp4", "one.png"]  # fmt: skip
    for name in ("one", "none"):
        alone, shared = (read(tmp_path / folder / f"{name}.mp4")[0].astype(int) for folder in ("spread", "shared"))
        assert np.abs(alone - shared).mean() < 0.5


def test_a_process_that_starts_when_others_have_finished_does_its_own_share(run, cases, images, tmp_path):
    words = ["--checkpoint", run, *SMALL, "--cases", cases, "--image-root", images, "--output", tmp_path / "out"]
    for rank, said in ((0, "3 case(s), 2 for this process"), (1, "3 case(s), 1 for this process")):
        env = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        assert said in start(*words, env=env, code=int("broken" in list(json.loads(cases.read_text()))[rank::2]))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"one.mp4", "none.mp4", "broken.error.json", "contact_sheet.png"} <= names


@pytest.fixture(scope="module")
def launcher():
    """The script as a module, whose mistakes need no process of their own."""
    spec = importlib.util.spec_from_file_location("generate", LAUNCHER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("words", "message"), [
    (["--prompt", "x", "--output", "v.mp4", "--size", "480"], r"--size '480' is not WIDTH\*HEIGHT, e.g. 832\*480"),
    (["--output", "v.mp4"], "give either --prompt .* or --cases"),
    (["--prompt", "x", "--output", "videos"], "--output videos: name a .mp4 file"),
    (["--cases", "c.json", "--output", "v.mp4"], "with --cases name a folder"),
    (["--cases", "c.json", "--output", "v", "--ref-image", "a.png"], "--ref-image goes with --prompt"),
    (["--prompt", "x", "--output", "v.mp4", "--size", "50*32"], "width 50 is not a multiple of 16; the nearest is 48"),
    (["--prompt", "x", "--output", "v.mp4", "--frame-num", "80"], "nearest counts are 77 and 81"),
    (["--prompt", "x", "--output", "v.mp4", "--offload", "model"], "--offload model needs a GPU"),
    (["--prompt", "x", "--output", "v.mp4", "--sample-steps", "0"], "num_inference_steps is 0"),
    (["--prompt", "x", "--output", "v.mp4", "--guidance-batching", "all"], "guidance_batching='all' is unknown"),
])  # fmt: skip
def test_mistakes_are_told_before_anything_is_generated(launcher, run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--checkpoint", str(run), *words])
    with pytest.raises(UserError, match=message):
        launcher.main()
    assert list(tmp_path.iterdir()) == []


def test_prompts_are_rephrased_by_an_endpoint_before_generating(run, images, tmp_path, serve):  # noqa: F811
    new = "A tall red box with a round lid turns."
    described = {"subject": 1, "appearance": "a tall red box with a round lid"}
    server, _, _ = serve(ok(json.dumps({"references": [described], "prompt": new})))
    words = ["--checkpoint", run, *SMALL, "--ref-image", images / "a.png", "--prompt", "A box turns."]
    words += ["--rephrase", "openai", "--rephrase-model", "vlm"]
    address = f"http://127.0.0.1:{server.server_port}/v1"
    start(*words, "--rephrase-endpoint", address, "--output", tmp_path / "v.mp4")
    made = json.loads((tmp_path / "v.json").read_text())
    assert made["prompt"] == new and made["settings"]["prompt"] == "A box turns." and len(server.seen) == 1


@pytest.mark.parametrize("text", ["832*480", "832x480", " 832 X 480 "])
def test_sizes_are_width_times_height(launcher, text):
    assert launcher.parse_size(text) == (832, 480)


def test_a_mistake_exits_with_2_and_one_line(tmp_path):
    printed = start("--checkpoint", tmp_path, "--prompt", "x", "--output", tmp_path / "v.mp4", code=2)
    assert printed.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in printed
