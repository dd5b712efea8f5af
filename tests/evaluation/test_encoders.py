"""Pictures as CLIP and DINO are shown them, features that do not depend on company, and one message per mistake."""

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from transformers import AutoImageProcessor, ViTConfig, ViTImageProcessor, ViTModel

from phantom_mega.errors import SetupError, UserError
from phantom_mega.evaluation import clip_i, clip_i_seg, dino_i
from phantom_mega.evaluation.encoders import EncoderSettings, load_clip, load_dino, to_square, unit_rows
from tests.evaluation.pictures import clip
from tests.evaluation.small_encoders import write_clip, write_dino


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def tiny_dino(tmp_path_factory):
    return write_dino(tmp_path_factory.mktemp("dino"))


def unit(features):
    return torch.nn.functional.normalize(features.double(), dim=1).numpy()


@pytest.mark.parametrize("turned", [False, True])
def test_clip_sees_what_its_published_preprocessing_gives(tiny_clip, turned):
    name, weights, model = tiny_clip
    image = clip("bikes")[40].swapaxes(0, 1 if turned else 0)
    encode = load_clip(EncoderSettings(name, str(weights)), "clip_i", "cpu")
    published = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    with torch.no_grad():
        expected = unit(model.encode_image(published(Image.fromarray(image))[None]))
    assert np.allclose(encode([image]), expected, atol=1e-6)


@pytest.mark.parametrize("width", [72, 96, 204])
def test_dino_gives_the_class_token_of_what_its_image_processor_makes(tiny_dino, width):
    folder, model = tiny_dino
    image = clip("bikes")[40][:, :width]  # torchvision and transformers cut odd margins apart
    pixels = AutoImageProcessor.from_pretrained(folder)(images=Image.fromarray(image), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = unit(model(pixels).last_hidden_state[:, 0])
    encode = load_dino(EncoderSettings(str(folder)), "dino_i", "cpu")
    assert encode.side == 28 and encode.resize == 32
    assert np.allclose(encode([image]), expected, atol=1e-3)


def test_a_dino_without_its_pooler_is_whole_but_one_without_a_layer_is_not(tmp_path):
    shape = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32)
    ViTModel(ViTConfig(**shape, patch_size=8), add_pooling_layer=False).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert load_dino(EncoderSettings(str(tmp_path)), "dino_i", "cpu")([clip("bikes")[0]]).shape == (1, 24)
    config = (tmp_path / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"dino_i\.model .* has no weights for .* they would be random"):
        load_dino(EncoderSettings(str(tmp_path)), "dino_i", "cpu")


def test_features_do_not_depend_on_what_came_in_the_same_batch(tiny_clip, tiny_dino):
    images = [clip("bikes")[0], clip("bikes")[60][:, :40], clip("carphone")[5], clip("bigbuckbunny")[9][:20]]
    for load, names in ((load_clip, tiny_clip[:2]), (load_dino, (tiny_dino[0], ""))):
        one, three = (load(EncoderSettings(str(names[0]), str(names[1]), batch=n), "m", "cpu") for n in (1, 3))
        together = three(images)
        assert np.allclose(together, one(images), atol=1e-6)
        assert np.allclose(together, np.concatenate([three([image]) for image in images]), atol=1e-6)
        assert np.allclose(np.linalg.norm(together, axis=1), 1)


def test_a_picture_becomes_a_square_by_crop_pad_or_squash():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, :20], image[:, 60:] = (255, 0, 0), (0, 0, 255)
    assert not to_square(image, 20, "crop")[:, 1:-1].any(), "the coloured ends are cut off"
    squashed = to_square(image, 20, "squash")
    assert squashed[10, 2].tolist() == [255, 0, 0] and squashed[10, 17].tolist() == [0, 0, 255]
    padded = to_square(image, 20, "pad")
    assert (padded[:4] == 255).all() and (padded[-4:] == 255).all() and padded[10, 2].tolist() == [255, 0, 0]
    assert to_square(image, 20, "crop", 40).shape == (20, 20, 3)


def test_a_line_of_pixels_takes_no_gigabytes():
    line = np.full((1, 200_000, 3), 7, np.uint8)
    assert (to_square(line, 224, "crop") == 7).all()
    assert to_square(line.swapaxes(0, 1), 224, "crop").shape == (224, 224, 3)


def test_a_feature_without_a_direction_is_refused():
    for bad in (np.zeros((1, 3)), np.array([[1.0, np.nan, 0.0]])):
        with pytest.raises(SetupError, match="without a direction"):
            unit_rows(bad)


@pytest.mark.parametrize(("metric", "changed", "message"), [
    (clip_i, {"fit": "stretch"}, r"clip_i\.fit='stretch'; use crop, pad or squash"),
    (clip_i, {"dtype": "int8"}, r"clip_i\.dtype='int8'; use float32, bfloat16 or float16"),
    (dino_i, {"batch": 0}, r"dino_i\.batch=0; it must be at least 1"),
    (dino_i, {"frames": 0}, r"dino_i\.frames=0"),
    (clip_i_seg, {"region": "mask"}, r"clip_i_seg\.region='mask'; use box or frame"),
    (clip_i_seg, {"threshold": 1.5}, r"clip_i_seg\.threshold=1\.5"),
    (clip_i_seg, {"mask_model": ""}, r"clip_i_seg\.mask_model is not set; .*sam-vit-huge"),
    (clip_i, {"model": ""}, r"clip_i\.model is not set; .*open_clip"),
    (clip_i, {"model": "ViT-B-23"}, r"clip_i\.model='ViT-B-23' is no open_clip model .*did you mean ViT-B-\d"),
    (clip_i, {"pretrained": ""}, r"clip_i\.pretrained is not set, .* would have random weights"),
    (clip_i, {"model": "ViT-B-32"}, r"another activation than the weights 'openai'.*use ViT-B-32-quickgelu"),
    (clip_i, {"model": "/nowhere"}, r"clip_i\.model='/nowhere' is no open_clip model and no directory"),
    (dino_i, {"model": ""}, r"dino_i\.model is not set; .*facebook/dinov2-base"),
    (dino_i, {"model": "/nowhere"}, r"dino_i\.model '/nowhere' could not be loaded: .*facebook/dinov2-base$"),
])  # fmt: skip
def test_a_wrong_setting_is_named_with_where_the_model_is_to_be_had(metric, changed, message):
    ((settings, build),) = metric.METRICS.values()
    with pytest.raises(UserError, match=message):
        build(settings(**changed), "cpu")


def test_a_model_that_is_no_vision_transformer_is_refused(tmp_path):
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel

    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])).save_pretrained(tmp_path)
    ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"dino_i\.model=.* is no vision transformer"):
        load_dino(EncoderSettings(str(tmp_path)), "dino_i", "cpu")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_moves_features_a_little(tiny_clip, tiny_dino, dtype):
    images = [clip("bikes")[0], clip("carphone")[5]]
    for load, model, weights in ((load_clip, *tiny_clip[:2]), (load_dino, tiny_dino[0], "")):
        full, half = (load(EncoderSettings(str(model), str(weights), dtype=n), "m", "cpu") for n in ("float32", dtype))
        assert 1 - 1e-2 < (full(images) * half(images)).sum(1).min() < 1 - 1e-9
