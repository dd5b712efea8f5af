"""GPUs: what vendors state about them, and how fast they really compute, which is measured or, until then, assumed.

Sizes and peaks are those of NVIDIA's data sheets (dense, without sparsity; SXM boards in DGX/HGX nodes). Bandwidths are
for one direction and one GPU.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from phantom_mega.errors import UserError


@dataclass(frozen=True)
class Rates:
    """TFLOP/s that a GPU achieves, in FLOPs that a training step needs (forward and backward, nothing recomputed).

    Attributes:
        linear_bf16: of all linear layers with what surrounds them (norms, modulation, residuals) in BF16.
        attention_bf16: of attention over long sequences in BF16.
        linear_fp8: of linear layers in FP8; None where the GPU has none or nobody measured it.
        source: where the numbers come from.
        measured: names of those that `tools/benchmark.py` measured on this kind of GPU; the others are published ones.
    """

    linear_bf16: float
    attention_bf16: float
    linear_fp8: float | None
    source: str
    measured: tuple[str, ...] = ()

    def all_measured(self, fp8: bool) -> bool:
        """Whether those are measured that a run with linear layers in FP8, or in BF16, takes."""
        return {"linear_fp8" if fp8 else "linear_bf16", "attention_bf16"} <= set(self.measured)

    @classmethod
    def read(cls, path: Path, gpu: Gpu) -> Rates:
        """Rates from a JSON file, over the GPU's assumed ones for what the file leaves out.

        The file is `{"rates": {"linear_bf16": 520.0, "attention_bf16": 310.0, "linear_fp8": 700.0}, "device": "..."}`,
        in TFLOP/s; of what else the benchmark writes, its attention backend is named in `source`.

        Raises:
            UserError: no such file, no `rates` in it, those of tiny sizes, an unknown name, or a rate that no such GPU
                can have.
        """
        try:
            content = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"--rates {path} cannot be read as JSON: {error}") from None
        rates = content.get("rates") if isinstance(content, dict) else None
        if not isinstance(rates, dict) or not rates:
            raise UserError(
                f"--rates {path} has no 'rates', as a benchmark on a CPU or without one of its parts has none; "
                'it must hold {"rates": {"linear_bf16": TFLOP/s}}'
            )
        if content.get("full_size") is False:
            raise UserError(f"--rates {path} was measured at the sizes of --small; run tools/benchmark.py without it")
        for name, value in rates.items():
            if name not in RATE_NAMES:
                close = difflib.get_close_matches(name, RATE_NAMES, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UserError(f"--rates {path}: unknown rate {name!r} (known: {', '.join(RATE_NAMES)}){hint}")
            peak = gpu.peak_fp8 if name.endswith("fp8") else gpu.peak_bf16
            if peak is None:
                raise UserError(f"--rates {path}: {name} is given, but {gpu.name} has no FP8")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= peak:
                raise UserError(f"--rates {path}: {name}={value!r} TFLOP/s; on {gpu.name} it lies in (0, {peak:g}]")
        device = str(content.get("device") or "a device that the file does not name")
        kind = gpu.name.split("-")[0]
        if content.get("device") and kind not in device.lower():
            raise UserError(
                f"--rates {path} was measured on {device}, not on --gpu {gpu.name}; name the GPU that it was"
            )
        left = [name for name in RATE_NAMES if name not in rates and getattr(gpu.assumed, name) is not None]
        settings = content.get("settings")
        backend = settings.get("attention_backend") if isinstance(settings, dict) else None
        source = f"{path} ({device}{f', attention by {backend}' if backend else ''})"
        source += f"; {', '.join(left)} assumed, not measured" if left else ""
        return dataclasses.replace(gpu.assumed, **rates, source=source, measured=tuple(rates))


RATE_NAMES = ("linear_bf16", "attention_bf16", "linear_fp8")


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU in its usual node of 8.

    Attributes:
        name: as `--gpu` spells it.
        memory_gib: what CUDA reports as the device's whole memory.
        peak_bf16, peak_fp8: dense TFLOP/s; None without FP8.
        hbm: GB/s of its memory.
        nvlink: GB/s to the other GPUs of its node.
        network: GB/s to other nodes, of the one adapter that each GPU has.
        assumed: rates until somebody measures.
    """

    name: str
    memory_gib: float
    peak_bf16: float
    peak_fp8: float | None
    hbm: float
    nvlink: float
    network: float
    assumed: Rates


