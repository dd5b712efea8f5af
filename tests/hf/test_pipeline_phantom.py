"""Generation: the sampler's equation, guidance, references at the tail, and what is refused."""

import itertools
import logging
from dataclasses import asdict

import accelerate
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from phantom_mega.conditioning.vision import FrozenVisionTower
from phantom_mega.config import ConditioningConfig
from phantom_mega.errors import UserError
from phantom_mega.geometry import SampleShape, patchify, unpatchify
from phantom_mega.hf.pipeline_phantom import PhantomPipeline
from phantom_mega.images import image_tensor, pad_white, to_unit

SIZE = dict(height=32, width=48, num_frames=9)
PROMPT, NEGATIVE = "a red cube turns on a table", "blurry"


def seed(number=0):
    return torch.Generator().manual_seed(number)


def generate(pipe, references=(), steps=3, **arguments):
    """Latents of a short video."""
    given = SIZE | {"output_type": "latent", "generator": seed(), "negative_prompt": NEGATIVE} | arguments
    return pipe(PROMPT, references, num_inference_steps=steps, **given).frames


def reference_latents(pipe, images):
    padded = [to_unit(pad_white(image_tensor(image), 32, 48)) for image in images]
    return torch.cat([pipe._frozen_vae().encode(image[None, :, None]) for image in padded])[:, :, 0]


def test_sampling_is_eulers_rule_on_three_branches_as_the_paper_says(pipe, subjects):
    images = subjects[:2]
    found = generate(pipe, images, steps=4, image_guidance_scale=2.5, text_guidance_scale=6.0)
    # The same by hand, branch by branch, from the formulas.
    model, T, H, W = pipe.transformer, 3, 2, 3
    refs = patchify(reference_latents(pipe, images).transpose(0, 1))
    clip = FrozenVisionTower(pipe.image_encoder).encode(images).flatten(0, 1)
    texts = {name: pipe.encode_prompt(text) for name, text in (("p", PROMPT), ("n", NEGATIVE))}

    def velocity(x, t, text, references, features):
        shape = SampleShape(T, H, W, 2, len(text), 16)
        tokens = torch.cat([patchify(x), references])
        with torch.no_grad():
            out = model(tokens, torch.tensor([t], dtype=torch.float32), text, features, model.layout([shape])).sample
        return unpatchify(out[: T * H * W], T, H, W)

    pixels = 32 * 48 * 9
    s = 1 + 4 * (pixels - 256 * 256 * 37) / (1280 * 720 * 145 - 256 * 256 * 37)
    times = [s * u / (1 + (s - 1) * u) for u in (1.0, 0.75, 0.5, 0.25)] + [0.0]
    x = torch.randn(1, 48, T, 2 * H, 2 * W, generator=seed())[0]
    for t, after in itertools.pairwise(times):
        null = velocity(x, t, texts["n"], torch.zeros_like(refs), torch.zeros_like(clip))
        image = velocity(x, t, texts["n"], refs, clip)
        both = velocity(x, t, texts["p"], refs, clip)
        x = x + (after - t) * (null + 2.5 * (image - null) + 6.0 * (both - image))
    torch.testing.assert_close(found[0], x, rtol=1e-4, atol=1e-4)


