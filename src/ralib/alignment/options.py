"""Options that both alignment loops share, checked in one place."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.alignment.references import UserFunction
from ralib.runtime.devices import computing_device
from ralib.types import RalibError


def outer_radius_px(box: int, radius: float | None) -> float:
    """Return the outer radius of the disc compared.

    Parameters
    ----------
    box : int
        Image size, pixels.
    radius : float or None
        The radius given, pixels; None or SPARX's -1 is the largest that fits the box.

    Returns
    -------
    float
        Radius, pixels.
    """
    return float(box // 2 - 2 if radius is None or radius < 0 else radius)


def check_shifts(
    shift_range_xy_px: Any,
    step_px: Any,
    *,
    range_option: str = "shift_range_xy_px",
    step_option: str = "shift_step_px",
) -> None:
    """Check the shift range and shift step of a search.

    Parameters
    ----------
    shift_range_xy_px : Any
        Shift range along x and y, pixels.
    step_px : Any
        Step of the shift grid, pixels; None as the templates need.
    range_option, step_option : str
        Names of the options, for errors.

    Raises
    ------
    RalibError
        If they are not finite numbers, two of 0 or more and one above 0.
    """
    spans = list(shift_range_xy_px) if isinstance(shift_range_xy_px, Iterable) else []
    if len(spans) != 2 or not all(isinstance(span, Real) and 0 <= float(span) < math.inf for span in spans):
        raise RalibError(f"`{range_option}` {shift_range_xy_px} must be two numbers of 0 px or more, along x and y")
    if step_px is not None and not (isinstance(step_px, Real) and 0 < float(step_px) < math.inf):
        raise RalibError(f"`{step_option}` {step_px}: a step must be above 0 px, or None for what the templates need")


@dataclass(frozen=True)
class AlignmentOptions:
    """Options of an alignment; None is chosen from the data. See `MultiReferenceAligner` for their meaning."""

    outer_radius: float | None = None
    inner_radius: float = 1
    mirror: bool = True
    center: int = 1
    mask: np.ndarray | Tensor | None = None
    min_members: int | None = None
    equal_sizes: bool = False
    ctf: str = "off"
    snr: float | None = None
    user_function: UserFunction | None = None
    fourier_variance: bool = False
    strict: bool = False
    device: torch.device | str = "cpu"
    batch_size: int | None = None
    resident_bytes: int | None = None

    def checked(self, box: int) -> AlignmentOptions:
        """Return the options with every None replaced by its value for images of this box.

        Parameters
        ----------
        box : int
            Image size, pixels.

        Returns
        -------
        AlignmentOptions
            Complete options.

        Raises
        ------
        RalibError
            If a value is out of range.
        """
        radius = outer_radius_px(box, self.outer_radius)
        if not 0 < self.inner_radius <= radius or radius > box // 2:
            raise RalibError(
                f"radii {self.inner_radius:g} to {radius:g} px do not fit in a box of {box} px: "
                f"use 1 <= `inner_radius` <= `outer_radius` <= {box // 2 - 1}"
            )
        if self.min_members is not None and self.min_members < 0:
            raise RalibError(f"`min_members` {self.min_members} must not be below 0")
        if self.snr is not None and not 0 < self.snr < float("inf"):
            raise RalibError(f"`snr` {self.snr:g} must be above 0")
        if self.center not in range(-1, 8):
            raise RalibError(f"`center` {self.center} is unknown: choose -1 (average shift), 0 (none) or 1 to 7")
        if self.batch_size is not None and self.batch_size < 1:
            raise RalibError(f"a batch of {self.batch_size} particles is too small: use at least 1")
        return replace(self, outer_radius=radius, device=computing_device(self.device))
