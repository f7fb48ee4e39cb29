"""Calls by which the kernels of class averages are compiled before they are needed."""

from __future__ import annotations

from functools import partial

import torch

from ralib.classes.averages import ClassSums
from ralib.images.frc import frc
from ralib.kernels import Samples, interpolation_samples
from ralib.kernels.figures import pose_sums
from ralib.kernels.interpolation.reference import PAD
from ralib.runtime.compilers import Call
from ralib.types import Poses

AT_ONCE = 32
"""Particles of a call: as in an average and in a search, a multiple of those of a program."""


def average_calls(box: int, rounded: bool) -> list[Call]:
    """Return the calls of class averages.

    Parameters
    ----------
    box : int
        Size of the images, pixels.
    rounded : bool
        Whether samples pass through half precision.

    Returns
    -------
    list of callable
        The calls, the first needed first.
    """
    averages: list[Call] = [partial(_prefilter, box), partial(_average, box, rounded)]
    return [*averages, partial(frc_zeros, torch.float64), pose_sum_zeros]


def frc_zeros(dtype: torch.dtype, device: torch.device) -> None:
    """Correlate two half averages of zeros.

    Parameters
    ----------
    dtype : torch.dtype
        Their type.
    device : torch.device
        The GPU.
    """
    images = torch.zeros(1, AT_ONCE, AT_ONCE, dtype=dtype, device=device)
    frc(images, images)


def pose_sum_zeros(device: torch.device) -> None:
    """Sum up a few poses of zeros.

    Parameters
    ----------
    device : torch.device
        The GPU.
    """
    pose_sums(_poses(device).fields(), None, None, 1.0, 1)


def _prefilter(box: int, device: torch.device) -> None:
    """What an average does first, and the longest to compile."""
    interpolation_samples(torch.zeros(1, box, box, device=device))


def _average(box: int, rounded: bool, device: torch.device) -> None:
    samples = Samples(torch.zeros(AT_ONCE, box + 2 * PAD, box + 2 * PAD, device=device), None, "cubic", "zero")
    poses = _poses(device)
    ClassSums.empty(1, box, device, ctf=False).add_(samples, poses, poses.class_index, None, rounded=rounded)


def _poses(device: torch.device) -> Poses:
    zero = torch.zeros(AT_ONCE, device=device)
    return Poses(zero, torch.zeros(AT_ONCE, 2, device=device), zero > 0, zero.long(), zero)
