"""A vision language model in this process: a real Qwen2.5-VL of random weights, whose answers are of no use."""

import pytest
from PIL import Image

from phantom_mega.generation.rephrase.base import Rephraser
from phantom_mega.vlm.local import LocalModel
from tests.tiny_models import write_qwen


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_qwen(tmp_path_factory.mktemp("vlm"))


def test_a_model_that_cannot_answer_leaves_the_prompt_with_a_warning(model):
    local = LocalModel(str(model), max_new_tokens=8)
    seen = []
    generate = local.model.generate
    local.model.generate = lambda **inputs: seen.append(inputs) or generate(**inputs)
    found = Rephraser(local, 2).rephrase("A red cube turns.", [Image.new("RGB", (900, 300), "red")] * 2)
    assert found.prompt == "A red cube turns." and found.attempts == 2
    assert found.warning.startswith("the prompt was kept: the answer")
    assert len(seen) == 2 and len(seen[0]["image_grid_thw"]) == 2, "both images reach the model"
    assert seen[1]["input_ids"].shape[1] > seen[0]["input_ids"].shape[1], "the second time it is told what was wrong"


def test_a_prompt_that_the_model_cannot_take_is_kept_with_a_warning(model):
    local = LocalModel(str(model))
    local.processor.tokenizer.init_kwargs["max_length"] = 16
    found = Rephraser(local, 1).rephrase("A red cube turns.", [Image.new("RGB", (90, 30), "red")])
    assert found.prompt == "A red cube turns." and "the vision language model cannot take the prompt" in found.warning
