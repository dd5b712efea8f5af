"""Checkpoints: what a path names, what is refused, and that a resumed run's weights, moments and EMA are bit-equal."""

import pytest

from phantom_mega.checkpoint.folder import LATEST, find_checkpoint
from phantom_mega.config import ModelConfig, RunConfig, TrainConfig
from phantom_mega.config_io import to_yaml
from phantom_mega.errors import UserError
from phantom_mega.training.checkpoint import check_same_model, keep_schedule


def fake(folder, iteration, config=None):
    """The files that mark a whole checkpoint."""
    checkpoint = folder / f"iter_{iteration:07d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    (checkpoint / "config.yaml").write_text(to_yaml(config or RunConfig()))
    return checkpoint


def test_run_checkpoints_and_iteration_folders_all_name_the_checkpoint(tmp_path):
    root = tmp_path / "checkpoints"
    old, new = fake(root, 50), fake(root, 100)
    (root / LATEST).write_text("100")
    assert find_checkpoint(tmp_path) == find_checkpoint(root) == find_checkpoint(new) == new
    assert find_checkpoint(old) == old
    assert find_checkpoint(tmp_path / "elsewhere") is None


def test_a_named_but_missing_checkpoint_is_an_error_not_a_fresh_start(tmp_path):
    root = tmp_path / "checkpoints"
    fake(root, 50)
    (root / LATEST).write_text("100")
    with pytest.raises(UserError, match="names iter_0000100, which is missing"):
        find_checkpoint(tmp_path)


def test_another_model_or_a_missing_ema_is_refused_and_windows_may_change(tmp_path):
    saved = fake(tmp_path, 1, RunConfig(train=TrainConfig(ema_decay=0.0)))
    without = TrainConfig(ema_decay=0.0)
    check_same_model(saved, RunConfig(model=ModelConfig(window_frames=5), train=without))
    with pytest.raises(UserError, match=r"model\.hidden_size: 128 saved, 256 asked for"):
        check_same_model(saved, RunConfig(model=ModelConfig(hidden_size=256), train=without))
    with pytest.raises(UserError, match="holds no EMA"):
        check_same_model(saved, RunConfig())


def test_saved_groups_take_the_recipes_schedule_and_keep_their_step_as_an_integer():
    saved = [{"wd_mult": 1.0, "lr": 1e-4, "step": 7.0}, {"wd_mult": 0.0, "lr": 1e-4}]
    keep_schedule(saved, [{"wd_mult": 0.0, "lr": 2e-4, "params": [1]}, {"wd_mult": 1.0, "lr": 3e-4, "step": 0}])
    assert saved == [{"wd_mult": 1.0, "lr": 3e-4, "step": 7}, {"wd_mult": 0.0, "lr": 2e-4}]
    # What Transformer Engine's kernel takes.
    assert type(saved[0]["step"]) is int
