"""tools/make_toyworld.py: both splits from one command, mistakes are one line."""

from phantom_mega.data.index import TripletIndex
from phantom_mega.toyworld.truth import read_truth
from tests.scripts import run_script


def run(*words, code=0):
    done = run_script("tools/make_toyworld.py", *words)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_both_splits_are_written_as_the_arguments_say(tmp_path):
    words = ("--output", tmp_path, "--samples", 4, "--validation-samples", 2, "--frames", 5, "--actors", 2)
    said = run(*words, "--kind", "in", "--height", 16, "--width", 24, "--style", "vague")
    assert f"{tmp_path / 'train'}: 4 samples" in said and f"{tmp_path / 'validation'}: 2 samples" in said
    index, truth = TripletIndex.open(tmp_path / "train"), read_truth(tmp_path / "train")
    assert (index.value("height", 0), index.value("width", 0), index.value("frames", 0)) == (16, 24, 5)
    assert {(drawn.kind, drawn.style, len(drawn.references)) for drawn in truth.values()} == {("in", "vague", 2)}


def test_mistakes_are_one_line(tmp_path):
    for words, message in (
        (("--frames", 16), "make_toyworld: frames=16; training takes 4k+1 frames, at least 5, such as 13"),
        (("--actors", 1, 7), "make_toyworld: actors=[1, 7]; scenes have 1 to 4"),
        (("--cross-share", 2), "make_toyworld: cross_share=2.0; it must lie between 0 and 1"),
    ):
        assert run("--output", tmp_path / "toy", *words, code=1).strip() == message
    assert not (tmp_path / "toy").exists()
    said = run("--output", tmp_path / "toy", "--kind", "in", "--cross-share", 1, code=2)
    assert said.strip().splitlines()[-1].endswith("argument --cross-share: not allowed with argument --kind")
