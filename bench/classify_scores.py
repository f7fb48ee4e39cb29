"""What known truth says about a classification: used by classify.py of this folder."""

from __future__ import annotations

import math

import numpy as np

from ralib.types import Poses


def ideal_deg(classes: int) -> float:
    """Median angle to the axis in one of K equal caps of a hemisphere."""
    return math.degrees(math.acos(1 - 0.5 / classes))


def scores(poses: Poses, truth: dict[str, np.ndarray]) -> dict[str, float]:
    """What the true orientations say about classes and poses; junk counts in the class sizes only."""
    psi = np.deg2rad(poses.psi_deg.numpy())
    mirror, index = poses.mirror.numpy(), poses.class_index.numpy()
    c, s = np.cos(psi)[:, None], np.sin(psi)[:, None]
    rotation, good = truth["R"], truth["junk"] == 0
    x, view = c * rotation[:, 0] - s * rotation[:, 1], rotation[:, 2].copy()
    x[mirror], view[mirror] = -x[mirror], -view[mirror]
    left = truth["shift"] + poses.origin_xy_px.numpy()
    left = np.hstack([c * left[:, :1] - s * left[:, 1:], s * left[:, :1] + c * left[:, 1:]])
    left[mirror, 0] *= -1
    angle, turn, shift, pure = [], [], [], 0
    for k in range(index.max() + 1):
        member = (index == k) & good
        if member.sum() < 2:
            continue
        axis = _unit(view[member].mean(0))
        angle += list(np.degrees(np.arccos(np.clip(view[member] @ axis, -1, 1))))
        mean_x = x[member].mean(0)
        mean_x = _unit(mean_x - axis * (mean_x @ axis))
        turn += list(np.degrees(np.abs(np.arctan2(x[member] @ np.cross(axis, mean_x), x[member] @ mean_x))))
        shift += list(np.linalg.norm(left[member] - np.median(left[member], 0), axis=1))
        pure += np.bincount(truth["species"][member]).max()
    size = np.bincount(index[index >= 0]) / max(1, (index >= 0).sum())
    size = size[size > 0]
    return {
        "view_deg": float(np.median(angle)),
        "view_p90_deg": float(np.percentile(angle, 90)),
        "inplane_deg": float(np.median(turn)),
        "shift_px": float(np.median(shift)),
        "effective": float(np.exp(-(size * np.log(size)).sum())),
        "largest": float(size.max()),
        "purity": pure / max(1, len(angle)),
    }


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / (np.linalg.norm(vector) + 1e-12)


def junk_caught(detail: np.ndarray, junk: np.ndarray) -> dict[str, float]:
    """Share of the junk below the score that 95% of the good particles exceed."""
    if not (junk > 0).any():
        return {}
    return {"junk_caught": float((detail[junk > 0] < np.quantile(detail[junk == 0], 0.05)).mean())}


RARE_AXES = {"rare_1_percent": ((1.0, 0.0, 0.0), 0.01), "rare_0.3_percent": ((0.0, 0.6, 0.8), 0.003)}
"""Two views, far from each other, and how much of the set each is to be."""

_CAP_DEG, _GAP_DEG = 8.0, 30.0


def rows_with_rare_views(view: np.ndarray, n: int) -> np.ndarray:
    """About n rows of a set of uniform views (m, 3): the rare ones at their share, and none within 30 degrees else."""
    common, rare = np.ones(len(view), bool), []
    for axis, share in RARE_AXES.values():
        away = _away_deg(view, axis)
        common &= away > _GAP_DEG
        rare.append(np.flatnonzero(away < _CAP_DEG)[: round(share * n)])
    rest = np.flatnonzero(common)[: n - sum(map(len, rare))]
    return np.sort(np.concatenate([*rare, rest]))


def rare_kept(poses: Poses, truth: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """For each rare view the class that holds most of it: the share of the view it holds, and of the class it is."""
    index, told = poses.class_index.numpy(), {}
    for name, (axis, _) in RARE_AXES.items():
        rare = _away_deg(truth["view"], axis) < _CAP_DEG
        counts = np.bincount(index[rare & (index >= 0)], minlength=int(index.max()) + 1)
        home = int(counts.argmax())
        held, purity = counts[home] / rare.sum(), counts[home] / (index == home).sum()
        told[name] = {"held": float(held), "purity": float(purity), "kept": bool(held >= 0.5 and purity >= 0.5)}
    return told


def _away_deg(view: np.ndarray, axis: tuple[float, float, float]) -> np.ndarray:
    """Angle to an axis or its opposite, whose view is the mirror image."""
    return np.degrees(np.arccos(np.abs(view @ np.array(axis)).clip(0, 1)))


def second_molecule(box: int, seed: int = 7) -> np.ndarray:
    """A particle unlike the built-in phantom (box, box, box): a chain of blobs that winds through an ellipsoid."""
    rng, grid = np.random.default_rng(seed), (np.arange(box) - box // 2) / box
    radii, place = np.array([0.21, 0.17, 0.13]), np.zeros(3)
    volume = np.zeros((box,) * 3, np.float32)
    for _ in range(220):
        place = place + rng.normal(scale=0.045, size=3)
        depth = np.linalg.norm(place / radii)
        if depth > 1:
            place *= rng.uniform(0.6, 1) / depth
        sd = rng.uniform(0.015, 0.035)
        x, y, z = (np.exp(-((grid - c) ** 2) / (2 * sd**2)) for c in place)
        volume += (rng.uniform(0.5, 1.5) * z[:, None, None] * y[:, None] * x).astype(np.float32)
    return volume
