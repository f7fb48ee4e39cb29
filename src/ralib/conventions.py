"""Centre, axes, signs, mirror: the one file that owns them. Everything else points here.

Index coordinates: x is the column, y the row, the origin is pixel (n // 2, n // 2). A pose maps a particle
point p onto its class average,

    p_ref = M(R(psi)(p + origin)),    R(psi) = [[cos, -sin], [sin, cos]] on (x, y),    M: x -> -x if mirrored:

shift first, then rotate, mirror last. This is RELION's order, so psi and origin go into rlnAnglePsi and
rlnOriginX/YAngst (times the pixel size) as they are.

Angles are degrees, shifts pixels; the functions take and return torch tensors of shape (n,) and (n, 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

PoseTriple = tuple[Tensor, Tensor, Tensor]


def wrap_deg(angle_deg: Tensor) -> Tensor:
    """The same angle in [-180, 180)."""
    return torch.remainder(angle_deg + 180.0, 360.0) - 180.0


def rotate_xy(psi_deg: Tensor, xy: Tensor) -> Tensor:
    """R(psi) applied to points; psi (...,), xy (..., 2)."""
    psi = torch.deg2rad(psi_deg)
    c, s = torch.cos(psi), torch.sin(psi)
    x, y = xy[..., 0], xy[..., 1]
    return torch.stack([c * x - s * y, s * x + c * y], dim=-1)


def apply_pose(psi_deg: Tensor, origin_xy_px: Tensor, mirror: Tensor, xy: Tensor) -> Tensor:
    """Where particle points (..., 2) land on the class average."""
    return mirror_x(rotate_xy(psi_deg, xy + origin_xy_px), mirror)


def mirror_x(xy: Tensor, mirror: Tensor) -> Tensor:
    """Points with x -> -x where `mirror` is true."""
    x = torch.where(mirror, -xy[..., 0], xy[..., 0])
    return torch.stack([x, xy[..., 1].expand_as(x)], dim=-1)


def compose(first: PoseTriple, second: PoseTriple) -> PoseTriple:
    """The pose that does `first`, then `second`."""
    psi_1, origin_1, mirror_1 = first
    psi_2, origin_2, mirror_2 = second
    # M2 R2 (M1 R1 (p + o1) + o2): moving M1 to the left turns R2 into its inverse.
    psi = psi_1 + torch.where(mirror_1, -psi_2, psi_2)
    origin = origin_1 + rotate_xy(-psi_1, mirror_x(origin_2, mirror_1))
    return wrap_deg(psi), origin, mirror_1 ^ mirror_2


def invert(pose: PoseTriple) -> PoseTriple:
    """The pose that takes the class average back onto the particle."""
    psi, origin, mirror = pose
    shift_ref = mirror_x(rotate_xy(psi, origin), mirror)
    return wrap_deg(torch.where(mirror, psi, -psi)), -shift_ref, mirror


def eman2_to_pose(alpha_deg: Tensor, shift_xy_px: Tensor, mirror: Tensor) -> PoseTriple:
    """EMAN2/SPARX xform.align2d, p_ref = M(R(-alpha) p + t), as (psi_deg, origin_xy_px, mirror)."""
    return wrap_deg(-alpha_deg), rotate_xy(alpha_deg, shift_xy_px), mirror


def pose_to_eman2(psi_deg: Tensor, origin_xy_px: Tensor, mirror: Tensor) -> PoseTriple:
    """(alpha_deg in [0, 360), shift_xy_px, mirror) of EMAN2/SPARX's xform.align2d."""
    return torch.remainder(-psi_deg, 360.0), rotate_xy(psi_deg, origin_xy_px), mirror


def pose_error(pose: PoseTriple, truth: PoseTriple) -> tuple[Tensor, Tensor]:
    """Angle between two poses on the circle (degrees) and distance of their shifts in the class frame
    (pixels).

    Only meaningful where both agree on the mirror.
    """
    angle = wrap_deg(pose[0] - truth[0]).abs()
    return angle, torch.linalg.vector_norm(pose[1] - truth[1], dim=-1)


def mirror_to_class(class_index: Tensor, mirror: Tensor, n_classes: int) -> Tensor:
    """Class index for programs without a mirror: a mirrored member of class k joins class K + k.

    The average of class K + k is that of class k under x -> -x, so psi and origin stay: M R(psi)(p + o) lies
    on the one exactly where R(psi)(p + o) lies on the other. Particles without a class (-1) stay without.
    """
    return torch.where(mirror & (class_index >= 0), class_index + n_classes, class_index)


def class_to_mirror(class_index: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """(class_index, mirror) back from `mirror_to_class`."""
    mirror = class_index >= n_classes
    return torch.where(mirror, class_index - n_classes, class_index), mirror


def cryosparc_to_pose(pose_rad: Tensor, shift_xy_px: Tensor) -> PoseTriple:
    """cryoSPARC alignments2D/pose and shift as (psi_deg, origin_xy_px, mirror); there is no mirror.

    A class average is drawn onto its particle by p = R(-pose) p_ref - shift, x first: so does every program
    that subtracts class averages from cryoSPARC's particles, and cryosparc-tools moves a particle's
    coordinates by -shift. Hence psi = pose and origin = shift, RELION's signs. Shifts are pixels of
    alignments2D/psize_A; the caller scales them. (Some converters turn both signs around.)
    """
    psi_deg = wrap_deg(torch.rad2deg(pose_rad))
    return psi_deg, shift_xy_px, torch.zeros(psi_deg.shape, dtype=torch.bool, device=psi_deg.device)


def pose_to_cryosparc(psi_deg: Tensor, origin_xy_px: Tensor) -> tuple[Tensor, Tensor]:
    """(pose_rad in [0, 2 pi), shift_xy_px); a mirrored particle first becomes a member of class K + k."""
    return torch.deg2rad(torch.remainder(psi_deg, 360.0)), origin_xy_px


def restore_mirror(
    exported: Tensor, original: Tensor, mirror: Tensor, turned_over: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(class_index, mirror) of a file that holds both the exported classes (K + k) and the original ones.

    Where another program has classified since, its classes no longer fit the originals: then they count, and there
    is no mirror. They fit if unmirrored members have the same class in both, and all mirrored ones either the same K,
    beyond all original classes, or the same class and an image that the file itself says is `turned_over` (n,). Of one
    class, classified again into one, all have the same class, and the file says no such thing.
    """
    known = original >= 0
    offset, mirrored = (exported - original)[known], mirror[known]
    shifts = offset[mirrored].unique()
    beyond = len(shifts) == 1 and int(shifts[0]) > int(original.max())
    in_place = len(shifts) == 1 and int(shifts[0]) == 0 and turned_over is not None
    if in_place:
        assert turned_over is not None
        in_place = bool((turned_over[known] == mirrored).all())
    if bool((offset[~mirrored] == 0).all()) and (len(shifts) == 0 or beyond or in_place):
        return original, mirror
    return exported, torch.zeros_like(mirror)
