"""The velocity of one pack by the megatron model, its weights read from the training checkpoint without renaming.

    python -m phantom_mega.release.core_forward CHECKPOINT ema|raw DTYPE INPUTS OUTPUTS
`verify` starts it, with one CPU rank; files as for `open_release`. Weights are rounded to DTYPE, then all is float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from phantom_mega.checkpoint import plain
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.config import ParallelConfig, PrecisionConfig
from phantom_mega.config_io import load_run_config
from phantom_mega.core.build import build_model
from phantom_mega.core.parallel_config import initialize_distributed
from phantom_mega.geometry import SampleShape
from phantom_mega.packs import PackInputs, PackLayout
from phantom_mega.windows import WindowSpec


def main() -> None:
    """Build the model on one rank, fill it, run it."""
    folder, weights, dtype, inputs, outputs = sys.argv[1:]
    model, reader = load_run_config(Path(folder, "config.yaml")).model, CheckpointReader(Path(folder))
    parallel = ParallelConfig(transformer_impl="local", attention_backend="sdpa")
    initialize_distributed(parallel)
    (chunk,) = build_model(model, parallel, PrecisionConfig(), seed=0)
    with safe_open(inputs, "pt") as file:
        shapes = [SampleShape(*shape) for shape in json.loads(file.metadata()["shapes"])]
        pack = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    spec = WindowSpec(
        model.window_frames, model.window_height, model.window_width, model.window_shift, model.reference_injection
    )
    layout = PackLayout.build(shapes, spec, model.rope_axes_dim, model.rope_theta)
    with torch.no_grad():
        for name, param in chunk.named_parameters():
            tensor = reader.read(plain.source_key(reader, name, weights))
            param.copy_(tensor.to(getattr(torch, dtype)))
        velocity = chunk(PackInputs(**pack, layout=layout))
    save_file({"velocity": velocity.contiguous()}, outputs)


if __name__ == "__main__":
    main()
