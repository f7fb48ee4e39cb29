"""Newton steps of candidate poses, off the grid: exact in the shift, quadratic in the rotation."""

from __future__ import annotations

import torch
from torch import Tensor


def newton_step(moments: Tensor, h_deg: float, bound_px: float) -> tuple[Tensor, Tensor]:
    """Step (..., 3) in (psi degrees, x, y) to the maximum of the local quadratic, and the gain expected there.

    moments (..., 12) of `ops.pose_moments`, at psi - h, psi and psi + h. Where the quadratic has no maximum each
    coordinate steps by itself; no step is longer than `h_deg` and `bound_px`.
    """
    below, here, above, second = moments.split(3, dim=-1)
    per_deg = 1.0 / h_deg
    gradient = torch.stack([0.5 * per_deg * (above[..., 0] - below[..., 0]), here[..., 1], here[..., 2]], dim=-1)
    psi_psi = per_deg**2 * (above[..., 0] - 2 * here[..., 0] + below[..., 0])
    psi_x = 0.5 * per_deg * (above[..., 1] - below[..., 1])
    psi_y = 0.5 * per_deg * (above[..., 2] - below[..., 2])
    curvature = (psi_psi, psi_x, psi_y, *second.unbind(-1))
    step = _ascent(curvature, gradient)
    bound = step.new_tensor([h_deg, bound_px, bound_px])
    step = step * (bound / step.abs().clamp(min=1e-12)).amin(-1, keepdim=True).clamp(max=1.0)
    return step, _gain(curvature, gradient, step)


def _ascent(curvature: tuple[Tensor, ...], gradient: Tensor) -> Tensor:
    """-H^-1 g by cofactors where H is negative definite, a diagonal step elsewhere."""
    a, b, c, d, e, f = (-h for h in curvature)
    c00, c01, c02 = d * f - e * e, c * e - b * f, b * e - c * d
    c11, c12, c22 = a * f - c * c, b * c - a * e, a * d - b * b
    det = a * c00 + b * c01 + c * c02
    x, y, z = gradient.unbind(-1)
    adjugate = torch.stack([c00 * x + c01 * y + c02 * z, c01 * x + c11 * y + c12 * z, c02 * x + c12 * y + c22 * z], -1)
    diagonal = torch.stack([a, d, f], dim=-1).abs().clamp(min=1e-12)
    definite = (a > 0) & (c22 > 0) & (det > 1e-6 * diagonal.prod(-1))
    full = adjugate / torch.where(definite, det, 1.0)[..., None]
    return torch.where(definite[..., None], full, gradient / diagonal)


def _gain(curvature: tuple[Tensor, ...], gradient: Tensor, step: Tensor) -> Tensor:
    """What the local quadratic promises for a step, never below zero."""
    pp, px, py, xx, xy, yy = curvature
    p, x, y = step.unbind(-1)
    bent = 0.5 * (pp * p * p + xx * x * x + yy * y * y) + px * p * x + py * p * y + xy * x * y
    return ((gradient * step).sum(-1) + bent).clamp(min=0)
