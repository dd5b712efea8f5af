"""Many cases: files whole, finished ones kept, failed ones recorded, settings compared."""

import json

import numpy as np
import pytest
import torch

from phantom_mega.errors import SetupError, UserError
from phantom_mega.generation.cases import Case
from phantom_mega.generation.rephrase import Rephrased
from phantom_mega.generation.run import Job, draw_sheet, generate_cases
from tests.hf.conftest import components  # noqa: F401 (a fixture)

SAMPLING = {"num_inference_steps": 2}


@pytest.fixture
def pipe(components):  # noqa: F811
    from phantom_mega.hf.pipeline_phantom import PhantomPipeline

    pipe = PhantomPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_job(folder, **settings):
    lines = []
    job = Job(folder, 32, 48, 5, SAMPLING, report=lines.append, **settings)
    return job, lines


def cases_of(images):
    return [
        Case("one", "a red thing", (str(images / "a.png"),), ("a red thing",)),
        Case("broken", "nothing", (str(images / "none.png"),)),
        Case("two", "a hill", (str(images / "a.png"), str(images / "b.jpg")), seed=5),
    ]


def test_one_failed_case_is_recorded_and_the_rest_is_done(pipe, images, tmp_path):
    job, lines = make_job(tmp_path / "out")
    failed = generate_cases(pipe, cases_of(images), job)
    assert [case.id for case in failed] == ["broken"] and len(lines) == 3
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["broken.error.json", "one.json", "one.mp4", "one.png", "two.json", "two.mp4", "two.png"]
    error = json.loads((tmp_path / "out/broken.error.json").read_text())
    assert "reference image 1" in error["error"] and "none.png" in error["error"] and "traceback" not in error
    made = json.loads((tmp_path / "out/two.json").read_text())
    assert made["seed"] == 5 and made["prompt"] == "a hill" and made["seconds"] > 0
    assert draw_sheet(cases_of(images), tmp_path / "out").name == "contact_sheet.png"


def test_finished_videos_are_kept_and_a_failed_case_is_tried_again(pipe, images, tmp_path):
    job, _ = make_job(tmp_path)
    cases = cases_of(images)
    generate_cases(pipe, cases, job)
    assert [case.id for case in job.todo(cases)] == ["broken"]
    (tmp_path / "one.mp4").unlink()
    assert [case.id for case in job.todo(cases)] == ["one", "broken"]
    mended = [*cases[:1], Case("broken", "nothing", (str(images / "b.jpg"),)), *cases[2:]]
    assert generate_cases(pipe, job.todo(mended), job) == [] and job.todo(mended) == []
    assert not (tmp_path / "broken.error.json").exists()


def test_videos_of_other_settings_are_not_mixed_in(pipe, images, tmp_path):
    cases = cases_of(images)[:1]
    generate_cases(pipe, cases, make_job(tmp_path)[0])
    other, _ = make_job(tmp_path, seed=1, origin={"weights": "raw"})
    with pytest.raises(UserError, match=r"holds 1 video\(s\) of other settings, the first is one \(.*weights.*differ"):
        other.todo(cases)
    other.overwrite = True
    assert other.todo(cases) == cases


def test_the_seed_decides_the_noise_and_the_prompt_can_be_rephrased(pipe, images, tmp_path, monkeypatch):
    seen = []
    call = type(pipe).__call__

    def spy(self, prompt, references, **given):
        seen.append((prompt, given["generator"].initial_seed()))
        return call(self, prompt, references, **given)

    monkeypatch.setattr(type(pipe), "__call__", spy)
    job, _ = make_job(tmp_path, seed=3, rephrase=lambda case: Rephrased(case.prompt + ", described", ("x",), 1))
    generate_cases(pipe, [cases_of(images)[0], cases_of(images)[2]], job)
    assert seen == [("a red thing, described", 3), ("a hill, described", 5)]
    made = json.loads((tmp_path / "one.json").read_text())
    assert made["prompt"] == "a red thing, described" and made["rephrased"]["appearances"] == ["x"]


def test_an_unexpected_error_is_recorded_with_its_traceback_unless_others_wait(pipe, images, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pipe, "decode", fail)
    job, lines = make_job(tmp_path)
    assert len(generate_cases(pipe, cases_of(images)[:1], job)) == 1
    assert "OutOfMemoryError: CUDA out of memory" in lines[0]
    assert "in fail" in json.loads((tmp_path / "one.error.json").read_text())["traceback"]
    with pytest.raises(torch.OutOfMemoryError):
        generate_cases(pipe, cases_of(images)[:1], job, strict=True)


def test_a_rank_that_does_not_lead_writes_nothing(pipe, images, tmp_path):
    job, _ = make_job(tmp_path, leads=False)
    assert len(generate_cases(pipe, cases_of(images)[:2], job)) == 1
    assert list(tmp_path.iterdir()) == []


def test_frames_are_rounded_not_cut(pipe, images, tmp_path, monkeypatch):
    frames = np.full((1, 5, 32, 48, 3), 0.999, np.float32)
    monkeypatch.setattr(pipe, "decode", lambda *args: frames)
    seen = []
    monkeypatch.setattr("phantom_mega.generation.run.write_mp4", lambda frames, *rest: seen.append(frames))
    generate_cases(pipe, cases_of(images)[:1], make_job(tmp_path)[0])
    assert (seen[0] == 255).all() and seen[0].dtype == np.uint8


def test_a_mistake_that_every_case_would_meet_stops_the_run(pipe, images, tmp_path):
    def refuse(case):
        raise SetupError("wrong key")

    job, _ = make_job(tmp_path, rephrase=refuse)
    with pytest.raises(SetupError, match="wrong key"):
        generate_cases(pipe, cases_of(images), job)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_could_not_be_rephrased_is_told(pipe, images, tmp_path):
    job, lines = make_job(tmp_path, rephrase=lambda case: Rephrased(case.prompt, warning="the prompt was kept: busy"))
    generate_cases(pipe, cases_of(images)[:1], job)
    assert lines[0] == "one: the prompt was kept: busy"
