"""Conventions of poses: centre, axes, signs, mirror, and the frames of other programs.

Index coordinates: x is the column, y the row, the origin is pixel (n // 2, n // 2). A pose maps a particle point p onto
its class average,

    p_ref = M(R(psi)(p + origin)),    R(psi) = [[cos, -sin], [sin, cos]] on (x, y),    M: x -> -x if mirrored:

shift first, then rotate, mirror last. This is RELION's order, so that psi and origin are written to rlnAnglePsi and
rlnOriginX/YAngst (times the pixel size) unchanged.

Angles are in degrees, shifts in pixels; the functions take and return tensors of shape (n,) and (n, 2), no arrays of
NumPy. A pose is the tuple (psi_deg, origin_xy_px, mirror), of `Poses` its first three fields: `poses.fields()[:3]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

PoseTriple = tuple[Tensor, Tensor, Tensor]


def wrap_deg(angle_deg: Tensor) -> Tensor:
    """Return the same angle in [-180, 180)."""
    return torch.remainder(angle_deg + 180.0, 360.0) - 180.0


def rotate_xy(psi_deg: Tensor, xy: Tensor) -> Tensor:
    """Rotate points by R(psi).

    Parameters
    ----------
    psi_deg : Tensor of shape (...,)
        Rotation, degrees.
    xy : Tensor of shape (..., 2)
        Points.

    Returns
    -------
    Tensor of shape (..., 2)
        Rotated points.
    """
    psi = torch.deg2rad(psi_deg)
    c, s = torch.cos(psi), torch.sin(psi)
    x, y = xy[..., 0], xy[..., 1]
    return torch.stack([c * x - s * y, s * x + c * y], dim=-1)


def apply_pose(psi_deg: Tensor, origin_xy_px: Tensor, mirror: Tensor, xy: Tensor) -> Tensor:
    """Map particle points onto the class average.

    Parameters
    ----------
    psi_deg : Tensor of shape (...,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (..., 2)
        Origin shift, pixels.
    mirror : Tensor of shape (...,)
        True where mirrored.
    xy : Tensor of shape (..., 2)
        Points from the centre of the particle, pixels.

    Returns
    -------
    Tensor of shape (..., 2)
        Points from the centre of the class average, pixels.
    """
    return mirror_x(rotate_xy(psi_deg, xy + origin_xy_px), mirror)


def mirror_x(xy: Tensor, mirror: Tensor) -> Tensor:
    """Mirror points, x -> -x.

    Parameters
    ----------
    xy : Tensor of shape (..., 2)
        Points.
    mirror : Tensor of shape (...,)
        True to mirror.

    Returns
    -------
    Tensor of shape (..., 2)
        Points.
    """
    x = torch.where(mirror, -xy[..., 0], xy[..., 0])
    return torch.stack([x, xy[..., 1].expand_as(x)], dim=-1)


def compose(first: PoseTriple, second: PoseTriple) -> PoseTriple:
    """Compose two poses.

    Parameters
    ----------
    first : tuple of Tensor, of shapes (n,), (n, 2), (n,)
        (psi_deg, origin_xy_px, mirror) applied first, as `poses.fields()[:3]` gives them; mirror as bool or 0 and 1.
    second : tuple of Tensor, of shapes (n,), (n, 2), (n,)
        (psi_deg, origin_xy_px, mirror) applied second.

    Returns
    -------
    tuple of Tensor
        The pose with the same effect; its mirror is bool.
    """
    psi_1, origin_1, mirror_1 = first[0], first[1], first[2].bool()
    psi_2, origin_2, mirror_2 = second[0], second[1], second[2].bool()
    # M2 R2 (M1 R1 (p + o1) + o2): moving M1 to the left turns R2 into its inverse.
    psi = psi_1 + torch.where(mirror_1, -psi_2, psi_2)
    origin = origin_1 + rotate_xy(-psi_1, mirror_x(origin_2, mirror_1))
    return wrap_deg(psi), origin, mirror_1 ^ mirror_2


def invert(pose: PoseTriple) -> PoseTriple:
    """Return the pose that maps the class average back onto the particle.

    Parameters
    ----------
    pose : tuple of Tensor, of shapes (n,), (n, 2), (n,)
        (psi_deg, origin_xy_px, mirror), as `poses.fields()[:3]` gives them; mirror as bool or 0 and 1.

    Returns
    -------
    tuple of Tensor
        The inverse pose; its mirror is bool.
    """
    psi, origin, mirror = pose[0], pose[1], pose[2].bool()
    shift_ref = mirror_x(rotate_xy(psi, origin), mirror)
    return wrap_deg(torch.where(mirror, psi, -psi)), -shift_ref, mirror


def eman2_to_pose(alpha_deg: Tensor, shift_xy_px: Tensor, mirror: Tensor) -> PoseTriple:
    """Convert parameters of EMAN2/SPARX's xform.align2d, p_ref = M(R(-alpha) p + t).

    Parameters
    ----------
    alpha_deg : Tensor of shape (n,)
        Angle, degrees.
    shift_xy_px : Tensor of shape (n, 2)
        Shift t, pixels.
    mirror : Tensor of shape (n,)
        True, or not 0, where mirrored.

    Returns
    -------
    tuple of Tensor
        (psi_deg, origin_xy_px, mirror), mirror as bool.
    """
    return wrap_deg(-alpha_deg), rotate_xy(alpha_deg, shift_xy_px), mirror.bool()


def pose_to_eman2(psi_deg: Tensor, origin_xy_px: Tensor, mirror: Tensor) -> PoseTriple:
    """Convert poses to parameters of EMAN2/SPARX's xform.align2d.

    Parameters
    ----------
    psi_deg : Tensor of shape (n,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (n, 2)
        Origin shift, pixels.
    mirror : Tensor of shape (n,)
        True, or not 0, where mirrored.

    Returns
    -------
    tuple of Tensor
        (alpha_deg in [0, 360), shift_xy_px, mirror), mirror as bool.
    """
    return torch.remainder(-psi_deg, 360.0), rotate_xy(psi_deg, origin_xy_px), mirror.bool()


def pose_error(pose: PoseTriple, truth: PoseTriple) -> tuple[Tensor, Tensor]:
    """Compute the differences between two poses; they are meaningful only where both agree on the mirror.

    Parameters
    ----------
    pose : PoseTriple
        (psi_deg, origin_xy_px, mirror).
    truth : PoseTriple
        (psi_deg, origin_xy_px, mirror).

    Returns
    -------
    Tensor of shape (n,)
        Angle on the circle, degrees.
    Tensor of shape (n,)
        Distance of the shifts in the class frame, pixels.
    """
    angle = wrap_deg(pose[0] - truth[0]).abs()
    return angle, torch.linalg.vector_norm(pose[1] - truth[1], dim=-1)


def mirror_to_class(class_index: Tensor, mirror: Tensor, n_classes: int) -> Tensor:
    """Return class numbers for programs without a mirror: a mirrored member of class k becomes a member of class K + k.

    The average of class K + k is that of class k under x -> -x, so that psi and origin are unchanged: M R(psi)(p + o)
    lies on the one exactly where R(psi)(p + o) lies on the other.

    Parameters
    ----------
    class_index : Tensor of shape (n,)
        Classes from 0; -1 stays.
    mirror : Tensor of shape (n,)
        True where mirrored.
    n_classes : int
        Number of classes K.

    Returns
    -------
    Tensor of shape (n,)
        Classes from 0 to 2 K - 1.
    """
    return torch.where(mirror & (class_index >= 0), class_index + n_classes, class_index)


def class_to_mirror(class_index: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Return classes and mirrors from the numbers of `mirror_to_class`.

    Parameters
    ----------
    class_index : Tensor of shape (n,)
        Classes from 0 to 2 K - 1.
    n_classes : int
        Number of classes K.

    Returns
    -------
    Tensor of shape (n,)
        Classes from 0 to K - 1.
    Tensor of shape (n,)
        True where mirrored.
    """
    mirror = class_index >= n_classes
    return torch.where(mirror, class_index - n_classes, class_index), mirror


def cryosparc_to_pose(pose_rad: Tensor, shift_xy_px: Tensor) -> PoseTriple:
    """Convert cryoSPARC's alignments2D/pose and shift; there is no mirror.

    A class average is drawn onto its particle by p = R(-pose) p_ref - shift, x first: every program that subtracts
    class averages from cryoSPARC's particles does so, and cryosparc-tools moves a particle's coordinates by -shift.
    Hence psi = pose and origin = shift, with RELION's signs. (Some converters reverse both signs.)

    Parameters
    ----------
    pose_rad : Tensor of shape (n,)
        alignments2D/pose, radians.
    shift_xy_px : Tensor of shape (n, 2)
        alignments2D/shift, scaled from pixels of alignments2D/psize_A to pixels of the particles.

    Returns
    -------
    PoseTriple
        (psi_deg, origin_xy_px, mirror).
    """
    psi_deg = wrap_deg(torch.rad2deg(pose_rad))
    return psi_deg, shift_xy_px, torch.zeros(psi_deg.shape, dtype=torch.bool, device=psi_deg.device)


def pose_to_cryosparc(psi_deg: Tensor, origin_xy_px: Tensor) -> tuple[Tensor, Tensor]:
    """Convert poses to cryoSPARC's; a mirrored particle first becomes a member of class K + k, see `mirror_to_class`.

    Parameters
    ----------
    psi_deg : Tensor of shape (n,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (n, 2)
        Origin shift, pixels.

    Returns
    -------
    Tensor of shape (n,)
        alignments2D/pose in [0, 2 pi), radians.
    Tensor of shape (n, 2)
        alignments2D/shift, pixels.
    """
    return torch.deg2rad(torch.remainder(psi_deg, 360.0)), origin_xy_px


def restore_mirror(
    exported: Tensor, original: Tensor, mirror: Tensor, turned_over: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return classes and mirrors of a file that holds both the exported classes (K + k) and the original ones.

    Where another program has classified the particles since, its classes no longer agree with the originals; they are
    then used as they are, without mirrors. They agree if unmirrored members have the same class in both, and all
    mirrored ones either the same K, beyond all original classes, or the same class and an image marked as mirrored.
    Particles of one class that were classified again into one have the same class, but no such mark.

    Parameters
    ----------
    exported : Tensor of shape (n,)
        Classes as exported.
    original : Tensor of shape (n,)
        Original classes.
    mirror : Tensor of shape (n,)
        Original mirrors.
    turned_over : Tensor | None of shape (n,), optional
        True where the file says that the image itself is mirrored.

    Returns
    -------
    Tensor of shape (n,)
        Classes.
    Tensor of shape (n,)
        True where mirrored.
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
