"""EMAN2/SPARX's 2D parameters (alpha, sx, sy, mirror) and their algebra, on batches.

A row maps an image onto the reference: p_ref = M(R(-alpha) p + t), mirror last (EMAN2's Transform of type "2D"). All
functions use double precision; angles in degrees, shifts in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ralib.conventions import eman2_to_pose, mirror_x, pose_to_eman2, rotate_xy, wrap_deg
from ralib.types import Poses

Params = Tensor  # (n, 4) float64: alpha_deg, sx_px, sy_px, mirror (0 or 1)


def params_rows(alpha_deg: Tensor, shift_xy_px: Tensor, mirror: Tensor) -> Params:
    """Return rows (n, 4) of their columns.

    Parameters
    ----------
    alpha_deg : Tensor of shape (n,)
        Angle, degrees.
    shift_xy_px : Tensor of shape (n, 2)
        Shift, pixels.
    mirror : Tensor of shape (n,)
        Whether mirrored.

    Returns
    -------
    Params of shape (n, 4)
        Rows.
    """
    return torch.stack(
        [alpha_deg.double(), shift_xy_px[..., 0].double(), shift_xy_px[..., 1].double(), mirror.double()], dim=-1
    )


def combine_params2(first: Params, second: Params) -> Params:
    """Return parameters that apply `first`, then `second` (utilities.combine_params2).

    Parameters
    ----------
    first : Params of shape (n, 4)
        Rows.
    second : Params of shape (n, 4)
        Rows.

    Returns
    -------
    Params of shape (n, 4)
        Rows.
    """
    mirror_1, mirror_2 = first[..., 3] > 0.5, second[..., 3] > 0.5
    # M2 (R2 M1 (R1 p + t1) + t2): moving M1 to the left turns R2 into its inverse.
    alpha = first[..., 0] + torch.where(mirror_1, -second[..., 0], second[..., 0])
    moved = rotate_xy(torch.where(mirror_1, second[..., 0], -second[..., 0]), first[..., 1:3])
    shift = moved + mirror_x(second[..., 1:3], mirror_1)
    return params_rows(_wrap_eman2(alpha), shift, mirror_1 ^ mirror_2)


def inverse_transform2(params: Params) -> Params:
    """Return the inverse parameters (utilities.inverse_transform2), rows (n, 4)."""
    mirror = params[..., 3] > 0.5
    alpha = torch.where(mirror, params[..., 0], -params[..., 0])
    # p = R(alpha) (M p_ref - t): as M' (R(-alpha') p_ref + t') with M' = M.
    shift = -mirror_x(rotate_xy(params[..., 0], params[..., 1:3]), mirror)
    return params_rows(_wrap_eman2(alpha), shift, mirror)


def origins(params: Params) -> Tensor:
    """Return where (n, 2) on the particle the reference's centre lies, pixels from the particle's centre."""
    return rotate_xy(params[..., 0], -params[..., 1:3])


def params_to_poses(params: Params, class_index: Tensor | None = None, score: Tensor | None = None) -> Poses:
    """Convert SPARX rows to `Poses`.

    Parameters
    ----------
    params : Params of shape (n, 4)
        Rows.
    class_index : Tensor of shape (n,), optional
        Classes; by default 0.
    score : Tensor of shape (n,), optional
        Scores; by default NaN.

    Returns
    -------
    Poses
        Poses.
    """
    psi, origin, mirror = eman2_to_pose(params[:, 0], params[:, 1:3], params[:, 3] > 0.5)
    n, device = len(params), params.device
    if class_index is None:
        class_index = torch.zeros(n, dtype=torch.int64, device=device)
    if score is None:
        score = torch.full((n,), float("nan"), device=device)
    return Poses(psi.float(), origin.float(), mirror, class_index, score.float())


def poses_to_params(poses: Poses) -> Params:
    """Convert `Poses` to SPARX rows (n, 4)."""
    alpha, shift, mirror = pose_to_eman2(poses.psi_deg.double(), poses.origin_xy_px.double(), poses.mirror)
    return params_rows(alpha, shift, mirror)


def _wrap_eman2(alpha_deg: Tensor) -> Tensor:
    """The same angle in (-180, 180], where EMAN2's arc tangent puts it."""
    return -wrap_deg(-alpha_deg)


def average_shift(params: Params) -> Tensor:
    """Return the mean shift (2,) of particles on their average, x reversed where mirrored (`--center -1`)."""
    sign = torch.where(params[:, 3] > 0.5, -1.0, 1.0).double()
    return torch.stack([(sign * params[:, 1]).mean(), params[:, 2].mean()])
