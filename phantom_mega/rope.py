"""3D rotary position embedding of visual tokens; text-stream tokens are left as they are.

S: visual tokens, N: heads, D: head dim. Channels come in neighbouring pairs, first those of time, then height, width.
"""

from __future__ import annotations

import torch


def rope_table(positions: torch.Tensor, axes_dim: list[int], theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotation angles.

    Args:
        positions: int [S, 3], (t, h, w) inside the window.
        axes_dim: channels of a head for each axis, even, summing to D.
        theta: base of the frequencies.

    Returns:
        (cos, sin), each float32 [S, D/2].
    """
    angles = []
    for axis, dim in enumerate(axes_dim):
        exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
        angles.append(positions[:, axis, None].double() * theta**-exponent)
    angle = torch.cat(angles, dim=-1)
    return angle.cos().float(), angle.sin().float()


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the channel pairs of x [S, N, D] by the angles of (cos, sin) [S, D/2]; computed in at least float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    even, odd = x.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.to(wide)[:, None], sin.to(wide)[:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
