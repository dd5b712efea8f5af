"""HunyuanVideo's dual-stream blocks, from diffusers' `HunyuanVideoTransformer3DModel` (text to video).

The blocks are ours but for the modulation: there each block has a linear over the timestep embedding, here all share
one and each has an offset. `Modulation` finds the nearest of the second kind to the first.

C: width, K: typical timesteps, s(t): SiLU of the timestep embedding.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import torch.nn.functional as F

from phantom_mega.config import RunConfig
from phantom_mega.errors import UserError
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
from phantom_mega.release.base_models.weights import open_weights, read_json

CLASS = "HunyuanVideoTransformer3DModel"
TITLE = "HunyuanVideo (dual-stream blocks)"
GUIDANCE_SCALE = 6.0
_NORM = {"visual": "norm1", "text": "norm1_context"}
_QKV = {"visual": ("to_q", "to_k", "to_v"), "text": ("add_q_proj", "add_k_proj", "add_v_proj")}
_OUT = {"visual": "to_out.0", "text": "to_add_out"}
_QK_NORM = {"visual": "norm_", "text": "norm_added_"}
_FF = {"visual": "ff", "text": "ff_context"}
_TIME = "time_text_embed.timestep_embedder"
_GUIDANCE = "time_text_embed.guidance_embedder"
_POOLED = "time_text_embed.text_embedder"


def _pair(name: str) -> tuple[str, str]:
    return f"{name}.weight", f"{name}.bias"


def _embedder(read: Read, name: str, features: torch.Tensor) -> torch.Tensor:
    layers = [tuple(read(part) for part in _pair(f"{name}.linear_{i}")) for i in (1, 2)]
    return embed(features, *layers)


class TimeEmbedding:
    """The timestep embedding, with what is constant here (guidance, pooled text) in its last bias.

    Args:
        source: the base model.
        guidance_scale: at which its embedded guidance is fixed; None where it has none.
    """

    def __init__(self, source: Source, guidance_scale: float | None):
        self.guidance_scale = guidance_scale
        self.pooled_dim = source.weights.shape(f"{_POOLED}.linear_1.weight")[1]
        self.sources = [f"{_TIME}.linear_2.bias", *self._names(_POOLED)]
        if guidance_scale is not None:
            self.sources += self._names(_GUIDANCE)

    @staticmethod
    def _names(embedder: str) -> list[str]:
        return [part for i in (1, 2) for part in _pair(f"{embedder}.linear_{i}")]

    def bias(self, read: Read) -> torch.Tensor:
        """Last bias [C]: its own, the embedding of no pooled text (zeros), that of the guidance."""
        bias = read(f"{_TIME}.linear_2.bias")
        bias = bias.to(torch.promote_types(bias.dtype, torch.float32))
        bias = bias + _embedder(read, _POOLED, torch.zeros(1, self.pooled_dim))[0]
        if self.guidance_scale is not None:
            dim = read(f"{_GUIDANCE}.linear_1.weight").shape[1]
            bias = bias + _embedder(read, _GUIDANCE, timestep_features(torch.tensor([self.guidance_scale]), dim))[0]
        return bias

    def activated(self, read: Read, timesteps: torch.Tensor) -> torch.Tensor:
        """s(t), [K, C]."""
        first = tuple(read(part) for part in _pair(f"{_TIME}.linear_1"))
        features = timestep_features(timesteps, first[0].shape[1])
        return F.silu(embed(features, first, (read(f"{_TIME}.linear_2.weight"), self.bias(read))))


class Modulation:
    """One stream's modulations f_i(t) = W_i s(t) + b_i as one shared linear and an offset for each block.

    The least squares over blocks and typical timesteps: the shared linear is the mean of all blocks' (exact where they
    are equal up to their biases), the offset of block i the mean over t of f_i less that of the shared one.

    Args:
        names: linears of the blocks, in order.
        last_rows: parts of the last block's modulation that there is a place for (of 6).
        time: gives s(t).
        timesteps: [K].
    """

    def __init__(self, names: list[str], last_rows: int, time: TimeEmbedding, timesteps: torch.Tensor):
        self.names, self.last_rows, self.time, self.timesteps = names, last_rows, time, timesteps
        self._known: dict | None = None

    def _blocks(self, read: Read):
        """(weight [6, C, C], bias [6, C], rows) of every block, one at a time."""
        for i, name in enumerate(self.names):
            weight, bias = (read(part).unflatten(0, (6, -1)) for part in _pair(name))
            wide = torch.promote_types(weight.dtype, torch.float32)
            yield weight.to(wide), bias.to(wide), self.last_rows if i == len(self.names) - 1 else 6

    def shared(self, read: Read, part: int) -> torch.Tensor:
        """Shared weight [6C, C] (part 0) or bias [6C] (part 1)."""
        total, counts = None, torch.zeros(6)
        for block in self._blocks(read):
            rows = block[2]
            total = torch.zeros_like(block[part]) if total is None else total
            total[:rows] += block[part][:rows]
            counts[:rows] += 1
        return (total / counts.clamp(min=1).view(-1, *[1] * (total.ndim - 1)).to(total.dtype)).flatten(0, 1)

    def values(self, read: Read) -> dict:
        """Offsets [6, C] of every block, and how much of the modulation they and the shared linear miss; read once."""
        if self._known is None:
            s = self.time.activated(read, self.timesteps)
            found = torch.stack([torch.einsum("kc,rdc->krd", s.to(w), w) + b for w, b, _ in self._blocks(read)])
            used = torch.ones(len(found), 1, 6, 1, dtype=found.dtype)
            used[-1, :, self.last_rows :] = 0
            shared = (found * used).sum(0) / used.sum(0).clamp(min=1)
            offsets = (found - shared).mean(1)
            missed = ((found - shared - offsets[:, None]) * used).square().sum((1, 2, 3))
            varying = ((found - found.mean(1, keepdim=True)) * used).square().sum((1, 2, 3))
            size = (found * used).square().sum((1, 2, 3))
            self._known = {"offsets": offsets, "missed": missed, "varying": varying, "size": size}
        return self._known

    def measured(self, read: Read) -> str:
        """What is missed, as root mean squares relative to the modulation and to its change over t."""
        known = self.values(read)
        of_size = (known["missed"].sum() / known["size"].sum().clamp(min=1e-30)).sqrt()
        of_change = (known["missed"].sum() / known["varying"].sum().clamp(min=1e-30)).sqrt()
        worst = (known["missed"] / known["size"].clamp(min=1e-30)).sqrt().max()
        return f"{of_size:.2%} of it is missed (worst block {worst:.2%}), {of_change:.2%} of its change over t"


class _Hunyuan:
    """Makes the rules for one source."""

    def __init__(self, source: Source, run: RunConfig, options: Options):
        self.weights, self.model = source.weights, run.model
        self.planner = Planner(TITLE, source.weights, run.model, run.train.seed, options.fresh)
        guided = f"{_GUIDANCE}.linear_1.weight" in source.weights.shapes
        if options.guidance_scale is not None and not guided:
            raise UserError("--guidance-scale: this source has no embedded guidance; leave it out")
        self.scale = (GUIDANCE_SCALE if options.guidance_scale is None else options.guidance_scale) if guided else None
        self.time = TimeEmbedding(source, self.scale)
        timesteps, layers = typical_timesteps(run.flow), range(run.model.num_layers)
        self.modulations = {
            stream: Modulation([f"transformer_blocks.{i}.{norm}.linear" for i in layers], rows, self.time, timesteps)
            for (stream, norm), rows in zip(_NORM.items(), (6, 2))
        }

    def ends(self) -> None:
        """Everything before and after the blocks."""
        rule, copy, model = self.planner.rule, self.planner.copy, self.model
        patches = self.weights.shape("x_embedder.proj.weight")
        if patches[1] == model.latent_channels:
            kernel = "x_embedder.proj.weight"
            rule("visual_embedder.weight", [kernel], "kernel as columns", lambda read: read(kernel).flatten(1))
            for part in ("weight", "bias"):
                copy(f"final_proj.{part}", f"proj_out.{part}")
            copy("visual_embedder.bias", "x_embedder.proj.bias")
        else:
            why = f"latent frames here have {model.latent_channels} channels, the source's {patches[1]}"
            for name in ("visual_embedder", "final_proj"):
                self.planner.new(f"{name}.weight", why)
                self.planner.new(f"{name}.bias", why)
        width = self.weights.shape("context_embedder.proj_in.weight")[1]
        plan_inputs(self.planner, model, ("context_embedder.proj_in", width), "the source has no CLIP features")
        copy("timestep_embedder.0.weight", f"{_TIME}.linear_1.weight")
        copy("timestep_embedder.0.bias", f"{_TIME}.linear_1.bias")
        copy("timestep_embedder.2.weight", f"{_TIME}.linear_2.weight")
        how = "with the embedding of empty pooled text"
        how += "" if self.scale is None else f" and of guidance {self.scale:g}"
        rule("timestep_embedder.2.bias", self.time.sources, how, self.time.bias)
        for stream, modulation in self.modulations.items():
            for i, part in enumerate(("weight", "bias")):
                names = [_pair(name)[i] for name in modulation.names]
                build = functools.partial(modulation.shared, part=i)
                rule(f"{stream}_modulation.{part}", names, "mean over blocks", build)
        for part in ("weight", "bias"):
            name = f"norm_out.linear.{part}"
            swap = lambda read, n=name: torch.cat(read(n).chunk(2)[::-1])  # noqa: E731
            rule(f"final_modulation.{part}", [name], "rows of the shift before those of the scale", swap)

    def block(self, i: int, stream: str) -> None:
        """One stream's half of a block."""
        here, there, rule = f"blocks.{i}.{stream}", f"transformer_blocks.{i}", self.planner.rule
        modulation, last_text = self.modulations[stream], stream == "text" and i == self.model.num_layers - 1
        rows = 2 if last_text else 6
        # The offset also needs every other block's modulation, and the time embedding; the block's own names it.
        how = "mean over typical timesteps, less that of the shared modulation"
        own = _pair(modulation.names[i])
        rule(f"{here}.modulation.offset", own, how, lambda read: modulation.values(read)["offsets"][i][:rows])
        for part in ("weight", "bias"):
            names = [f"{there}.attn.{name}.{part}" for name in _QKV[stream]]
            fuse = lambda read, names=names: fuse_qkv(map(read, names), self.model.num_attention_heads)  # noqa: E731
            rule(f"{here}.linear_qkv.{part}", names, "rows by head", fuse)
        for which in "qk":
            self.planner.copy(f"{here}.{which}_layernorm.weight", f"{there}.attn.{_QK_NORM[stream]}{which}.weight")
        if last_text:
            return
        for part in ("weight", "bias"):
            self.planner.copy(f"{here}.linear_proj.{part}", f"{there}.attn.{_OUT[stream]}.{part}")
            self.planner.copy(f"{here}.mlp.linear_fc1.{part}", f"{there}.{_FF[stream]}.net.0.proj.{part}")
            self.planner.copy(f"{here}.mlp.linear_fc2.{part}", f"{there}.{_FF[stream]}.net.2.{part}")

    def measured(self, read: Read) -> list[str]:
        """How far each stream's modulation is from the source's."""
        streams = self.modulations.items()
        return [f"{stream} modulation, root mean square: {one.measured(read)}" for stream, one in streams]


