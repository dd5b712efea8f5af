"""Whole runs with evaluation: what they leave, that training does not notice, signals, resumption."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from phantom_mega.checkpoint.folder import checkpoint_root
from phantom_mega.config import TrainConfig
from phantom_mega.errors import UserError
from phantom_mega.generation.load import load_pipeline
from phantom_mega.metrics import read_evaluations, read_metrics
from phantom_mega.training.draws import generator_for
from phantom_mega.training.evaluation import check_settings
from phantom_mega.training.held_out import SEED
from tests.reliability.helpers import unequal
from tests.reliability.worker import close_groups, run_case
from tests.training import eval_metrics

COMMON = ["train.train_iters=5", "optimizer.lr_warmup_iters=0", "train.save_interval=2", "train.ema_decay=0.9"]
EVALUATE = [
    *("train.eval_interval=2", "train.eval_iters=10", "train.eval_timesteps=[0.2,0.8]"),
    *("train.eval_videos=2", "train.eval_video_steps=2"),
]
METRICS = "tests.training.eval_metrics:"


@pytest.fixture(scope="module", autouse=True)
def world():
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def run(data_set, valid_set, tmp_path_factory):
    """Train in this process: run(name, *overrides, held_out=...) gives the exit code."""
    folder = tmp_path_factory.mktemp("runs")

    def train(name, *overrides, held_out=valid_set):
        words = [f"data.index_path=[{data_set}]", *COMMON, *overrides]
        words += [f"data.valid_index_path=[{held_out}]", *EVALUATE] if held_out else []
        words += [word for word in overrides if word.startswith("train.eval")]  # they come last
        try:
            return run_case(folder, {"run": name, "overrides": words})["code"]
        except UserError:
            close_groups()
            raise

    train.folder = folder
    return train


@pytest.fixture(scope="module")
def plain(run):
    """A run that evaluates nothing."""
    assert run("plain", held_out=None) == 0
    return run.folder / "plain"


@pytest.fixture(scope="module")
def evaluated(run):
    """The same run with evaluations after iterations 2, 4 and 5, the last; its items are in `eval_metrics.ITEMS`."""
    eval_metrics.ITEMS.clear()
    names = f"train.eval_metrics=[tower_i,temporal_flickering,{METRICS}remembering]"
    assert run("evaluated", names) == 0
    return run.folder / "evaluated"


def without_time(run):
    return [{name: value for name, value in one.items() if name != "seconds"} for one in read_evaluations(run)]


def checkpoint(run, iteration):
    return checkpoint_root(run) / f"iter_{iteration:07d}"


def test_training_is_bit_equal_with_and_without_evaluation(plain, evaluated):
    exact = ("loss", "grad_norm", "data_digest", "learning_rate", "ema_decay", "consumed_samples", "loss_per_timestep")
    both = ([[one[name] for name in exact] for one in read_metrics(run)] for run in (plain, evaluated))
    assert next(both) == next(both)
    assert unequal(checkpoint(plain, 5), checkpoint(evaluated, 5)) == []


def test_every_evaluation_is_recorded(evaluated):
    found = read_evaluations(evaluated)
    assert [one["iteration"] for one in found] == [2, 4, 5]
    assert [one["consumed_samples"] for one in found] == [4, 8, 10]
    assert len({one["loss"] for one in found}) == 3, "the weights moved"
    for one in found:
        assert one["loss"] == pytest.approx(np.mean([one["loss_per_timestep"][t] for t in ("0.2", "0.8")]))
        assert one["weights"] == "ema" and set(one["s2v"]) == {"tower_i", "temporal_flickering", "references"}
        assert [video["problems"] for video in one["videos"]] == [[], []]
        counts = [video["metrics"]["references"] for video in one["videos"]]
        assert one["s2v"]["references"] == np.mean([count["value"] for count in counts])
        assert [bool(count["missing"]) for count in counts] == [count["value"] == 1 for count in counts]


def test_tensorboard_has_megatrons_tag_the_metrics_and_pictures_that_move(evaluated):
    events = EventAccumulator(str(evaluated / "tensorboard"), size_guidance={"images": 0}).Reload()
    recorded = read_evaluations(evaluated)
    assert [event.step for event in events.Scalars("flow loss validation")] == [2, 4, 5]
    assert [event.step for event in events.Scalars("flow loss validation vs samples")] == [4, 8, 10]
    values = [event.value for event in events.Scalars("flow loss validation")]
    assert values == pytest.approx([one["loss"] for one in recorded])
    values = [event.value for event in events.Scalars("validation loss per timestep/0.8")]
    assert values == pytest.approx([one["loss_per_timestep"]["0.8"] for one in recorded])
    values = [event.value for event in events.Scalars("s2v/tower_i")]
    assert values == pytest.approx([one["s2v"]["tower_i"] for one in recorded])
    for video in recorded[0]["videos"]:
        card, moving = (events.Images(f"sample {kind}/{video['id']}") for kind in ("cards", "videos"))
        assert [event.step for event in card] == [event.step for event in moving] == [2, 4, 5]
        assert card[0].encoded_image_string.startswith(b"\x89PNG")
        assert moving[0].encoded_image_string.startswith(b"GIF8") and moving[0].width > moving[0].height


def test_the_files_of_every_evaluation_are_there_and_nothing_else(evaluated):
    names = sorted(path.name for path in (evaluated / "samples").iterdir())
    assert names == ["iter_0000002", "iter_0000004", "iter_0000005"]
    recorded = read_evaluations(evaluated)[-1]
    ids = [video["id"] for video in recorded["videos"]]
    files = {path.name: path for path in (evaluated / "samples/iter_0000005").iterdir()}
    assert sorted(files) == sorted([f"{id}.{end}" for id in ids for end in ("png", "mp4")] + ["samples.json"])
    said = json.loads(files["samples.json"].read_text())
    assert said == {"weights": "ema", "videos": recorded["videos"]}


def test_videos_are_what_the_pipeline_makes_of_the_averaged_weights_at_that_iteration(evaluated):
    assert len(eval_metrics.ITEMS) == 6
    item = eval_metrics.ITEMS[-1]
    config, device = eval_metrics.ARGUMENTS[-1]
    assert (item.fps, device.type) == (config.data.frame_rate, "cpu")
    assert item.prompt.startswith("A square of colour") and len(item.references) == len(item.labels) > 0
    assert item.labels[0] == "the square 0" and item.references[0].shape == (30, 24, 3)
    count, height, width = item.frames.shape[:3]
    for weights, same in (("ema", True), ("raw", False)):
        pipe, _ = load_pipeline(checkpoint(evaluated, 5), weights=weights)
        pipe.set_progress_bar_config(disable=True)
        frames = pipe(
            item.prompt, list(item.references), height=height, width=width, num_frames=count, num_inference_steps=2,
            generator=generator_for(SEED, item.id, "sample video"), output_type="np",
        ).frames[0]  # fmt: skip
        assert np.array_equal((frames * 255).round().astype(np.uint8), item.frames) == same


def test_a_resumed_run_evaluates_as_an_uninterrupted_one(run, evaluated):
    names = f"train.eval_metrics=[tower_i,temporal_flickering,{METRICS}remembering]"
    assert run("resumed", names, "train.exit_interval=3") == 75
    assert run("resumed", names) == 0
    assert without_time(run.folder / "resumed") == without_time(evaluated)
    assert unequal(checkpoint(evaluated, 5), checkpoint(run.folder / "resumed", 5)) == []


def test_lines_beyond_the_checkpoint_are_written_anew(run, evaluated):
    folder = run.folder / "resumed_again"
    names = f"train.eval_metrics=[tower_i,temporal_flickering,{METRICS}remembering]"
    assert run(folder.name, names, "train.exit_interval=2") == 75
    line = json.dumps(read_evaluations(folder)[0] | {"iteration": 4, "loss": 99.0})
    with open(folder / "eval.jsonl", "a") as file:
        file.write(line + "\n" + line[:20])
    assert run(folder.name, names) == 0
    assert without_time(folder) == without_time(evaluated)


@pytest.mark.parametrize("iterations", [5, 2])
def test_a_signal_during_an_evaluation_leaves_it_out_and_the_next_start_makes_up_for_it(run, iterations, evaluated):
    """Also after the last iteration, when there is nothing left to train."""
    folder = run.folder / f"signalled_{iterations}"
    words = [f"train.train_iters={iterations}"]
    assert run(folder.name, *words, f"train.eval_metrics=[{METRICS}signalling]") == 75
    assert [one["iteration"] for one in read_metrics(folder)] == [1, 2], "it stops right after the evaluation"
    assert read_evaluations(folder) == [] and checkpoint(folder, 2).is_dir()
    assert not list((folder / "samples").iterdir())
    assert run(folder.name, *words, "train.eval_metrics=[tower_i]") == 0
    found, expected = read_evaluations(folder), read_evaluations(evaluated)
    assert [one["iteration"] for one in found] == ([2] if iterations == 2 else [2, 4, 5])
    assert found[0]["loss"] == expected[0]["loss"] and found[0]["s2v"]["tower_i"] == expected[0]["s2v"]["tower_i"]
    if iterations == 5:
        assert unequal(checkpoint(evaluated, 5), checkpoint(folder, 5)) == []


def test_a_metric_that_fails_is_told_and_ends_nothing(run, capfd):
    assert run("failing", "train.train_iters=2", f"train.eval_metrics=[{METRICS}failing,tower_i]") == 0
    found = read_evaluations(run.folder / "failing")[0]
    assert list(found["s2v"]) == ["tower_i"]
    assert [video["problems"] for video in found["videos"]] == [["failing: RuntimeError: no such luck"]] * 2
    assert "failing: RuntimeError: no such luck" in capfd.readouterr().out


def test_what_is_no_measurement_is_told_and_any_number_is_taken(run):
    names = f"train.eval_metrics=[{METRICS}bare_number,{METRICS}tensors]"
    assert run("numbers", "train.train_iters=2", names) == 0
    found = read_evaluations(run.folder / "numbers")[0]
    assert found["s2v"] == {"tensors": 0.5}
    for video in found["videos"]:
        assert video["metrics"]["tensors"] == {"value": 0.5, "missing": "", "detail": {"one": 0.25}}
        assert video["problems"] == ["bare_number: TypeError: measure returned a float, not a Measured"]


def test_videos_that_cannot_be_written_leave_nothing_and_training_goes_on(run, plain, capfd):
    assert run("obstructed", f"train.eval_metrics=[{METRICS}obstructing]") == 0
    folder = run.folder / "obstructed"
    assert "no sample videos at iteration 2: " in capfd.readouterr().out
    found = read_evaluations(folder)
    assert [one["iteration"] for one in found] == [2, 4, 5] and not any("s2v" in one for one in found)
    assert not list((folder / "samples").iterdir())
    assert unequal(checkpoint(plain, 5), checkpoint(folder, 5)) == []


def test_a_checkpoint_is_published_before_the_evaluation_of_its_iteration(run):
    eval_metrics.SEEN.clear()
    words = ("train.train_iters=2", "train.async_save=true", "train.eval_videos=1")
    assert run("published", *words, f"train.eval_metrics=[{METRICS}looking]") == 0
    assert eval_metrics.SEEN == [["iter_0000002"]]


def test_without_videos_the_loss_alone_is_told_in_megatrons_form(run, evaluated, capfd):
    assert run("loss_alone", "train.train_iters=2", "train.eval_videos=0") == 0
    found = read_evaluations(run.folder / "loss_alone")[0]
    assert found["loss"] == read_evaluations(evaluated)[0]["loss"] and "s2v" not in found
    assert not (run.folder / "loss_alone/samples").exists()
    assert f" validation loss at iteration 2 | flow loss value: {found['loss']:.6E} | t=0.2: " in capfd.readouterr().out


def test_raw_weights_make_the_videos_where_nothing_is_averaged(run):
    assert run("raw", "train.train_iters=2", "train.ema_decay=0", "train.eval_metrics=[]") == 0
    assert read_evaluations(run.folder / "raw")[0]["weights"] == "raw"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"train.eval_metrics=[{METRICS}broken]"], "broken failed: OSError: no weights here"),
        ([f"data.resolutions.{name}.frames=[1]" for name in ("64p", "96p")], "no sample of it is a video with ref"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_step(run, overrides, message):
    with pytest.raises(UserError, match=message):
        run("refused", *overrides)
    assert not (run.folder / "refused/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(eval_interval=-1), "train.eval_interval=-1 must be at least 0"),
        (dict(eval_iters=0), "train.eval_iters=0 must be at least 1"),
        (dict(eval_videos=-1), "train.eval_videos=-1 must be at least 0"),
        (dict(eval_video_steps=0), "train.eval_video_steps=0 must be at least 1"),
        (dict(eval_timesteps=[]), "eval_timesteps=.. must be different numbers"),
        (dict(eval_timesteps=[0.5, 0.5]), "must be different numbers"),
        (dict(eval_timesteps=[0.5, 1.0]), "between 0 .data. and 1 .noise., both excluded"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    check_settings(TrainConfig())
    with pytest.raises(UserError, match=message):
        check_settings(dataclasses.replace(TrainConfig(), **fields))


def test_what_is_switched_off_is_said(run, capfd):
    assert run("off", "train.train_iters=1", "train.eval_interval=2", held_out=None) == 0
    assert "no evaluation: data.valid_index_path names no held-out samples" in capfd.readouterr().out
    assert run("off2", "train.train_iters=1", "train.eval_interval=0") == 0
    assert "no evaluation: train.eval_interval=0, though data.valid_index_path is set" in capfd.readouterr().out
    assert not list(run.folder.glob("off*/eval.jsonl"))
