"""The algebra of the window-attention kernels in float64: shared queries meet shared keys once, whatever W is."""

import math

import pytest
import torch


def by_the_definition(q, k, v, windows, shared):
    """Shared queries' mean over windows of softmax over the window's rows and the shared rows; video queries' own."""
    out = torch.zeros_like(q)
    for window in windows:
        rows = torch.cat([window, shared])
        attended = (q[rows] @ k[rows].T / q.shape[1] ** 0.5).softmax(-1) @ v[rows]
        out = out.index_add(0, window, attended[: len(window)])
        out = out.index_add(0, shared, attended[len(window) :] / len(windows))
    return out


def by_the_collapsed_sum(q, k, v, grad, windows, shared):
    """Output and gradients with one term for shared queries and shared keys (formulas of `window_backward.py`)."""
    scale, W = q.shape[1] ** -0.5, len(windows)
    out, dq, dk, dv = (torch.zeros_like(q) for _ in range(4))
    lse, deltas = [], []

    def add(rows, keys, level, delta):
        p = (q[rows] @ k[keys].T * scale - level[:, None]).exp()
        ds = p * (grad[rows] @ v[keys].T - delta[:, None]) * scale
        dq[rows] += ds @ k[keys]
        dk[keys] += ds.T @ q[rows]
        dv[keys] += p.T @ grad[rows]

    for window in windows:
        rows = torch.cat([window, shared])
        for queries, share in ((window, 1), (shared, W)):
            scores = q[queries] @ k[rows].T * scale
            own_lse, own = scores.logsumexp(-1), scores.softmax(-1) @ v[rows]
            delta = (grad[queries] * own).sum(-1)
            out[queries] += own / share
            add(queries, window, own_lse + math.log(share), delta)
            if queries is window:
                add(queries, shared, own_lse, delta)
            else:
                lse.append(own_lse)
                deltas.append(delta)
    lse, deltas = torch.stack(lse), torch.stack(deltas)
    collapsed = (-lse).softmax(0)
    add(shared, shared, -(-lse).logsumexp(0) + math.log(W), (collapsed * deltas).sum(0))
    return out, dq, dk, dv


@pytest.mark.parametrize("lengths", [(5,), (4, 7, 1)])
def test_the_collapsed_sum_over_windows_equals_the_derivative_of_the_definition(lengths):
    torch.manual_seed(0)
    cuts = torch.randperm(sum(lengths) + 6).split([*lengths, 6])
    q, k, v, grad = torch.randn(4, sum(lengths) + 6, 8, dtype=torch.float64)
    q *= 3  # far from uniform: windows' normalizers differ by orders of magnitude
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = by_the_definition(*leaves, cuts[:-1], cuts[-1])
    expected.backward(grad)
    found = by_the_collapsed_sum(q, k, v, grad, cuts[:-1], cuts[-1])
    for mine, other in zip(found, (expected.detach(), *(leaf.grad for leaf in leaves)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)
