"""The tiny CLIP: it learns, its patch tokens do, and the project loads its folder as a vision tower."""

import numpy as np
import pytest
import torch

from phantom_mega.conditioning.vision import load_vision_tower
from phantom_mega.config import ConditioningConfig
from phantom_mega.curation.report.precision import wilson
from phantom_mega.toyworld import tiny_clip
from phantom_mega.toyworld.samples import make_sample
from phantom_mega.toyworld.subjects import held_out


@pytest.fixture(scope="module")
def clip():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tiny_clip.train_tiny_clip(seed=0, steps=100, pool=400, progress=False)
    torch.set_num_threads(before)


def test_a_short_training_knows_colours_of_subjects_it_never_saw(clip):
    accuracy = tiny_clip.zero_shot_accuracy(clip, count=160)
    assert wilson(round(160 * accuracy["colour"]), 160)[0] > 0.1  # chance
    assert set(accuracy) == {"colour", "shape", "texture", "part"}


def test_training_shows_no_subject_that_is_held_out():
    assert not any(map(held_out, tiny_clip.reference_pool(40, 0, "train")[1]))
    assert all(map(held_out, tiny_clip.reference_pool(12, 0, "validation")[1]))


def test_every_patch_token_is_trained(clip):
    """Pooling is their mean: a tower that pools a class token would leave the last patch tokens without gradient."""
    tokens = []

    def keep(module, args, out):
        tokens.append(out.detach().requires_grad_(True))
        return tokens[0]

    hook = clip.model.visual.ln_post.register_forward_hook(keep)
    clip.model.encode_image(torch.randn(2, 3, 32, 32)).sum().backward()
    hook.remove()
    by_token = tokens[0].grad.abs().sum((0, 2))
    assert by_token.shape == (5,) and by_token[0] == 0 and (by_token[1:] > 0).all()


def test_the_folder_is_a_vision_tower_with_the_same_patch_tokens(clip, tmp_path):
    clip.write(tmp_path)
    tower = load_vision_tower(ConditioningConfig(vision_encoder=str(tmp_path)), "cpu")
    assert (tower.tokens, tower.dim) == (4, 96)
    images = [reference.image for reference in make_sample(0, 0, actors=2).references]
    assert torch.allclose(tower.encode(images), clip.tower.encode(images), atol=1e-5)


def test_trained_text_and_images_of_one_subject_lie_nearer_than_of_two(clip):
    images, subjects = tiny_clip.reference_pool(60, 0, "train")
    scores = (
        clip.embed_images(images) @ clip.embed_texts([tiny_clip.phrase(subject, "distinct") for subject in subjects]).T
    )
    assert scores.diagonal().mean() > scores.mean() + 0.1


def test_ridge_reads_what_is_linear_and_nothing_from_noise():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=generator, dtype=torch.double)
    labels = x[:, :3].argmax(1)
    told = tiny_clip.ridge_classes(x[:300], labels[:300], x[300:], 3)
    assert (told == labels[300:]).double().mean() > 0.85
    noise = labels[torch.randperm(400, generator=generator)]
    told = tiny_clip.ridge_classes(x[:300], noise[:300], x[300:], 3)
    assert (told == noise[300:]).double().mean() < 0.55


def test_augmentation_moves_by_two_pixels_at_most():
    image = torch.zeros(1, 3, 32, 32)
    image[..., 10, 10] = 100
    for seed in range(12):
        moved = tiny_clip.augment(image, np.random.default_rng(seed))[0, 0]
        row, column = divmod(int(moved.argmax()), 32)
        assert abs(row - 10) <= 2 and min(abs(column - 10), abs(column - 21)) <= 2
