"""SeedVR's NaDiT (ByteDance-Seed/SeedVR, Apache-2.0), and SeedVR2's, which has the same tensors.

Both releases have two kinds. `seedvr_7b` (models/dit): MLPs with GELU, separate weights for both streams. `seedvr_3b`
(models/dit_v2): SwiGLU, one set of weights for both streams from block 10 on, a normalized and modulated output.
Names: `blocks.I.PART.STREAM.LEAF` with STREAM `vid` or `txt`, or `all` where both streams share it.

C: width, N: heads, D: head dim, H: width of the timestep embedding (C here).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from phantom_mega.config import RunConfig
from phantom_mega.errors import UserError
from phantom_mega.geometry import PATCH
from phantom_mega.hf.naming import fuse_qkv
from phantom_mega.hf.transformer_phantom import timestep_features
from phantom_mega.release.base_models.common import (
    BaseModel,
    Options,
    Source,
    embed,
    plan_inputs,
    typical_timesteps,
)  # fmt: skip
from phantom_mega.release.base_models.plan import Plan, Planner, Read
from phantom_mega.release.base_models.weights import Weights, open_weights

_STREAMS = {"visual": "vid", "text": "txt"}
_PATCH = PATCH[1] * PATCH[2]
_ROWS = ("attn_shift", "attn_scale", "attn_gate", "mlp_shift", "mlp_scale", "mlp_gate")
_SCALES = (1, 4)
_SWIGLU = "SwiGLU has three matrices and no biases, the MLP here has two and GELU"
_LAST_TEXT = "nothing reads the text stream after the last block's attention"


@dataclass(frozen=True)
class Shape:
    """Sizes of a NaDiT, read from its tensors.

    Attributes:
        width, layers, heads, head_dim: of the blocks.
        in_channels, out_channels: of a latent frame at the input (with the conditions) and at the output.
        text_dim: width of the text features.
        ffn: inner width of the MLPs.
        swiglu: whether those are SwiGLU.
        output_norm: whether the output is normalized and modulated.
    """

    width: int
    layers: int
    heads: int
    head_dim: int
    in_channels: int
    out_channels: int
    text_dim: int
    ffn: int
    swiglu: bool
    output_norm: bool


def name_of(weights: Weights, block: int, part: str, stream: str, leaf: str) -> str:
    """Name of a tensor of a block for one stream (`visual` or `text`), shared or not."""
    shared = f"blocks.{block}.{part}.all.{leaf}"
    return shared if shared in weights.shapes else f"blocks.{block}.{part}.{_STREAMS[stream]}.{leaf}"


def read_shape(weights: Weights) -> Shape:
    """Sizes of a NaDiT.

    Raises:
        UserError: a tensor that every NaDiT has is missing, or sizes contradict each other.
    """
    numbers = {name.split(".")[1] for name in weights.shapes if name.startswith("blocks.")}
    layers = len(numbers)
    if numbers != {str(i) for i in range(layers)}:
        raise UserError(f"{weights.path} has {layers} blocks, but they are not numbered 0 to {layers - 1}")

    def sizes(name: str, ndim: int = 2) -> tuple[int, ...]:
        shape = weights.shape(name)
        if len(shape) != ndim or 0 in shape:
            raise UserError(f"{weights.path}: {name} has the shape {list(shape)}, not {ndim} sizes above 0")
        return shape

    width, patch_in = sizes("vid_in.proj.weight")
    inner = sizes(name_of(weights, 0, "attn.proj_qkv", "visual", "weight"))[0] // 3
    head_dim = sizes(name_of(weights, 0, "attn.norm_q", "visual", "weight"), 1)[0]
    swiglu = name_of(weights, 0, "mlp", "visual", "proj_in_gate.weight") in weights.shapes
    embedded, hidden = sizes("emb_in.proj_out.weight")
    if (inner, embedded, hidden) != (width, 6 * width, width):
        raise UserError(
            f"{weights.path}: attention of {inner}, modulation of {embedded} and a timestep embedding of {hidden} do "
            f"not fit the width {width} (they must be {width}, {6 * width} and {width})"
        )
    return Shape(
        width, layers, inner // head_dim, head_dim, patch_in // _PATCH, sizes("vid_out.proj.weight")[0] // _PATCH,
        sizes("txt_in.weight")[1], sizes(name_of(weights, 0, "mlp", "visual", "proj_in.weight"))[0], swiglu,
        "vid_out_norm.weight" in weights.shapes,
    )  # fmt: skip


# -- rotary channels


def rotated_pairs(shape: Shape) -> int:
    """Channel pairs that rotate for each axis: of a third of the head (3B), or of a third of half of it (7B)."""
    return (shape.head_dim if shape.output_norm else shape.head_dim // 2) // 3 // 2


def axes_dim(shape: Shape) -> list[int]:
    """`rope_axes_dim` with room for the source's axes; channels that the source does not rotate join one of them."""
    pairs = rotated_pairs(shape)
    rest = shape.head_dim // 2 - 3 * pairs
    return [2 * (pairs + rest // 3 + (axis < rest % 3)) for axis in range(3)]


def channel_order(shape: Shape) -> torch.Tensor:
    """Source channel of every channel of a head here, int64 [D].

    Both rotate neighbouring channels, time first. Channels that the source leaves alone get the slowest rotations of
    each axis. The 7B kind counts frequencies upwards, so its pairs are taken in reverse.
    """
    pairs, order = rotated_pairs(shape), []
    free = 3 * pairs
    for axis, size in enumerate(axes_dim(shape)):
        own = range(axis * pairs, (axis + 1) * pairs)
        order += own if shape.output_norm else reversed(own)
        order += range(free, free + size // 2 - pairs)
        free += size // 2 - pairs
    return torch.tensor([channel for pair in order for channel in (2 * pair, 2 * pair + 1)])


# -- tensors


def modulation_rows(tensor: torch.Tensor, swiglu: bool) -> torch.Tensor:
    """Rows of `emb_in.proj_out`, [C, attention or MLP, shift scale gate], as here, [6, C]; those of a new MLP are 0."""
    rows = tensor.unflatten(0, (-1, 2, 3)).movedim(0, 2).flatten(0, 1).clone()
    if swiglu:
        rows[3:] = 0
    return rows.flatten(0, 1)


def patch_columns(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Columns of `vid_in.proj`, [height, width, all channels], as here, [latent channels, height, width]."""
    return weight.unflatten(1, (_PATCH, -1))[:, :, :channels].transpose(1, 2).flatten(1)


def patch_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of `vid_out.proj`, [height, width, channels], as here, [channels, height, width]."""
    return tensor.unflatten(0, (_PATCH, -1)).transpose(0, 1).flatten(0, 1)


def fused_qkv(tensor: torch.Tensor, heads: int, order: torch.Tensor) -> torch.Tensor:
    """Rows of `proj_qkv`, [q k v, heads, D], as here, [heads, q k v, D]; channels of q and k in rotary order."""
    parts = list(tensor.unflatten(0, (3, heads, -1)).unbind(0))
    parts[:2] = (part[:, order] for part in parts[:2])
    return fuse_qkv([part.flatten(0, 1) for part in parts], heads)


def offset_rows(read: Read, names: list[str], count: int) -> torch.Tensor:
    """`ada` vectors as `count` rows here, those without a name 0: a scale there multiplies, here it is added to one."""
    stacked = [read(name) - 1 if i in _SCALES else read(name) for i, name in enumerate(names)]
    return torch.stack([*stacked, *(torch.zeros_like(stacked[0]) for _ in range(count - len(names)))])


# -- the plan


class _NaDiT:
    """Makes the rules for one source."""

    def __init__(self, title: str, source: Source, run: RunConfig, options: Options):
        self.weights, self.shape, self.model = source.weights, read_shape(source.weights), run.model
        self.planner = Planner(title, source.weights, run.model, run.train.seed, options.fresh)
        self.order = channel_order(self.shape)
        self.timesteps = typical_timesteps(run.flow)

    def embedders(self) -> None:
        shape, model, rule = self.shape, self.model, self.planner.rule
        fits = shape.out_channels == model.latent_channels and shape.in_channels >= shape.out_channels
        why = f"latent frames here have {model.latent_channels} channels, the source's {shape.out_channels}"
        if fits:
            how = "columns of the latent channels, patches by channel"
            pick: Callable = lambda read: patch_columns(read("vid_in.proj.weight"), model.latent_channels)  # noqa: E731
            rule("visual_embedder.weight", ["vid_in.proj.weight"], how, pick)
            self.planner.copy("visual_embedder.bias", "vid_in.proj.bias")
            for part in ("weight", "bias"):
                name = f"vid_out.proj.{part}"
                rule(f"final_proj.{part}", [name], "patches by channel", lambda read, n=name: patch_rows(read(n)))
        else:
            for name in ("visual_embedder", "final_proj"):
                self.planner.new(f"{name}.weight", why)
                self.planner.new(f"{name}.bias", why)
        plan_inputs(self.planner, model, ("txt_in", shape.text_dim), "the source has no CLIP features")

    def timestep(self) -> None:
        """`emb_in` is the timestep embedder and the shared modulation of both streams."""
        rule, swiglu = self.planner.rule, self.shape.swiglu
        name, how = "emb_in.proj_in.weight", "columns of cosines before those of sines"
        rule("timestep_embedder.0.weight", [name], how, lambda read: read(name).roll(read(name).shape[1] // 2, dims=1))
        self.planner.copy("timestep_embedder.0.bias", "emb_in.proj_in.bias")
        for part in ("weight", "bias"):
            self.planner.copy(f"timestep_embedder.2.{part}", f"emb_in.proj_hid.{part}")
            shared = f"emb_in.proj_out.{part}"
            how = "rows as shift, scale, gate of attention, then of the MLP" + (", the MLP's zero" if swiglu else "")
            for stream in _STREAMS:
                build: Callable = lambda read, n=shared: modulation_rows(read(n), swiglu)  # noqa: E731
                rule(f"{stream}_modulation.{part}", [shared], how, build)

    def output(self) -> None:
        """The output's modulation: with its norm, the attention rows of the shared one and two vectors of its own."""
        if not self.shape.output_norm:
            for part in ("weight", "bias"):
                self.planner.zero(f"final_modulation.{part}", "the source does not modulate its output")
            return
        norm, shift, scale = "vid_out_norm.weight", "vid_out_ada.out_shift", "vid_out_ada.out_scale"

        def weight(read: Read) -> torch.Tensor:
            rows = modulation_rows(read("emb_in.proj_out.weight"), False).unflatten(0, (6, -1))
            return torch.cat([rows[0], read(norm)[:, None] * rows[1]])

        def bias(read: Read) -> torch.Tensor:
            rows = modulation_rows(read("emb_in.proj_out.bias"), False).unflatten(0, (6, -1))
            return torch.cat([rows[0] + read(shift), read(norm) * (rows[1] + read(scale)) - 1])

        how = "shift and scale of attention, with the output's own and its norm's weight"
        self.planner.rule("final_modulation.weight", ["emb_in.proj_out.weight", norm], how, weight)
        self.planner.rule("final_modulation.bias", ["emb_in.proj_out.bias", norm, shift, scale], how, bias)

    def block(self, i: int, stream: str) -> None:
        """One stream's half of a block."""
        here, rule, shape = f"blocks.{i}.{stream}", self.planner.rule, self.shape
        last_text = stream == "text" and i == shape.layers - 1

        def name(part: str, leaf: str) -> str:
            return name_of(self.weights, i, part, stream, leaf)

        self.offset(i, stream, last_text)
        for part in ("weight", "bias"):
            qkv = name("attn.proj_qkv", part)
            if part == "bias" and qkv not in self.weights.shapes:
                self.planner.zero(f"{here}.linear_qkv.bias", "the source has none, which is the same")
                continue
            how = "rows by head, channels of q and k in rotary order"
            build: Callable = lambda read, n=qkv: fused_qkv(read(n), shape.heads, self.order)  # noqa: E731
            rule(f"{here}.linear_qkv.{part}", [qkv], how, build)
        for which in "qk":
            norm = name(f"attn.norm_{which}", "weight")
            how = "channels in rotary order"
            rule(f"{here}.{which}_layernorm.weight", [norm], how, lambda read, n=norm: read(n)[self.order])
        if last_text:
            return
        for part in ("weight", "bias"):
            self.planner.copy(f"{here}.linear_proj.{part}", name("attn.proj_out", part))
            for fc, leaf in (("fc1", "proj_in"), ("fc2", "proj_out")):
                target = f"{here}.mlp.linear_{fc}.{part}"
                if shape.swiglu:
                    self.planner.new(target, f"{_SWIGLU}; silent until its gate is trained")
                else:
                    self.planner.copy(target, name("mlp", f"{leaf}.{part}"))

    def offset(self, i: int, stream: str, last_text: bool) -> None:
        target, swiglu = f"blocks.{i}.{stream}.modulation.offset", self.shape.swiglu
        if last_text and self.shape.output_norm:
            names = [f"emb_in.proj_{p}.{leaf}" for p in ("in", "hid", "out") for leaf in ("weight", "bias")]
            how = "minus the mean of the shared modulation over typical timesteps"
            self.planner.rule(target, names, how, lambda read: -self.shared_text(read).mean(0))
            return
        count = 2 if last_text else 6
        names = [name_of(self.weights, i, "ada", stream, row) for row in _ROWS[: min(count, 3 if swiglu else 6)]]
        how = "stacked, scales less one" + (", rows of the MLP zero" if len(names) < count else "")
        self.planner.rule(target, names, how, lambda read: offset_rows(read, names, count))

    def shared_text(self, read: Read) -> torch.Tensor:
        """Shift and scale of attention from the shared modulation [K, 2, C] at typical timesteps."""
        cosines_last = read("emb_in.proj_in.weight")
        features = timestep_features(self.timesteps, cosines_last.shape[1]).roll(cosines_last.shape[1] // 2, dims=1)
        layers = [(read(f"emb_in.proj_{p}.weight"), read(f"emb_in.proj_{p}.bias")) for p in ("in", "hid", "out")]
        emb = F.silu(embed(features, *layers[:2]))
        weight, bias = (
            modulation_rows(x, False).to(emb.dtype).unflatten(0, (6, -1))[:2].flatten(0, 1) for x in layers[2]
        )
        return F.linear(emb, weight, bias).unflatten(1, (2, -1))

    def measured(self, read: Read) -> list[str]:
        """How far the last block's text modulation, which the source does not have, strays from none."""
        if not self.shape.output_norm:
            return []
        rows = self.shared_text(read)
        stray = (rows - rows.mean(0)).square().mean((0, 2)).sqrt().tolist()
        return [f"the last block's text is shifted by {stray[0]:.3g} and scaled by 1 +- {stray[1]:.3g} (rms over t)"]


def _notes(shape: Shape) -> list[str]:
    notes = [
        "norms of attention, MLP and output: root-mean-square there, layer norm here (the same for tokens of mean 0)",
        "latent frames are those of SeedVR's own VAE and text features those of its encoder; with others the embedders "
        "(visual_embedder, final_proj, text_embedder) start from weights that do not know them",
        "windows: 4 x 3 x 3 a clip there; here as model.window_* say (window_height=3 window_width=3 count as there)",
    ]
    if shape.output_norm:
        notes += [
            "RoPE: height and width as there; time has 44 channels, not 42 (the two that rest there get its slowest "
            "rotation), and its slow channels rotate up to 1.5 times as fast",
            "RoPE of text: there text tokens rotate and video positions begin after them; here text does not rotate",
            "text of the last block: there not modulated; here the shared modulation less its mean",
        ]
    else:
        notes += [
            "RoPE: there 10 frequencies of an axis scaled to [-1, 1] over the window, 68 of 128 channels at rest; here "
            "theta 10000 over positions, all channels (those at rest get the slowest rotations)",
            "output: there the last linear reads the stream as it is, here it is normalized first",
        ]
    if shape.swiglu:
        notes.append(f"MLP: {_SWIGLU}; the new ones add nothing until trained")
    return notes


def _unused(shape: Shape) -> list[tuple[str, str]]:
    last = f"blocks.{shape.layers - 1}"
    text_of_last = [(f"{last}.{part}", _LAST_TEXT) for part in ("attn.proj_out.txt.*", "mlp.txt.*", "ada.txt.*")]
    rules = [("blocks.*.attn.rope.rope.freqs", "frequencies are computed here"), *text_of_last]
    if shape.swiglu:
        rules += [("blocks.*.mlp.*.proj_*.weight", _SWIGLU), ("blocks.*.ada.*.mlp_*", "it modulates the SwiGLU")]
    rules += [(f"txt_in.{part}", "the text features here have another width") for part in ("weight", "bias")]
    for name in ("vid_in.proj", "vid_out.proj"):
        rules += [(f"{name}.*", "the latent frames here have other channels")]
    # In repacked files.
    return [*rules, ("*tive_conditioning", "features of two prompts, which the network does not read")]


def _open(path: Path) -> Source:
    return Source(open_weights(path), {})


def _make(title: str, recipe: str, output_norm: bool, other: str) -> BaseModel:
    def shape_of(source: Source) -> Shape:
        shape = read_shape(source.weights)
        if shape.output_norm != output_norm:
            found = "a normalized output (vid_out_norm)" if shape.output_norm else "no vid_out_norm"
            raise UserError(f"{source.weights.path} has {found}: it is of the other kind; use --from {other}")
        return shape

    def fields(source: Source) -> dict:
        shape = shape_of(source)
        found = {
            "num_layers": shape.layers, "hidden_size": shape.width, "num_attention_heads": shape.heads,
            "timestep_dim": source.weights.shape("emb_in.proj_in.weight")[1], "rope_axes_dim": axes_dim(shape),
            "rope_theta": 10000.0, "norm_epsilon": 1e-5,
        }  # fmt: skip
        return found if shape.swiglu else found | {"ffn_hidden_size": shape.ffn}

    def plan(source: Source, run: RunConfig, options: Options) -> Plan:
        if options.guidance_scale is not None:
            raise UserError(f"--guidance-scale: {title} has no embedded guidance; leave it out")
        shape, nadit = shape_of(source), _NaDiT(title, source, run, options)
        nadit.embedders()
        nadit.timestep()
        nadit.output()
        for i in range(shape.layers):
            for stream in _STREAMS:
                nadit.block(i, stream)
        plan = nadit.planner.finish(_unused(shape))
        if shape.in_channels > shape.out_channels and "vid_in.proj.weight" not in plan.unused:
            extra = shape.in_channels - shape.out_channels
            plan.partly["vid_in.proj.weight"] = f"columns of {extra} condition channels, which are zero without them"
        if shape.swiglu:
            plan.partly["emb_in.proj_out.weight"] = plan.partly["emb_in.proj_out.bias"] = "rows of the MLP's modulation"
        plan.notes, plan.measure = _notes(shape), nadit.measured
        return plan

    return BaseModel(title, recipe, _open, fields, plan)


SEEDVR_3B = _make("SeedVR 3B (NaDiT, models/dit_v2)", "model/seedvr_3b", True, "seedvr_7b")
SEEDVR_7B = _make("SeedVR 7B (NaDiT, models/dit)", "model/seedvr_7b", False, "seedvr_3b")
