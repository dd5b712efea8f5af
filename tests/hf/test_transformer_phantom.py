"""The plain model: packs, conditioning, saving, memory."""

import pytest
import torch

from phantom_mega.errors import UserError
from phantom_mega.geometry import SampleShape
from phantom_mega.hf import PhantomTransformer3DModel

SHAPES = [
    SampleShape(frames=12, height=2, width=3, references=2, text_tokens=4, clip_tokens=3),
    SampleShape(frames=1, height=3, width=2, references=0, text_tokens=2, clip_tokens=3),
    SampleShape(frames=5, height=2, width=2, references=4, text_tokens=3, clip_tokens=3),
]
SMALL = dict(
    num_layers=3, hidden_size=32, num_attention_heads=2, ffn_hidden_size=64, text_dim=8, clip_dim=6, latent_channels=4,
    rope_axes_dim=[4, 6, 6],
)  # fmt: skip


def small_model(**overrides):
    torch.manual_seed(0)
    model = PhantomTransformer3DModel(**{**SMALL, **overrides}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def features(shapes, seed=0):
    """Per-sample inputs: visual tokens, timestep, caption and CLIP features."""
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *size: torch.randn(*size, dtype=torch.float64, generator=generator)  # noqa: E731
    return [
        (rand(s.visual_tokens, 16), torch.rand(1, generator=generator), rand(s.text_tokens, 8),
         rand(s.references * s.clip_tokens, 6))
        for s in shapes
    ]  # fmt: skip


def run(model, shapes, samples, **lengths):
    layout = model.layout(shapes, **lengths)
    visual, timestep, text, clip = (torch.cat(parts) for parts in zip(*samples))
    visual = torch.cat([visual, visual.new_ones(layout.seq_length - len(visual), 16)])
    return model(visual, timestep, text, clip, layout).sample


def video_outputs(out, shapes):
    start, parts = 0, []
    for shape in shapes:
        parts.append(out[start : start + shape.video_tokens])
        start += shape.visual_tokens
    return parts


def test_a_sample_does_not_depend_on_what_it_is_packed_with_nor_on_padding():
    model, samples = small_model(), features(SHAPES)
    packed = video_outputs(run(model, SHAPES, samples, seq_length=160, text_seq_length=40), SHAPES)
    for shape, sample, together in zip(SHAPES, samples, packed):
        alone = video_outputs(run(model, [shape], [sample]), [shape])[0]
        torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("part", [1, 2, 3], ids=["timestep", "text", "clip"])
def test_every_condition_reaches_the_video(part):
    model, samples = small_model(), features(SHAPES[:1])
    before = run(model, SHAPES[:1], samples)
    changed = list(samples[0])
    changed[part] = changed[part] + 0.5
    assert (run(model, SHAPES[:1], [tuple(changed)]) - before).abs().max() > 1e-4


def test_reference_latents_reach_every_video_frame():
    model, samples = small_model(num_layers=1), features(SHAPES[:1])
    before = run(model, SHAPES[:1], samples)
    changed = samples[0][0].clone()
    changed[SHAPES[0].video_tokens :] += 0.5
    difference = run(model, SHAPES[:1], [(changed, *samples[0][1:])]) - before
    per_frame = difference[: SHAPES[0].video_tokens].view(12, -1).abs().amax(1)
    assert (per_frame > 1e-5).all()


def test_windows_confine_video_frames_in_one_layer_and_shifted_layers_join_them():
    shape = SampleShape(frames=12, height=1, width=2, text_tokens=1)
    (sample,) = features([shape])
    changed = (sample[0].clone(), *sample[1:])
    changed[0][0] += 1.0

    def reached(**overrides):
        model = small_model(window_frames=4, **overrides)
        difference = run(model, [shape], [changed]) - run(model, [shape], [sample])
        return (difference.view(12, -1).abs().amax(1) > 1e-9).tolist()

    assert reached(num_layers=1) == [True] * 4 + [False] * 8
    # frames 0-3 meet 4-5 in the shifted layer; the text token carries the rest on from layer to layer
    assert reached(num_layers=2)[4:6] == [True, True]


def test_every_parameter_takes_part_even_without_references():
    model = small_model()
    shapes = [SampleShape(frames=3, height=2, width=2, text_tokens=2)]
    run(model, shapes, features(shapes)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_gradient_checkpointing_changes_no_gradient():
    grads = []
    for checkpointing in (False, True):
        model = small_model()
        if checkpointing:
            model.enable_gradient_checkpointing()
        run(model, SHAPES, features(SHAPES)).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_save_and_load_restore_config_and_weights_to_the_bit(tmp_path):
    model = small_model(reference_injection="append", window_frames=6)
    model.save_pretrained(tmp_path)
    loaded = PhantomTransformer3DModel.from_pretrained(tmp_path, dtype=torch.float64)
    assert dict(loaded.config)["window_frames"] == 6
    samples = features(SHAPES)
    torch.testing.assert_close(run(model, SHAPES, samples), run(loaded, SHAPES, samples), rtol=1e-12, atol=1e-12)
    for (name, saved), read in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(saved, read), name


def test_sizes_that_cannot_form_heads_are_refused():
    with pytest.raises(UserError, match="hidden_size 32 is not a multiple of num_attention_heads 3"):
        PhantomTransformer3DModel(**{**SMALL, "num_attention_heads": 3})
    with pytest.raises(UserError, match="sum to the head dim 16"):
        PhantomTransformer3DModel(**{**SMALL, "rope_axes_dim": [4, 4, 4]})


def test_the_plain_model_imports_without_megatron():
    import subprocess
    import sys

    code = "import sys, phantom_mega.hf; sys.exit(any(m.split('.')[0] == 'megatron' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
