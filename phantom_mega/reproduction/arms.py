"""What is trained and what is asked of it: arms are trainings, conditions are ways of sampling one of them."""

from __future__ import annotations

from dataclasses import dataclass

SINGLE, PAIR = "single", "pair"


@dataclass(frozen=True)
class Arm:
    """A training that differs from the recipe in one thing.

    Attributes:
        name: of its folder.
        title: in tables.
        overrides: of the recipe `toy`.
        world: `single` (one actor, 32x32) or `pair` (two actors side by side, 32x64).
        vae, clip: whether the model ever sees references by that encoder; what it never saw stays zero in sampling.
    """

    name: str
    title: str
    overrides: tuple[str, ...] = ()
    world: str = SINGLE
    vae: bool = True
    clip: bool = True


BASE = Arm("base", "VAE and CLIP, cross pairs, displace, shifted windows")
ARMS = {
    arm.name: arm
    for arm in (
        BASE,
        Arm("no_clip", "without CLIP", ("flow.clip_reference_dropout=1.0",), clip=False),
        Arm("no_vae", "without VAE", ("flow.vae_reference_dropout=1.0",), vae=False),
        Arm("in_pair", "in pairs (references cut from the clip)", ("data.pair_kinds=[in]",)),
        Arm("vae_dropout_0", "VAE dropout 0", ("flow.vae_reference_dropout=0.0",)),
        Arm("vae_dropout_07", "VAE dropout 0.7", ("flow.vae_reference_dropout=0.7",)),
        Arm("append", "append", ("model.reference_injection=append",)),
        Arm("full_attention", "full attention", ("model.window_frames=0",)),
        Arm("no_shift", "windows never shifted", ("model.window_shift=none",)),
        Arm("pair", "two subjects", (), world=PAIR),
    )
}


@dataclass(frozen=True)
class Condition:
    """A way of making videos of held-out cases, measured as a row of a table.

    Attributes:
        name: of its results.
        title: in tables.
        arm: whose weights.
        style: of the prompts: `plain` or `distinct` name appearance, `vague` names none.
        references: `own`, `shuffled` (another case's), or `pasted` (no model: the reference itself as a still video).
        trained: False samples the arm's model before training.
        image_scale, text_scale: guidance w_I and w_TI. The paper's are 3 and 7.5; at 7.5 the toy world's linear latents
            leave the range of colours, so 3 and 3 is usual here.
    """

    name: str
    title: str
    arm: str = "base"
    style: str = "plain"
    references: str = "own"
    trained: bool = True
    image_scale: float = 3.0
    text_scale: float = 3.0