# Dense (BF16, FP8) TFLOP/s by a part of the GPU's name, the first that fits; NVIDIA's data sheets.
_PEAKS = (
    ("H100 PCIe", (756.0, 1513.0)),
    ("H100 NVL", (835.0, 1671.0)),
    ("H100", (989.0, 1979.0)),
    ("H200", (989.0, 1979.0)),
    ("GH200", (989.0, 1979.0)),
    ("H800", (989.0, 1979.0)),
    ("A100", (312.0, None)),
    ("A800", (312.0, None)),
)


def peak_tflops(name: str) -> tuple[float | None, float | None]:
    """Dense BF16 and FP8 peak of a GPU by its name; None where unknown."""
    return next((peaks for part, peaks in _PEAKS if part in name), (None, None))


# Part of a link's stated bandwidth that large NCCL collectives reach; assumed, not measured.
LINK_EFFICIENCY = 0.8
# Part of the peak that the VAE's 3D convolutions and the encoders' products reach; assumed, not measured.
ENCODER_EFFICIENCY = 0.35

# Published attention rates count the scores that the backward pass computes anew (7 products a pair of tokens); a step
# needs 6 of them.
_NEEDED = 6 / 7
_H100 = Rates(
    linear_bf16=round(0.47 * 989),
    attention_bf16=round(_NEEDED * 335),
    linear_fp8=round(1.25 * 0.47 * 989),
    source="linear: 47% of peak, Megatron-LM's README for its largest models on H100, whole steps; attention: "
    "FlashAttention-2 (arXiv 2307.08691) on H100, 335 TFLOP/s; FP8: 1.25 x BF16, this project's target",
)
_A100 = Rates(
    linear_bf16=round(0.56 * 312),
    attention_bf16=round(_NEEDED * 0.63 * 312),
    linear_fp8=None,
    source="linear: 56% of peak, Korthikanti et al. (arXiv 2205.05198) for 530B and 1T on A100, whole steps; "
    "attention: FlashAttention-2 (arXiv 2307.08691), 63% of peak in the backward pass on A100",
)

GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 79.1, *peak_tflops("H100"), 3350, 450, 50, _H100),
        Gpu("h200", 139.8, *peak_tflops("H200"), 4800, 450, 50, _H100),
        Gpu("a100-80", 79.1, *peak_tflops("A100"), 2039, 300, 25, _A100),
        Gpu("a100-40", 39.4, *peak_tflops("A100"), 1555, 300, 25, _A100),
    )
}
ALIASES = {"a100": "a100-80"}


def find_gpu(name: str) -> Gpu:
    """A GPU by its name, in any case.

    Raises:
        UserError: an unknown one; names the nearest.
    """
    key = ALIASES.get(name.lower(), name.lower())
    if key not in GPUS:
        close = difflib.get_close_matches(key, GPUS, n=1, cutoff=0.3)
        raise UserError(
            f"--gpu {name} is unknown; use one of {', '.join(GPUS)}" + (f" (nearest: {close[0]})" if close else "")
        )
    return GPUS[key]


def gpu_of_device(name: str | None, memory_gib: float = 0.0) -> Gpu | None:
    """The GPU that CUDA calls `name` and gives so much memory; None for another one, or none at all."""
    fitting = [gpu for gpu in GPUS.values() if name and gpu.name.split("-")[0] in name.lower()]
    return min(fitting, key=lambda gpu: abs(gpu.memory_gib - memory_gib), default=None)
