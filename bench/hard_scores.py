"""What known truth says about a classification of realistic sets: symmetric particles, and junk among them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ralib.types import Poses

STARTS, ROUNDS = 12, 6
"""Particles from which a class's mean view is begun, and rounds of choosing symmetry mates: the best start counts."""


def symmetry_rotations(name: str) -> np.ndarray:
    """Rotation matrices (s, 3, 3) of a point group: C1, C<n>, D<n>:<degrees of a 2-fold axis in the plane>, or O."""
    if name == "O":
        return _octahedral()
    order = int(name[1:].split(":")[0])
    turns = [_about_z(2 * math.pi * i / order) for i in range(order)]
    if name[0] == "D":
        at = math.radians(float(name.split(":")[1]) if ":" in name else 0.0)
        axis = np.array([math.cos(at), math.sin(at), 0.0])
        turns += [turn @ (2 * np.outer(axis, axis) - np.eye(3)) for turn in turns]
    return np.array(turns)


def _about_z(angle_rad: float) -> np.ndarray:
    c, s = math.cos(angle_rad), math.sin(angle_rad)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _octahedral() -> np.ndarray:
    """The 24 signed permutations of the axes that keep their handedness."""
    found = []
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for signs in np.ndindex(2, 2, 2):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = 1 - 2 * np.array(signs)
            if np.linalg.det(matrix) > 0:
                found.append(matrix)
    return np.array(found)


def hard_scores(poses: Poses, truth: dict[str, np.ndarray], symmetry: str = "C1") -> dict[str, Any]:
    """View spread, in-plane and shift errors within classes, over true particles, up to the particle's symmetry.

    Each particle's view is replaced by the symmetry mate nearest to its class's mean view and direction of x.
    """
    rotations = symmetry_rotations(symmetry)
    index, good = poses.class_index.numpy(), truth["junk"] == 0
    x, view, left = in_class_frame(poses, truth)
    spread, turn, shift, sizes = [], [], [], []
    for k in range(int(index.max()) + 1):
        sizes.append(int((index == k).sum()))
        member = (index == k) & good
        if member.sum() < 2:
            continue
        angles, turns = class_spread(rotations, view[member], x[member])
        spread += list(angles)
        turn += list(turns)
        shift += list(np.linalg.norm(left[member] - np.median(left[member], 0), axis=1))
    share = np.array(sizes)[np.array(sizes) > 0] / sum(sizes)
    return {
        "view_deg": float(np.median(spread)),
        "view_p90_deg": float(np.percentile(spread, 90)),
        "inplane_deg": float(np.median(turn)),
        "shift_px": float(np.median(shift)),
        "effective": float(np.exp(-(share * np.log(share)).sum())),
        "empty": sum(size == 0 for size in sizes),
    }


def class_spread(rotations: np.ndarray, view: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles (n,) to the mean view of a class, and about it, degrees, of views and directions of x (n, 3)."""
    axes, directions = _nearest_mates(rotations, view, x)
    axis = _unit(axes.mean(0))
    mean_x = directions.mean(0)
    mean_x = _unit(mean_x - axis * (mean_x @ axis))
    angle = np.degrees(np.arccos(np.clip(axes @ axis, -1, 1)))
    return angle, np.degrees(np.abs(np.arctan2(directions @ np.cross(axis, mean_x), directions @ mean_x)))


def in_class_frame(poses: Poses, truth: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Direction of x (n, 3), view (n, 3) and what is left of the shift (n, 2) after the poses, mirrors undone."""
    psi, mirror = np.deg2rad(poses.psi_deg.numpy()), poses.mirror.numpy()
    c, s = np.cos(psi)[:, None], np.sin(psi)[:, None]
    rotation = truth["R"]
    x, view = c * rotation[:, 0] - s * rotation[:, 1], rotation[:, 2].copy()
    x[mirror], view[mirror] = -x[mirror], -view[mirror]
    left = truth["shift"] + poses.origin_xy_px.numpy()
    left = np.hstack([c * left[:, :1] - s * left[:, 1:], s * left[:, :1] + c * left[:, 1:]])
    left[mirror, 0] *= -1
    return x, view, left


def _nearest_mates(rotations: np.ndarray, view: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Views and directions (n, 3) as the symmetry mates that lie together best."""
    views, directions = np.einsum("sij,nj->nsi", rotations, view), np.einsum("sij,nj->nsi", rotations, x)
    best, found = -math.inf, (view, x)
    row = np.arange(len(view))
    for start in range(min(len(view), STARTS)):
        mean_view, mean_x = views[start, 0], directions[start, 0]
        for _ in range(ROUNDS):
            agreement = views @ mean_view + 0.5 * (directions @ mean_x)
            mate = agreement.argmax(1)
            chosen = views[row, mate], directions[row, mate]
            mean_view, mean_x = (_unit(part.mean(0)) for part in chosen)
        if (total := agreement.max(1).sum()) > best:
            best, found = total, chosen
    return found


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / (np.linalg.norm(vector) + 1e-12)
