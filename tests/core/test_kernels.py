"""The start-up log of kernels, and that only what can really be used is taken."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from megatron.core.optimizer import clip_grads

from phantom_mega.config import ModelConfig, ParallelConfig, PrecisionConfig
from phantom_mega.core import fused_libraries
from phantom_mega.core.fused_libraries import FusedLibraries
from phantom_mega.core.kernels import kernel_lines
from phantom_mega.core.parallel_config import transformer_config
from phantom_mega.core.specs import fuses_weight_gradients

LIBRARIES = f"libraries    torch {torch.__version__}, megatron-core 0.19.2"


def config(precision: PrecisionConfig, **fields):
    built = transformer_config(ModelConfig(), ParallelConfig(), precision)
    return dataclasses.replace(built, **fields)


def of(library: str, name: str):
    """A class that says it comes from a library."""
    return type(name, (), {"__module__": library})


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")
def test_on_cpu_torch_serves_everything():
    lines = kernel_lines(
        config(PrecisionConfig()), "local", "sdpa", torch.optim.AdamW, clip_grads.l2_norm_impl, FusedLibraries()
    )
    assert lines == [
        "linears      megatron-core, fp32",
        "attention    sdpa, fp32",
        "elementwise  torch",
        "weight grads added by an operation of their own",
        "grad norm    torch",
        "optimizer    torch AdamW",
        LIBRARIES,
    ]


def test_transformer_engine_in_fp8_is_told_with_its_recipe_and_its_bf16_layers():
    fp8 = PrecisionConfig(bf16=True, fp8="hybrid", first_last_layers_bf16=True, num_layers_at_end_in_bf16=2)
    lines = kernel_lines(
        config(fp8, gradient_accumulation_fusion=True),
        "transformer_engine",
        "varlen",
        of("transformer_engine.pytorch.optimizers.fused_adam", "FusedAdam"),
        of("transformer_engine_torch", "multi_tensor_l2norm"),
        FusedLibraries(transformer_engine="2.20.2", remarks=("apex is not NVIDIA's",)),
    )
    assert lines == [
        "linears      Transformer Engine, FP8 hybrid, tensorwise scales, bf16 in the first 1 and the last 2 blocks",
        "attention    varlen, bf16",
        "elementwise  torch.compile" if torch.cuda.is_available() else "elementwise  torch",
        "weight grads added to fp32 by the GEMM that computes them (Transformer Engine)",
        "grad norm    Transformer Engine",
        "optimizer    Transformer Engine FusedAdam",
        f"{LIBRARIES}, Transformer Engine 2.20.2",
        "not used     apex is not NVIDIA's",
    ]


def test_apex_serves_the_linears_of_megatron_core():
    lines = kernel_lines(
        config(PrecisionConfig(bf16=True), gradient_accumulation_fusion=True),
        "local",
        "varlen",
        of("apex.optimizers.fused_adam", "FusedAdam"),
        of("amp_C", "multi_tensor_l2norm"),
        FusedLibraries(apex_multi_tensor=True, apex_weight_gradient=True),
    )
    assert lines[0] == "linears      megatron-core, bf16"
    assert lines[3:6] == [
        "weight grads added to fp32 by the GEMM that computes them (apex)",
        "grad norm    apex",
        "optimizer    apex FusedAdam",
    ]


def test_only_bf16_gradients_are_added_by_a_gemm_and_only_where_one_is_there(monkeypatch):
    # Only their fp32 buffers differ in type from the gradients; buffers of fp32 runs gain nothing.
    found = {"apex": FusedLibraries(apex_weight_gradient=True), "": FusedLibraries(apex_multi_tensor=True)}
    for name, libraries in found.items():
        monkeypatch.setattr(fused_libraries, "find", lambda libraries=libraries: libraries)
        assert [fuses_weight_gradients("local", bf16, False) for bf16 in (True, False)] == [name == "apex", False]
    monkeypatch.setattr(fused_libraries, "find", lambda: FusedLibraries(transformer_engine="2.20.2"))
    assert [fuses_weight_gradients("auto", bf16, True) for bf16 in (True, False)] == [True, False]
    assert not fuses_weight_gradients("local", True, False)


def test_the_gemm_of_apex_adds_no_gradients_where_hooks_hide_the_weight_from_its_linear(monkeypatch):
    monkeypatch.setattr(fused_libraries, "find", lambda: FusedLibraries(apex_weight_gradient=True))
    selective, offload = {"recompute_granularity": "selective"}, {"cpu_offloading_num_layers": 1}
    for fields in ({}, {"recompute_granularity": "full"}, selective, offload):
        built = transformer_config(ModelConfig(), ParallelConfig(**fields), PrecisionConfig(bf16=True))
        assert built.gradient_accumulation_fusion == (fields not in (selective, offload))


# What the registry's `apex` and an engine for another CUDA do to whoever imports them.
_WRONG_APEX = "class FusedAdam:\n    pass\n\n\nclass FusedSGD:\n    pass\n"
_WRONG_ENGINE = "raise AttributeError('another transformer_engine')\n"
_PROBE = """
import phantom_mega.core
from phantom_mega.core import fused_libraries
from megatron.core.optimizer import USING_PYTORCH_OPTIMIZER, distrib_optimizer
print(USING_PYTORCH_OPTIMIZER, distrib_optimizer.HAVE_APEX_OR_TE)
print(*fused_libraries.find().remarks, sep="\\n")
"""


def test_packages_that_only_bear_the_name_are_kept_from_megatron_and_told(tmp_path):
    for name, files in {
        "apex": {"__init__": "", "optimizers": _WRONG_APEX},
        "transformer_engine": {"__init__": _WRONG_ENGINE},
    }.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / f"{file}.py").write_text(text)
    paths = os.pathsep.join([str(tmp_path), os.getcwd()])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROBE],
        env=os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "True False",
        "transformer_engine needs a GPU",
        "apex is not NVIDIA's, or built without its extensions (there is no amp_C)",
    ]