def _unused(layers: int) -> list[tuple[str, str]]:
    last, why = f"transformer_blocks.{layers - 1}", "nothing reads the text stream after the last block's attention"
    return [
        ("single_transformer_blocks.*", "single-stream blocks have no counterpart"),
        ("context_embedder.token_refiner.*", "the token refiner has no counterpart"),
        ("context_embedder.time_text_embed.*", "it modulates the token refiner"),
        ("context_embedder.proj_in.*", "the text features here have another width"),
        ("x_embedder.proj.*", "the latent frames here have other channels"),
        ("proj_out.*", "the latent frames here have other channels"),
        (f"{last}.attn.to_add_out.*", why),
        (f"{last}.ff_context.*", why),
    ]


def _notes(weights, scale: float | None) -> list[str]:
    single = len({name.split(".")[1] for name in weights.shapes if name.startswith("single_transformer_blocks.")})
    refiner = any(name.startswith("context_embedder.token_refiner.") for name in weights.shapes)
    notes = [
        "modulation: a linear for each block there, one for all and offsets here (see the measured figures)",
        "pooled text features: there added to the timestep embedding; here left out (fixed at zeros)",
        "latent frames are those of HunyuanVideo's own VAE and text features those of its LLM; with others the "
        "embedders (visual_embedder, final_proj, text_embedder) start from weights that do not know them",
        "attention: over the whole video there, in windows here as model.window_* say (window_frames=0: as there)",
    ]
    if single:
        notes.insert(0, f"{single} single-stream blocks follow there; here the output reads the dual-stream blocks")
    if refiner:
        notes.append("text: there refined by blocks of self-attention before the first block; here projected alone")
    if scale is not None:
        notes.append(f"guidance: embedded there; here fixed at {scale:g} in a bias")
    return notes


