"""Embeddings by real models: MobileNet with ImageNet's weights; a tiny open_clip, DINOv2 and SigLIP of random ones."""

import dataclasses
import io
import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torchvision import models
from transformers import (
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from phantom_mega.curation import embeddings
from phantom_mega.curation.annotations import read
from phantom_mega.curation.embeddings import EmbeddingSettings, open_embeddings, stage, subject_image, to_square
from phantom_mega.curation.engine.tables import Table
from phantom_mega.curation.video import frames_at, to_rgb
from phantom_mega.data.packages import MOBILENET, MOBILENET_FILE, extracted
from phantom_mega.data.samples import ANNOTATIONS, source_video
from phantom_mega.errors import UserError
from tests.curation.tables import PARTS, run_here, write_table

MOBILENET_SETTINGS = EmbeddingSettings("torchvision", "mobilenet_v2", "imagenet")


def jpeg(image, kind="JPEG"):
    data = io.BytesIO()
    image.save(data, kind, quality=95)
    return data.getvalue()


def picture(seed=0, size=(60, 40)):
    values = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)


def crop(name, image, mask=None):
    return {"crop_id": name, "image": image if isinstance(image, bytes) else jpeg(image), "mask": mask}


def vectors(settings, rows):
    return np.array([made[0]["embedding"] for made in open_embeddings(settings)(rows)])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Settings of each kind of model that needs no download, and how each is called by hand."""
    folder, made = tmp_path_factory.mktemp("models"), {}
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 2, "width": 24, "head_width": 12, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    (folder / "tiny-embedder.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder / "tiny-embedder.json")
    model = open_clip.create_model("tiny-embedder").eval()
    torch.save(model.state_dict(), folder / "clip.pt")
    made["open_clip"] = (EmbeddingSettings("open_clip", "tiny-embedder", str(folder / "clip.pt")), model.encode_image)

    model = Dinov2Model(Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28)).eval()
    model.save_pretrained(folder / "dinov2")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessor(**size, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder / "dinov2")
    made["dinov2"] = (EmbeddingSettings("transformers", str(folder / "dinov2")),
                      lambda pixels, model=model: model(pixels).last_hidden_state[:, 0])  # fmt: skip

    small = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = SiglipModel(SiglipConfig(text_config=small | {"vocab_size": 64},
                                     vision_config=small | {"image_size": 32, "patch_size": 8})).eval()  # fmt: skip
    model.save_pretrained(folder / "siglip")
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "siglip")
    made["siglip"] = (EmbeddingSettings("transformers", str(folder / "siglip")),
                      lambda pixels, model=model: model.vision_model(pixels).pooler_output)  # fmt: skip
    return made


PIXELS = {"open_clip": (32, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
          "dinov2": (28, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]), "siglip": (32, [0.5] * 3, [0.5] * 3)}  # fmt: skip


@pytest.mark.parametrize("name", ["open_clip", "dinov2", "siglip"])
def test_a_vector_is_the_models_own_of_the_whole_crop_at_length_one(tiny, name):
    settings, by_hand = tiny[name]
    side, mean, std = PIXELS[name]
    image = picture()
    square = torch.from_numpy(np.asarray(Image.open(io.BytesIO(jpeg(image))).resize((side, side), 3))) / 255
    pixels = ((square - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        expected = torch.nn.functional.normalize(by_hand(pixels), dim=1).numpy()
    settings = dataclasses.replace(settings, embedding_fit="squash")
    found = vectors(settings, [crop("a", image), crop("b", picture(1))])
    np.testing.assert_allclose(found[:1], expected, atol=1e-5)
    assert found.dtype == np.float32 and abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_the_packaged_weights_tell_subjects_of_real_videos_apart(tmp_path):
    rows, subjects = [], []
    for one in read(ANNOTATIONS):
        if one.video == "bbb.mp4":
            continue
        path = tmp_path / one.video
        path.write_bytes(source_video(path.stem))
        for subject in one.subjects:
            for i, (time, box) in enumerate((place.time, place.box) for place in subject.boxes):
                image = Image.fromarray(to_rgb(frames_at(path, [time])[0]))
                sides = [side * image.size[j % 2] for j, side in enumerate(box)]
                rows.append(crop(f"{one.video} {one.time} {subject.identity} {i}", image.crop(sides)))
                subjects.append(subject.identity)
    found = vectors(MOBILENET_SETTINGS, rows)
    assert found.shape == (len(rows), 1280) and len(rows) > 30
    similarity = found @ found.T - 2 * np.eye(len(found))
    nearest = enumerate(similarity.argmax(axis=1))
    hits = [subjects[i] == subjects[j] for i, j in nearest if subjects.count(subjects[i]) > 1]
    assert np.mean(hits) > 0.9, "the most similar crop is of the same subject"


def test_a_model_of_torchvision_is_taken_without_its_classifier_from_either_kind_of_file(tmp_path):
    torch.manual_seed(0)
    model = models.resnet18(num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    found = []
    for kind in ("pth", "safetensors"):
        settings = EmbeddingSettings("torchvision", "resnet18", str(tmp_path / f"weights.{kind}"))
        found.append(vectors(settings, [crop("a", picture())]))
    assert found[0].shape == (1, 512) and (found[0] == found[1]).all()


def test_what_lies_outside_the_mask_is_painted_over_when_asked():
    image = Image.new("RGB", (40, 40), "red")
    ImageDraw.Draw(image).rectangle((10, 10, 29, 29), fill="blue")
    mask = Image.new("L", (40, 40))
    ImageDraw.Draw(mask).rectangle((10, 10, 29, 29), fill=255)
    row = crop("a", jpeg(image, "PNG"), jpeg(mask, "PNG"))
    corners = {how: subject_image(row, how).getpixel((2, 2)) for how in ("keep", "grey", "white")}
    assert corners == {"keep": (255, 0, 0), "grey": (128, 128, 128), "white": (255, 255, 255)}
    assert all(subject_image(row, how).getpixel((20, 20)) == (0, 0, 255) for how in corners)
    assert subject_image(crop("a", jpeg(image, "PNG")), "grey").getpixel((2, 2)) == (255, 0, 0)
    green = Image.new("RGB", (40, 40), "green")
    green.paste(image.crop((10, 10, 30, 30)), (10, 10))
    rows = [row, crop("b", jpeg(green, "PNG"), jpeg(mask, "PNG"))]
    kept, grey = (vectors(dataclasses.replace(MOBILENET_SETTINGS, embedding_background=how), rows)
                  for how in ("keep", "grey"))  # fmt: skip
    assert kept[0] @ kept[1] < 0.95 and (grey[0] == grey[1]).all()


def test_a_crop_is_padded_or_squashed_and_never_cut():
    wide = Image.new("RGB", (100, 20), "red")
    padded, squashed = (to_square(wide, 50, fit) for fit in ("pad", "squash"))
    assert padded.shape == squashed.shape == (50, 50, 3)
    assert (squashed == (255, 0, 0)).all() and (padded[25] == (255, 0, 0)).all() and (padded[0] == 128).all()


def test_unreadable_crops_are_rejected_and_the_others_are_made(tmp_path, tiny):
    rows = [crop("good", picture()), crop("bad", b"\xff\xd8 no picture"), crop("none", b""), crop("good2", picture(2))]
    write_table(tmp_path, "crops", rows)
    for batch in (1, 4):
        made = dataclasses.replace(stage(tiny["dinov2"][0]), batch=batch, name=f"made{batch}")
        assert run_here([made], tmp_path)[f"made{batch}"] == {"unreadable": 2}
    tables = [Table(tmp_path, f"made{batch}", PARTS).read(["crop_id", "embedding"], accepted=True).sort_by("crop_id")
              for batch in (1, 4)]  # fmt: skip
    assert tables[0] == tables[1] and tables[0]["crop_id"].to_pylist() == ["good", "good2"]


@pytest.mark.gpu
def test_on_a_gpu_a_vector_does_not_depend_on_what_came_with_it():
    rows = [crop(str(i), picture(i)) for i in range(40)]
    settings = dataclasses.replace(MOBILENET_SETTINGS, embedding_batch=16)
    together, alone = vectors(settings, rows), np.concatenate([vectors(settings, [row]) for row in rows[:3]])
    assert (together[:3] == alone).all()


@pytest.mark.parametrize(("change", "message"), [
    ({"embedding_backend": "clip"}, "use open_clip, transformers or torchvision"),
    ({"embedding_background": "black"}, "use keep, grey or white"), ({"embedding_fit": "crop"}, "use pad or squash"),
    ({"embedding_batch": 0}, "at least 1"), ({"embedding_model": "mobile"}, "'mobile' is no classifier of torchvision"),
    ({"embedding_model": "resnet18"}, "there for mobilenet_v2 alone"),
    ({"embedding_weights": "/no/such.pth"}, "such.pth cannot be read"),
    ({"embedding_backend": "open_clip", "embedding_model": "ViT-B-61"}, "embedding_model='ViT-B-61' is no open_clip"),
    ({"embedding_backend": "open_clip", "embedding_model": "ViT-B-16", "embedding_weights": ""},
     "embeddings.embedding_weights is not set"),
    ({"embedding_backend": "transformers", "embedding_model": "/no/such"}, "model '/no/such' could not be loaded"),
])  # fmt: skip
def test_mistakes_of_the_settings_are_told(change, message):
    with pytest.raises(UserError, match=message):
        open_embeddings(dataclasses.replace(MOBILENET_SETTINGS, **change))


class Harmful:
    def __reduce__(self):
        return print, ("code ran",)


def test_files_that_would_run_code_or_belong_to_another_model_are_refused(tmp_path, capsys, tiny):
    torch.save({"a": Harmful()}, tmp_path / "harm.pth")
    torch.save([1], tmp_path / "list.pth")
    torch.save(models.resnet18(num_classes=3).state_dict(), tmp_path / "other.pth")
    for name, message in (("harm", "cannot be read"), ("list", "no file of weights alone"),
                          ("other", "holds no weights of mobilenet_v2")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            open_embeddings(dataclasses.replace(MOBILENET_SETTINGS, embedding_weights=str(tmp_path / f"{name}.pth")))
    assert "code ran" not in capsys.readouterr().out
    folder = tmp_path / "partly"
    config = Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 28}).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(UserError, match="has no weights for"):
        open_embeddings(EmbeddingSettings("transformers", str(folder)))


def test_another_file_of_weights_makes_the_vectors_anew(tmp_path):
    weights = tmp_path / "w.pth"
    digests = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(models.resnet18(num_classes=3).state_dict(), weights)
        digests.append(stage(EmbeddingSettings("torchvision", "resnet18", str(weights))).digest())
    assert digests[0] != digests[1]
    assert stage(MOBILENET_SETTINGS).files == () and extracted(MOBILENET, MOBILENET_FILE).is_file()
    assert set(embeddings.BACKGROUNDS) == {"keep", "grey", "white"}
