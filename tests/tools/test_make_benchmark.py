"""The tool writes a set that the generator reads, the same again, and never half of one or over something else."""

import json
import runpy
import sys

import numpy as np
import pytest

from phantom_mega.evaluation.benchmark_set import read_manifest
from phantom_mega.generation.cases import read_cases
from phantom_mega.images import open_reference
from tests.media import encode_image
from tests.training.conftest import REPOSITORY


@pytest.fixture
def run(monkeypatch, capsys):
    """The tool as a function of its words: what it says; in this process, for loading torch takes seconds."""

    def call(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["make_benchmark.py", *map(str, words)])
        try:
            runpy.run_path(str(REPOSITORY / "tools/make_benchmark.py"), run_name="__main__")
            message = None
        except SystemExit as stop:
            message = stop.code
        assert (message is None) == (code == 0), message
        printed = capsys.readouterr()
        return f"{message}\n" if code else printed.out

    return call


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")
    labels = ("animal/corgi", "animal/tabby_cat", "human/man", "product/teapot", "portrait/woman", "portrait/man")
    for number, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for i in range(2):
            picture = np.full((32, 24, 3), 20 * number + i, np.uint8)
            (folder / label / f"{i}.png").write_bytes(encode_image(picture, "PNG"))
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_generator_reads_every_case_with_its_seed_and_images_and_the_manifest_names_it(run, references, tmp_path):
    said = run("--references", references, "--output", tmp_path / "set", "--subjects", 4)
    assert "single.json (36 cases), multi.json (4 cases), portrait.json (4 cases)" in said
    manifest = read_manifest(tmp_path / "set")
    cases = {track: read_cases(tmp_path / f"set/{track}.json") for track in ("single", "multi", "portrait")}
    assert {case.id for found in cases.values() for case in found} == set(manifest)
    for track, found in cases.items():
        for case in found:
            entry = manifest[case.id]
            assert (entry["track"], entry["seed"], entry["prompt"]) == (track, case.seed, case.prompt)
            assert [image["label"] for image in entry["references"]] == list(case.labels)
            for path, image in zip(case.images, entry["references"], strict=True):
                original = references / image["path"].removeprefix("images/")
                assert np.array_equal(open_reference(path, 1), open_reference(original, 1))
    assert {case.seed for case in cases["single"]} == {0, 1, 2}


def test_again_writes_the_same_and_another_set_needs_overwrite(run, references, tmp_path):
    words = ("--references", references, "--output", tmp_path / "set", "--subjects", 2)
    run(*words)
    first = contents(tmp_path / "set")
    run(*words)
    assert contents(tmp_path / "set") == first
    assert "holds another evaluation set" in run(*words, "--seed", 7, code=1)
    assert contents(tmp_path / "set") == first
    run(*words, "--seed", 7, "--overwrite")
    assert contents(tmp_path / "set")["manifest.json"] != first["manifest.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_other_templates_are_another_set(run, references, tmp_path):
    templates = tmp_path / "templates.json"
    templates.write_text(json.dumps({"single": {"human": ["{0} sings."]}, "groups": {}}))
    words = (
        "--references",
        references,
        "--output",
        tmp_path / "set",
        "--subjects",
        1,
        "--tracks",
        "single",
        "--prompts",
        1,
    )
    run(*words, "--templates", templates)
    assert [case["prompt"] for case in read_manifest(tmp_path / "set").values()] == ["A man sings."] * 3
    assert "holds another evaluation set" in run(*words, code=1)


def test_what_is_no_set_stays_and_broken_images_leave_nothing(run, references, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    said = run("--references", references, "--output", tmp_path / "mine", "--subjects", 1, "--overwrite", code=1)
    assert said.startswith("make_benchmark: ") and "is no evaluation set" in said
    assert contents(tmp_path / "mine") == {"thesis.txt": b"years of work"}
    broken = tmp_path / "broken/animal/cat"
    broken.mkdir(parents=True)
    (broken / "1.png").write_bytes(b"no image")
    said = run(
        "--references", tmp_path / "broken", "--output", tmp_path / "out", "--subjects", 1, "--tracks", "single", code=1
    )
    assert "animal/cat/1.png) cannot be used" in said and not (tmp_path / "out").exists()


def test_too_few_references_are_one_line_with_counts(run, references, tmp_path):
    said = run("--references", references, "--output", tmp_path / "set", code=1)
    assert said.count("\n") == 1 and "there are 8 references" in said and "--subjects 4" in said
    assert not (tmp_path / "set").exists()
