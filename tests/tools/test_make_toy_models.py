"""tools/make_toy_models.py: what it makes, what it keeps, and mistakes in one line."""

import importlib.util
import json
from pathlib import Path

import pytest

from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.errors import UserError
from phantom_mega.toyworld import models
from phantom_mega.toyworld.models import ModelSettings, load_judge, make_models
from phantom_mega.toyworld.render import render
from phantom_mega.toyworld.samples import make_sample
from tests.scripts import run_script

REPOSITORY = Path(__file__).parents[2]
QUICK = ModelSettings(vae_videos=4, judge_steps=1, clip_steps=1, clip_pool=8, samples=3)


def tool(*words):
    return run_script("tools/make_toy_models.py", *words)


def script():
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location("make_toy_models", REPOSITORY / "tools/make_toy_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    output = tmp_path_factory.mktemp("toy") / "models"
    done = tool(
        "--output", output, "--judge-steps", 1, "--clip-steps", 1, "--clip-pool", 8, "--vae-videos", 4, "--samples", 3
    )
    assert done.returncode == 0, done.stderr
    return output, done.stdout


def test_all_three_are_made_and_measured(made):
    output, printed = made
    assert {path.name for path in output.iterdir()} == {"vae", "judge", "clip", "report.json"}
    report = json.loads((output / "report.json").read_text())
    assert report["vae"]["psnr"] > 10
    assert set(report["judge"]["2 actors"]) == {"sharp", "blurred", "vae", "reference", "copying"}
    low, high = (report["judge"]["1 actor"]["sharp"]["shape"][name] for name in ("low", "high"))
    assert 0 <= low < high <= 1
    assert set(report["clip"]) == {"zero_shot", "probe", "probe_of_random_tower"}
    assert "PSNR" in printed and "retrieval" in printed and "zero-shot" in printed


def test_what_it_made_is_loaded(made):
    output, _ = made
    video = render(make_sample(1, 0).scene)
    assert load_judge(output).read([video])[0].background.sum() == pytest.approx(1, abs=1e-4)
    assert LinearVideoVAE.from_pretrained(output / "vae").config.latent_channels == 48


def test_the_same_settings_keep_all_and_others_replace_what_depends_on_them(made):
    output, _ = made
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/made.json")}
    assert len(before) == 3
    report = make_models(output, QUICK, progress=False)
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/made.json")} == before
    assert report == json.loads((output / "report.json").read_text())
    make_models(output, ModelSettings(**vars(QUICK) | {"clip_steps": 2}), progress=False)
    changed = {path.parent.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"clip"}


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds something else"):
        make_models(tmp_path, QUICK, progress=False)
    assert [path.name for path in (tmp_path / "vae").iterdir()] == ["thesis.txt"]


def test_a_failure_leaves_nothing_half_made(tmp_path, monkeypatch):
    monkeypatch.setattr(models.latents, "measure_vae", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_models(tmp_path / "models", QUICK, progress=False)
    assert not list((tmp_path / "models").iterdir())


def test_mistakes_are_told_before_anything_is_made(tmp_path):
    for words, told in (
        (["--judge-steps", "0"], "judge_steps=0 must be at least 1"),
        (["--latent-channels", "500"], "latent_channels=500 must be at most 192"),
    ):
        with pytest.raises(UserError, match=told):
            script().main(["--output", str(tmp_path / "models"), *words])
    assert not (tmp_path / "models").exists()


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as done:
        script().main(["--help"])
    printed = capsys.readouterr().out
    assert done.value.code == 0 and "examples:" in printed and "conditioning.vae=" in printed