def _open(path: Path) -> Source:
    path = Path(path)
    folder = path / "transformer" if (path / "transformer" / "config.json").is_file() else path
    if not folder.is_dir():
        raise UserError(f"{path} is no folder; name that of a diffusers {CLASS}, or the pipeline's")
    config = read_json(folder / "config.json")
    if config.get("_class_name") != CLASS:
        raise UserError(f"{folder / 'config.json'} is of {config.get('_class_name')!r}; needed is {CLASS}")
    return Source(open_weights(folder), config)


def _integer(config: dict, name: str, default: int) -> int:
    value = config.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"config.json: {name} is {value!r}; it must be a number above 0")
    return value


def _fields(source: Source) -> dict:
    config, weights = source.config, source.weights
    for name, usual in (
        ("patch_size", 2),
        ("patch_size_t", 1),
        ("qk_norm", "rms_norm"),
        ("image_condition_type", None),
    ):
        if config.get(name, usual) != usual:
            raise UserError(
                f"{weights.path}: {name} is {config[name]!r}; only {usual!r} (text to video) can be imported"
            )
    heads, head_dim = _integer(config, "num_attention_heads", 24), _integer(config, "attention_head_dim", 128)
    layers = len({name.split(".")[1] for name in weights.shapes if name.startswith("transformer_blocks.")})
    if layers != _integer(config, "num_layers", 20):
        raise UserError(
            f"{weights.path} has {layers} dual-stream blocks, its config.json says {config.get('num_layers', 20)}"
        )
    axes, theta = config.get("rope_axes_dim", [16, 56, 56]), config.get("rope_theta", 256.0)
    if (
        not isinstance(axes, list)
        or not all(isinstance(axis, int) for axis in axes)
        or not isinstance(theta, int | float)
    ):
        raise UserError(f"{weights.path}: config.json has rope_axes_dim {axes!r} and rope_theta {theta!r}, not numbers")
    return {
        "num_layers": layers, "hidden_size": heads * head_dim, "num_attention_heads": heads,
        "ffn_hidden_size": weights.shape("transformer_blocks.0.ff.net.0.proj.weight")[0],
        "timestep_dim": weights.shape(f"{_TIME}.linear_1.weight")[1],
        "rope_axes_dim": axes, "rope_theta": float(theta), "norm_epsilon": 1e-6,
    }  # fmt: skip


def _plan(source: Source, run: RunConfig, options: Options) -> Plan:
    hunyuan = _Hunyuan(source, run, options)
    hunyuan.ends()
    for i in range(run.model.num_layers):
        for stream in _NORM:
            hunyuan.block(i, stream)
    plan = hunyuan.planner.finish(_unused(run.model.num_layers))
    last = _pair(f"transformer_blocks.{run.model.num_layers - 1}.norm1_context.linear")
    plan.partly.update(dict.fromkeys(last, "rows of the text's gate and MLP"))
    plan.notes, plan.measure = _notes(source.weights, hunyuan.scale), hunyuan.measured
    return plan


HUNYUAN_VIDEO = BaseModel(TITLE, "model/hunyuan_video", _open, _fields, _plan)
