"""The vision tower as diffusers saves and loads it."""

import pytest
import torch

from phantom_mega.conditioning.vision import load_vision_tower
from phantom_mega.config import ConditioningConfig
from phantom_mega.hf.vision_tower import PhantomVisionTower
from tests.conditioning.test_vision import images, towers  # noqa: F401 (a fixture)


@pytest.mark.parametrize("name", ["tiny", "clip", "timm"])
def test_a_saved_tower_gives_the_features_of_open_clips(towers, tmp_path, name):  # noqa: F811
    source = "tiny" if name == "tiny" else towers[name][3]
    tower = load_vision_tower(ConditioningConfig(vision_encoder=source), "cpu")
    tower.model.save_pretrained(tmp_path)
    again, loaded = PhantomVisionTower.from_pretrained(tmp_path, output_loading_info=True)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"]
    pixels = torch.stack([tower.preprocess(image) for image in images()])
    with torch.no_grad():
        assert torch.equal(again.eval()(pixels), tower.model(pixels))
    assert dict(again.config)["image_mean"] == list(tower.model.config.image_mean)


def test_it_stays_in_bf16_when_loaded_so(tmp_path):
    tower = load_vision_tower(ConditioningConfig(), "cpu")
    tower.model.save_pretrained(tmp_path)
    again = PhantomVisionTower.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again(torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
