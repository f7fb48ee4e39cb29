"""Poses and CTF parameters as tables in each program's terms, and orientations as matrices."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ralib.conventions import cryosparc_to_pose, eman2_to_pose, pose_to_cryosparc, pose_to_eman2
from ralib.types import CtfParameters, Poses, RalibError


def pose_table(poses: Poses, convention: str = "relion", *, pixel_size_A: float | None = None) -> pd.DataFrame:
    """Return poses as the columns of another program, with its class numbers.

    Parameters
    ----------
    poses : Poses
        Poses.
    convention : str, default 'relion'
        'relion': rlnAnglePsi (degrees), rlnOriginX/YAngst, rlnClassNumber from 1, ralibMirror. 'eman2': alpha
        (degrees), sx, sy (pixels), mirror, class from 0. 'cryosparc': alignments2D/pose (radians), shift_x, shift_y
        (pixels), class from 0, ralibMirror; in .cs files, which `ralib.io` writes, a mirrored particle becomes a member
        of class K + k instead.
    pixel_size_A : float, optional
        Pixel size, Angstrom; needed for 'relion'.

    Returns
    -------
    pd.DataFrame
        One row for each particle.

    Raises
    ------
    RalibError
        If the convention is unknown or the pixel size missing.
    """
    poses = poses.to("cpu")
    psi, origin = poses.psi_deg.double(), poses.origin_xy_px.double()
    mirror, classes = poses.mirror.numpy(), poses.class_index.numpy()
    if convention == "relion":
        if pixel_size_A is None:
            raise RalibError("RELION's origins are in Angstrom: give pixel_size_A")
        origin_A = origin.numpy() * pixel_size_A
        return pd.DataFrame(
            {
                "rlnAnglePsi": psi.numpy(),
                "rlnOriginXAngst": origin_A[:, 0],
                "rlnOriginYAngst": origin_A[:, 1],
                "rlnClassNumber": classes + 1,
                "ralibMirror": mirror.astype(int),
            }
        )
    if convention == "eman2":
        alpha, shift, _ = pose_to_eman2(psi, origin, poses.mirror)
        return pd.DataFrame(
            {
                "alpha": alpha.numpy(),
                "sx": shift[:, 0].numpy(),
                "sy": shift[:, 1].numpy(),
                "mirror": mirror.astype(int),
                "class": classes,
            }
        )
    if convention == "cryosparc":
        pose, shift = pose_to_cryosparc(psi, origin)
        return pd.DataFrame(
            {
                "alignments2D/pose": pose.numpy(),
                "alignments2D/shift_x": shift[:, 0].numpy(),
                "alignments2D/shift_y": shift[:, 1].numpy(),
                "alignments2D/class": classes,
                "ralibMirror": mirror.astype(int),
            }
        )
    raise RalibError(f"no convention {convention!r}: give 'relion', 'eman2' or 'cryosparc'")


def poses_from_table(table: pd.DataFrame, *, pixel_size_A: float | None = None) -> Poses:
    """Read poses from a table with RELION's columns (either origin unit), EMAN2's or cryoSPARC's, as by `pose_table`.

    Parameters
    ----------
    table : pd.DataFrame
        One row for each particle.
    pixel_size_A : float, optional
        Pixel size, Angstrom, for origins in Angstrom.

    Returns
    -------
    Poses
        Poses.

    Raises
    ------
    RalibError
        If no known columns are found or the pixel size is missing.
    """
    if "rlnAnglePsi" in table:
        psi, mirror = _column(table, "rlnAnglePsi", 0.0), _column(table, "ralibMirror", 0) != 0
        pose = psi, _relion_origin(table, pixel_size_A), mirror
        classes = _column(table, "rlnClassNumber", 1) - 1
    elif {"alpha", "sx", "sy", "mirror"} <= set(table.columns):
        shift = torch.stack([_column(table, "sx", 0.0), _column(table, "sy", 0.0)], dim=1)
        pose = eman2_to_pose(_column(table, "alpha", 0.0), shift, _column(table, "mirror", 0) != 0)
        classes = _column(table, "class", 0)
    elif "alignments2D/pose" in table:
        shift = torch.stack([_column(table, f"alignments2D/shift_{axis}", 0.0) for axis in "xy"], dim=1)
        turned = cryosparc_to_pose(_column(table, "alignments2D/pose", 0.0), shift)
        pose = turned[0], turned[1], _column(table, "ralibMirror", 0) != 0
        classes = _column(table, "alignments2D/class", 0)
    else:
        raise RalibError(
            f"columns {list(table.columns)[:8]} are no poses: give RELION's rlnAnglePsi, EMAN2's alpha or "
            "cryoSPARC's alignments2D/pose"
        )
    return Poses(
        psi_deg=pose[0].float(),
        origin_xy_px=pose[1].float(),
        mirror=pose[2],
        class_index=classes.long(),
        score=torch.full((len(table),), float("nan")),
    )


def _relion_origin(table: pd.DataFrame, pixel_size_A: float | None) -> Tensor:
    """Origins (n, 2) in pixels: RELION 3.1 and later write Angstrom, earlier ones pixels."""
    if "rlnOriginXAngst" not in table:
        return torch.stack([_column(table, "rlnOriginX", 0.0), _column(table, "rlnOriginY", 0.0)], dim=1)
    if pixel_size_A is None:
        raise RalibError("rlnOriginXAngst is in Angstrom: give pixel_size_A")
    return torch.stack([_column(table, f"rlnOrigin{axis}Angst", 0.0) for axis in "XY"], dim=1) / pixel_size_A


def _column(table: pd.DataFrame, name: str, default: float) -> Tensor:
    """A column as float64 (n,), or the default throughout where there is none."""
    values = table[name].to_numpy(dtype=float) if name in table else np.full(len(table), float(default))
    return torch.tensor(values)


def ctf_table(ctf: CtfParameters) -> pd.DataFrame:
    """Return CTF parameters as a table with a row for each particle; columns are named as in `CtfParameters`."""
    return pd.DataFrame({f.name: np.asarray(getattr(ctf, f.name)) for f in fields(ctf)})


def euler_matrix_relion(rot_deg: np.ndarray, tilt_deg: np.ndarray, psi_deg: np.ndarray) -> np.ndarray:
    """Return the matrices of RELION, XMIPP and SPIDER: about z by rot, about the new y by tilt, about z by psi.

    They act on column vectors (x, y, z) of the volume and give coordinates in the image, whose z is the beam.

    Parameters
    ----------
    rot_deg, tilt_deg, psi_deg : ndarray
        Angles, degrees.

    Returns
    -------
    ndarray of shape (..., 3, 3)
        Matrices.
    """
    return _about_z(psi_deg) @ _about_y(tilt_deg) @ _about_z(rot_deg)


def euler_matrix_eman2(az_deg: np.ndarray, alt_deg: np.ndarray, phi_deg: np.ndarray) -> np.ndarray:
    """Return the matrices of EMAN2: about z by az, about the new x by alt, about z by phi.

    Parameters
    ----------
    az_deg, alt_deg, phi_deg : ndarray
        Angles, degrees.

    Returns
    -------
    ndarray of shape (..., 3, 3)
        Matrices.
    """
    return _about_z(phi_deg) @ _about_x(alt_deg) @ _about_z(az_deg)


def euler_relion_to_eman2(rot_deg: np.ndarray, tilt_deg: np.ndarray, psi_deg: np.ndarray) -> tuple[np.ndarray, ...]:
    """Convert RELION's angles to EMAN2's with the same matrix.

    Parameters
    ----------
    rot_deg, tilt_deg, psi_deg : ndarray
        Angles, degrees.

    Returns
    -------
    tuple of ndarray
        Angles az, alt and phi, degrees.
    """
    return np.asarray(rot_deg) + 90.0, np.asarray(tilt_deg) + 0.0, np.asarray(psi_deg) - 90.0


def euler_eman2_to_relion(az_deg: np.ndarray, alt_deg: np.ndarray, phi_deg: np.ndarray) -> tuple[np.ndarray, ...]:
    """Convert EMAN2's angles to RELION's with the same matrix.

    Parameters
    ----------
    az_deg, alt_deg, phi_deg : ndarray
        Angles, degrees.

    Returns
    -------
    tuple of ndarray
        Angles rot, tilt and psi, degrees.
    """
    return np.asarray(az_deg) - 90.0, np.asarray(alt_deg) + 0.0, np.asarray(phi_deg) + 90.0


def _about_z(angle_deg: np.ndarray) -> np.ndarray:
    c, s, zero, one = _parts(angle_deg)
    return np.stack([c, s, zero, -s, c, zero, zero, zero, one], axis=-1).reshape(*c.shape, 3, 3)


def _about_y(angle_deg: np.ndarray) -> np.ndarray:
    c, s, zero, one = _parts(angle_deg)
    return np.stack([c, zero, -s, zero, one, zero, s, zero, c], axis=-1).reshape(*c.shape, 3, 3)


def _about_x(angle_deg: np.ndarray) -> np.ndarray:
    c, s, zero, one = _parts(angle_deg)
    return np.stack([one, zero, zero, zero, c, s, zero, -s, c], axis=-1).reshape(*c.shape, 3, 3)


def _parts(angle_deg: np.ndarray) -> tuple[np.ndarray, ...]:
    angle = np.deg2rad(np.asarray(angle_deg, dtype=float))
    return np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
