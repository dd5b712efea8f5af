"""Configuration: recipes, overrides in both spellings, and what the errors say."""

import dataclasses

import pytest

from phantom_mega.config import RunConfig
from phantom_mega.config_io import RUN, load_run_config, to_yaml
from phantom_mega.errors import UserError


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("base: model/tiny\ntrain: {train_iters: 7}\ndata: {resolutions: {64p: {pixels: 4096}}}\n")
    return path


def test_field_names_are_unique_over_all_sections_and_documented():
    names = [path.split(".")[1] for path in RUN.fields]
    assert len(set(names)) == len(names) == sum(len(dataclasses.fields(s.type)) for s in sections())
    assert all(len(doc) > 10 for doc in RUN.fields.values())


def sections():
    import typing

    hints = typing.get_type_hints(RunConfig)
    return [type("S", (), {"type": hint}) for hint in hints.values()]


def test_recipe_fills_the_dataclasses_over_its_base(recipe):
    config = load_run_config(recipe)
    assert config.train.train_iters == 7 and config.model.latent_channels == 48
    assert config.data.resolutions["64p"].pixels == 4096 and config.data.resolutions["64p"].weight == 1.0


def test_both_spellings_mean_the_same(recipe):
    plain = load_run_config(recipe, ["train.global_batch_size=64", "parallel.sequence_parallel=true"])
    megatron = load_run_config(recipe, ["--global-batch-size", "64", "--sequence-parallel"])
    equals = load_run_config(recipe, ["--global-batch-size=64", "--sequence-parallel=true"])
    assert plain == megatron == equals and plain.train.global_batch_size == 64


def test_flags_of_booleans_take_no_word_that_follows():
    assert RUN.parse_overrides(["--bf16", "train.seed=3", "--no-progress-bar", "--bf16", "false"]) == [
        "precision.bf16=True", "train.seed=3", "train.progress_bar=False", "precision.bf16=false",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--global-batchsize", "4"], "unknown flag --global-batchsize; did you mean --global-batch-size"),
        (["train.global_batch=4"], "unknown field train.global_batch; did you mean train.global_batch_size"),
        (["trian.seed=4"], "unknown section 'trian'; did you mean train"),
        (["seed=4"], "must name section.field; did you mean train.seed"),
        (["--seed"], "--seed needs a value"),
        (["train"], "cannot read 'train'"),
        (["train.seed=many"], "train.seed.*many"),
        (["train.seed={"], "not valid YAML"),
        (["data.resolutions={64p: {pixel: 3}}"], "unknown field 'pixel' of 64p; did you mean pixels"),
    ],
)
def test_errors_name_the_nearest_right_word(recipe, words, message):
    with pytest.raises(UserError, match=message):
        load_run_config(recipe, words)


def test_unknown_recipe_names_the_nearest_and_lists_all():
    with pytest.raises(UserError, match="did you mean stage1_256p"):
        load_run_config("stage1_256")


def test_a_recipe_that_names_itself_is_refused(tmp_path):
    (tmp_path / "loop.yaml").write_text(f"base: {tmp_path / 'loop.yaml'}\n")
    with pytest.raises(UserError, match="names itself"):
        load_run_config(tmp_path / "loop.yaml")


@pytest.mark.parametrize("name", RUN.names())
def test_every_shipped_recipe_loads_and_round_trips(name, tmp_path):
    config = load_run_config(name)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_run_config(tmp_path / "again.yaml") == config
