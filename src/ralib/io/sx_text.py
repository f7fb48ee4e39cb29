"""Alignment parameters as text, in EMAN2/SPARX's convention.

- params.txt: rows `idx alpha sx sy mirror class`, which the earlier Cryo-RAlib's notebooks read
- sxheader text: rows `alpha sx sy mirror [scale]`, which sxheader.py exports and imports
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ralib import conventions
from ralib.io import text_table
from ralib.io.atomic import PathLike, write_text
from ralib.io.text import read_text
from ralib.types import Poses, RalibError

_LARGEST_ANGLE_DEG = 1e6


def write_params(path: PathLike, poses: Poses, *, form: str = "class") -> None:
    """Write poses as text.

    Parameters
    ----------
    path : PathLike
        The file.
    poses : Poses
        The poses.
    form : str, default 'class'
        'class': idx alpha sx sy mirror class; 'sxheader': alpha sx sy mirror scale.
    """
    if form not in ("class", "sxheader"):
        raise RalibError(f"there is no parameter file of the form {form!r}: class or sxheader")
    poses = poses.to("cpu")
    alpha, shift, mirror = conventions.pose_to_eman2(poses.psi_deg.double(), poses.origin_xy_px.double(), poses.mirror)
    if form == "class":
        whole = np.arange(len(poses)), poses.mirror.numpy(), poses.class_index.numpy()
        index, flip, group = (text_table.integers(column, width=1) for column in whole)
        pose = [text_table.rounded(column) for column in (alpha.numpy(), *shift.T.numpy())]
        write_text(path, text_table.rows([index, *pose, flip, group]))
        return
    rows = zip(alpha.tolist(), *shift.T.tolist(), mirror.int().tolist(), strict=True)
    write_text(path, "".join(f"{a:15.5f} {x:15.5f} {y:15.5f} {m:10d} {1.0:10.3f}\n" for a, x, y, m in rows))


def read_params(path: PathLike, *, class_index: torch.Tensor | None = None) -> Poses:
    """Read either form, recognised by the number of columns; particles are in the order of idx.

    Parameters
    ----------
    path : PathLike
        The file.
    class_index : Tensor | None of shape (n,), optional
        Class of each particle where the text holds none; by default all are in one.

    Returns
    -------
    Poses
        The poses.

    Raises
    ------
    RalibError
        If it holds something else.
    """
    path = Path(path)
    rows = _rows(path)
    if rows.shape[1] == 6:
        order = np.argsort(rows[:, 0], kind="stable")
        if not np.array_equal(rows[order, 0], np.arange(len(rows))):
            raise RalibError(f"{path}: the first column must count the particles from 0, each once")
        rows, index = rows[order, 1:5], rows[order, 5]
    else:
        index = np.zeros(len(rows)) if class_index is None or len(class_index) != len(rows) else class_index.numpy()
    whole = (index >= -1) & (index < 2**31) & (index == np.floor(index))
    if not np.isin(rows[:, 3], (0, 1)).all() or not whole.all():
        raise RalibError(f"{path}: the mirror column must be 0 or 1, the class a whole number from 0 (-1: in none)")
    if not (np.abs(rows[:, 0]) < _LARGEST_ANGLE_DEG).all():
        raise RalibError(f"{path}: an angle of {rows[np.argmax(np.abs(rows[:, 0])), 0]:g} degrees cannot be meant")
    psi, origin, mirror = conventions.eman2_to_pose(
        torch.tensor(rows[:, 0]), torch.tensor(rows[:, 1:3]), torch.tensor(rows[:, 3] != 0)
    )
    score = torch.full((len(rows),), float("nan"))
    return Poses(psi.float(), origin.float(), mirror, torch.tensor(index.astype(np.int64)), score)


def _rows(path: Path) -> np.ndarray:
    """(n, 4, 5 or 6) numbers; an error names the line that is wrong."""
    text = read_text(path, "text file of parameters")
    rows: list[list[float]] = []
    for number, line in enumerate(text.split("\n"), 1):
        tokens = line.split("#")[0].split()
        if not tokens:
            continue
        try:
            row = [float(t) for t in tokens]
        except ValueError:
            row = []
        if len(row) not in (4, 5, 6) or not np.isfinite(row).all() or (rows and len(row) != len(rows[0])):
            raise RalibError(
                f"{path} line {number}: {line.strip()[:60]!r} is neither 'alpha sx sy mirror [scale]' nor "
                "'idx alpha sx sy mirror class'; correct it"
            )
        rows.append(row)
    if not rows:
        raise RalibError(f"{path} holds no parameters")
    return np.array(rows)
