"""Names of weights: every parameter of the plain model has one place in the core model, and back."""

import torch

from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.hf.naming import core_name, fuse_qkv, hf_names, split_qkv


def test_core_names_cover_the_plain_model_exactly_once():
    plain = list(PhantomTransformer3DModel(num_layers=2).state_dict())
    core = dict.fromkeys(core_name(name) for name in plain)
    assert [name for name in core if "to_" in name or "norm_q" in name or "_offset" in name] == []
    back = [name for key in core for name in hf_names(key)]
    assert sorted(back) == sorted(plain)


def test_split_undoes_fuse_and_rows_of_a_head_lie_together():
    q, k, v = (torch.arange(24.0).reshape(8, 3) + 100 * i for i in range(3))
    fused = fuse_qkv([q, k, v], heads=2)
    assert torch.equal(fused[:4], q[:4]) and torch.equal(fused[4:8], k[:4]) and torch.equal(fused[12:16], q[4:])
    assert all(torch.equal(a, b) for a, b in zip(split_qkv(fused, 2), (q, k, v), strict=True))
