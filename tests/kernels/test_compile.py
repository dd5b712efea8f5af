"""The kernels as they are used compile for Hopper, here and without a GPU: Triton brings NVIDIA's assembler along."""

import re

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from phantom_mega.kernels import window_backward, window_forward
from phantom_mega.kernels.blocks import KERNELS, chosen

SHARED_MEMORY = 227 * 1024  # bytes of a thread block on sm_90
FP32 = ("base", "lse", "level", "delta")
INDEX = ("rows", "tiles", "windows")


HOPPER = GPUTarget("cuda", 90, 32)


def kernel_of(name):
    return getattr(window_forward, f"{name}_kernel", None) or getattr(window_backward, f"{name}_kernel")


def compiled(name, tmp_path):
    """A kernel with its blocks in use, for 128 channels in BF16 on sm_90."""
    kernel = kernel_of(name)
    blocks = chosen(itemsize=2)[name]
    constants = {"TILE": blocks.tile, "STEP": blocks.step, "STAGES": blocks.stages, "HEAD_DIM": 128, "SAVE": True}
    constants = {argument: value for argument, value in constants.items() if argument in kernel.arg_names}
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in FP32 or argument in INDEX:
            signature[argument] = "*fp32" if argument in FP32 else "*i32"
        elif argument in ("scale", "qk_scale"):
            signature[argument] = "fp32"
        else:
            signature[argument] = "i32" if argument in ("heads", "video", "shared", "lse_length") else "*bf16"
    # Memory from torch's allocator is aligned; the launcher finds out and says the same.
    aligned = [(i,) for i, kind in enumerate(signature.values()) if kind.startswith("*")]
    source = ASTSource(kernel, signature, constants, {at: [["tt.divisibility", 16]] for at in aligned})
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        return triton.compile(source, target=HOPPER, options={"num_warps": blocks.warps})


@pytest.mark.parametrize("name", KERNELS)
def test_it_fits_a_hopper_and_uses_its_tensor_cores_and_wide_asynchronous_copies(name, tmp_path):
    assert not triton.knobs.runtime.interpret
    built = compiled(name, tmp_path)
    ptx = built.asm["ptx"]
    assert built.metadata.shared <= SHARED_MEMORY and built.asm["cubin"]
    products, copies = (
        ptx.count("wgmma.mma_async"),
        re.findall(r"cp\.async\.c[ag]\S+ \[[^]]*\], \[[^]]*\], (0x\w+)", ptx),
    )
    assert "mma.sync" not in ptx.replace("wgmma.mma_async.sync", "")
    if name != "delta":
        # Rows are read by index, 16 bytes at a time and ahead of their use; 4 bytes are indices, levels and deltas.
        assert products > 0 and copies.count("0x10") >= 8 and set(copies) <= {"0x10", "0x4"}


@pytest.mark.parametrize("name", KERNELS)
def test_packs_of_all_sizes_share_one_compiled_kernel(name):
    kernel = kernel_of(name)
    bind = create_function_from_signature(kernel.signature, kernel.params, make_backend(HOPPER))
    found = []
    for video, shared, slots in ((4096, 256, 1024), (4096, 255, 1020), (4097, 256, 1024), (4099, 1, 4), (31, 0, 0)):
        sizes = {"video": video, "shared": shared, "lse_length": video + shared + slots, "heads": 24}
        sizes |= {"scale": 0.1, "qk_scale": 0.1, "TILE": 128, "STEP": 64, "STAGES": 2, "HEAD_DIM": 128, "SAVE": True}
        tensors = {each: torch.empty(16, dtype=torch.int32) for each in kernel.arg_names if each not in sizes}
        arguments = tensors | {each: value for each, value in sizes.items() if each in kernel.arg_names}
        found.append(bind(**arguments)[1])
    assert found[1:] == found[:-1]