class Oracle(torch.nn.Module):
    """Knows the data: its velocity (x_t - x_0) / t leads from any noise to x_0 exactly."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, model, answer):
        super().__init__()
        self.config, self.layout, self.answer = model.config, model.layout, answer

    def forward(self, hidden_states, timestep, layout, **_):
        shape = layout.shapes[0]
        parts = hidden_states.split([shape.visual_tokens] * len(layout.shapes))
        velocities = [(part[: shape.video_tokens] - self.answer) / t for part, t in zip(parts, timestep, strict=True)]
        tail = torch.full((shape.reference_tokens, self.answer.shape[1]), 1e9)
        return type("Output", (), {"sample": torch.cat([x for v in velocities for x in (v, tail)])})


def test_a_model_that_knows_the_answer_is_followed_to_it_from_any_noise(pipe, components, subjects):
    answer = torch.randn(48, 3, 4, 6, generator=seed(9))
    oracle = PhantomPipeline(**components | {"transformer": Oracle(pipe.transformer, patchify(answer))})
    oracle.set_progress_bar_config(disable=True)
    for steps in (1, 7):
        torch.testing.assert_close(generate(oracle, subjects[:1], steps=steps)[0], answer, rtol=0, atol=2e-4)


@pytest.mark.parametrize("count", range(5))
def test_clean_references_stand_at_the_tail_at_every_step_and_zeros_in_the_null_branch(pipe, subjects, count):
    seen = []
    handle = pipe.transformer.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    latents = generate(pipe, subjects[:count])
    handle.remove()
    assert latents.shape == (1, 48, 3, 4, 6) and len(seen) == 3
    clean = patchify(reference_latents(pipe, subjects[:count]).transpose(0, 1)) if count else None
    for call in seen:
        shapes = call["layout"].shapes
        assert len(shapes) == (3 if count else 2) and all(shape.references == count for shape in shapes)
        parts = call["hidden_states"].split([shape.visual_tokens for shape in shapes])
        for i, part in enumerate(parts):
            tail = part[shapes[i].video_tokens :]
            assert len(tail) == count * 6
            if count:
                assert torch.equal(tail, torch.zeros_like(clean) if i == 0 else clean)
        clips = call["image_embeds"].split([count * 16] * len(shapes))
        assert not count or (not clips[0].any() and torch.equal(clips[1], clips[2]) and clips[1].any())


@pytest.mark.parametrize("count", [0, 2])
def test_sequential_branches_give_what_the_batch_gives(pipe, subjects, count):
    batched, sequential = (generate(pipe, subjects[:count], guidance_batching=how) for how in ("batched", "sequential"))
    torch.testing.assert_close(batched, sequential, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "scales", "branches"), [
    (1, (3.0, 7.5), 3), (1, (1.0, 7.5), 2), (1, (4.0, 4.0), 2), (1, (1.0, 1.0), 1),
    (0, (3.0, 7.5), 2), (0, (3.0, 1.0), 1),
])  # fmt: skip
def test_a_branch_without_weight_is_left_out_and_changes_nothing(pipe, subjects, count, scales, branches, monkeypatch):
    calls = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append(len(kwargs["layout"].shapes)), with_kwargs=True
    )
    found = generate(pipe, subjects[:count], image_guidance_scale=scales[0], text_guidance_scale=scales[1])
    handle.remove()
    assert calls == [branches] * 3
    # All three branches, whatever their weights are.
    few = pipe._branches
    monkeypatch.setattr(pipe, "_branches", lambda *args: few(*args[:4], (2.0, 5.0)))
    whole = generate(pipe, subjects[:count], image_guidance_scale=scales[0], text_guidance_scale=scales[1])
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_video_and_another_seed_another(pipe, subjects):
    first, again, other = (generate(pipe, subjects[:1], generator=seed(i)) for i in (5, 5, 6))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=0.1)


def test_several_videos_of_a_prompt_are_those_of_their_generators(pipe, subjects):
    both = generate(pipe, subjects[:1], num_videos_per_prompt=2, generator=[seed(1), seed(2)])
    for i in range(2):
        alone = generate(pipe, subjects[:1], generator=seed(i + 1))
        torch.testing.assert_close(both[i], alone[0], rtol=1e-4, atol=1e-5)
    noise = torch.randn(1, 48, 3, 4, 6, generator=seed(1))
    assert torch.equal(generate(pipe, subjects[:1], generator=seed(1)), generate(pipe, subjects[:1], latents=noise))


@pytest.mark.parametrize("prompt", ["two cats", "a dog runs"])
def test_prompt_and_references_change_the_video(pipe, subjects, prompt):
    base = generate(pipe, subjects[:2])
    assert not torch.allclose(base, generate(pipe, subjects[1:3]), atol=1e-3)
    assert not torch.allclose(base, generate(pipe, subjects[:3]), atol=1e-3)
    other = pipe(prompt, subjects[:2], NEGATIVE, num_inference_steps=3, output_type="latent", generator=seed(), **SIZE)
    assert not torch.allclose(base, other.frames, atol=1e-3)


def test_frames_come_as_pil_arrays_tensors_or_latents(pipe, subjects):
    kinds = {kind: generate(pipe, subjects[:1], output_type=kind) for kind in ("pil", "np", "pt", "latent")}
    assert kinds["np"].shape == (1, 9, 32, 48, 3) and kinds["pt"].shape == (1, 9, 3, 32, 48)
    assert len(kinds["pil"]) == 1 and len(kinds["pil"][0]) == 9 and kinds["pil"][0][0].size == (48, 32)
    assert np.abs(np.stack(kinds["pil"][0]) / 255 - kinds["np"][0]).max() <= 0.5 / 255 + 1e-6
    decoded = pipe._frozen_vae().decode(kinds["latent"])
    assert torch.allclose(kinds["pt"][0], (decoded[0].transpose(0, 1) + 1) / 2, atol=1e-6)
    assert torch.equal(generate(pipe, subjects[:1], return_dict=True), kinds["latent"])
    given = SIZE | {"num_inference_steps": 1, "output_type": "pt", "return_dict": False}
    assert pipe(PROMPT, **given)[0].shape == (1, 9, 3, 32, 48)


def test_references_are_taken_as_pictures_arrays_or_paths(pipe, subjects, tmp_path):
    Image.fromarray(subjects[0]).save(tmp_path / "a.png")
    base = generate(pipe, subjects[:1])
    for image in (Image.fromarray(subjects[0]), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert torch.equal(generate(pipe, [image]), base)
    opaque = np.concatenate([subjects[0], np.full((*subjects[0].shape[:2], 1), 255, np.uint8)], axis=2)
    assert torch.equal(generate(pipe, [Image.fromarray(opaque)]), base)


def test_a_callback_sees_every_step_may_change_the_latents_and_may_stop(pipe, subjects):
    steps = []

    def zero(pipe, step, timestep, tensors):
        steps.append((step, float(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert not generate(pipe, subjects[:1], callback_on_step_end=zero).any()
    assert [step for step, _ in steps] == [0, 1, 2] and steps[0][1] == 1000
    base, stopped = generate(pipe, subjects[:1]), []

    def stop(pipe, step, timestep, tensors):
        stopped.append(step)
        pipe._interrupt = step == 0
        return {}

    generate(pipe, subjects[:1], callback_on_step_end=stop)
    assert stopped == [0]
    assert torch.equal(generate(pipe, subjects[:1]), base), "an interrupt ends with its call"


@pytest.mark.parametrize(("arguments", "message"), [
    ({"height": 40}, "height 40 is not a multiple of 16; the nearest is 32"),
    ({"width": 100}, "width 100 is not a multiple of 16; the nearest is 96"),
    ({"num_frames": 80}, "80 frames is not 4k.1; the nearest counts are 77 and 81"),
    ({"steps": 0}, "num_inference_steps is 0; the least is 1"),
    ({"guidance_batching": "both"}, "guidance_batching='both' is unknown; use one of batched, sequential"),
    ({"output_type": "mp4"}, "output_type='mp4' is unknown; use one of pil, np"),
    ({"num_videos_per_prompt": 2, "generator": [seed()]}, "1 generators were given for 2 videos"),
    ({"latents": torch.zeros(1, 48, 3, 4, 4)}, r"latents have shape .* needs \[1, 48, 3, 4, 6\]"),
    ({"negative_prompt": None}, "negative_prompt is a NoneType"),
])  # fmt: skip
def test_what_cannot_be_generated_is_refused_with_the_nearest_right_value(pipe, subjects, arguments, message):
    with pytest.raises(UserError, match=message):
        generate(pipe, subjects[:1], **arguments)


def test_unusable_references_are_named(pipe, subjects, tmp_path):
    with pytest.raises(UserError, match="5 reference images were given; the model takes at most 4"):
        generate(pipe, [subjects[0]] * 5)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for image, message in (
        (tmp_path / "bad.png", r"reference image 2 \(.*bad.png\) cannot be used: the image cannot be read"),
        (tmp_path / "none.png", r"reference image 2 \(.*none.png\) cannot be used: .*No such file"),
        (np.zeros((4, 4)), r"reference image 2 cannot be used: it is float64 \[4, 4\]"),
        (7, "reference image 2 cannot be used: it is a int"),
    ):
        with pytest.raises(UserError, match=message):
            generate(pipe, [subjects[0], image])


def test_a_long_prompt_is_cut_with_a_warning(components, subjects, caplog):
    pipe = PhantomPipeline(**components, max_text_tokens=6)
    logging.getLogger("diffusers").propagate = True
    with caplog.at_level(logging.WARNING):
        assert len(pipe.encode_prompt("one two three four five six seven eight")) == 6
    assert "the prompt has 10 tokens; it is cut to 6" in caplog.text


def test_encoders_that_an_export_only_names_are_loaded_at_first_use(pipe, components, subjects):
    parts = {name: components[name] for name in ("transformer", "scheduler")}
    named = PhantomPipeline(**parts, conditioning=asdict(ConditioningConfig()))
    named.set_progress_bar_config(disable=True)
    assert torch.equal(generate(named, subjects[:1]), generate(pipe, subjects[:1]))
    with pytest.raises(UserError, match="no vae, text_encoder, tokenizer, image_encoder, and its config does not say"):
        generate(PhantomPipeline(**parts))


def test_bf16_stays_near_float32(pipe, components, subjects):
    model = components["transformer"]
    wide = generate(pipe, subjects[:2])
    half = type(model).from_config(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    low = PhantomPipeline(**components | {"transformer": half})
    low.set_progress_bar_config(disable=True)
    found = generate(low, subjects[:2])
    assert found.dtype == torch.float32
    assert (found - wide).abs().mean() < 0.02 * wide.abs().mean()


def test_a_scheduler_with_a_fixed_shift_works_too(components, subjects):
    fixed = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = PhantomPipeline(**components | {"scheduler": fixed})
    pipe.set_progress_bar_config(disable=True)
    assert generate(pipe, subjects[:1]).isfinite().all()


def test_every_weight_belongs_to_a_module_that_is_called_so_that_layers_can_be_offloaded(pipe, components, subjects):
    """`enable_sequential_cpu_offload` needs a GPU; its hooks do not."""
    expected = generate(pipe, subjects[:2])
    model = type(components["transformer"]).from_config(components["transformer"].config).eval()
    model.load_state_dict(components["transformer"].state_dict())
    accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    parted = PhantomPipeline(**components | {"transformer": model})
    parted.set_progress_bar_config(disable=True)
    assert torch.equal(generate(parted, subjects[:2]), expected)
