"""Calls by which the kernels of class averages are compiled before they are needed."""

from __future__ import annotations

from functools import partial

import torch

from ralib.classes.averages import ClassSums
from ralib.images.frc import frc
from ralib.kernels import interpolation_samples
from ralib.kernels.figures import pose_sums
from ralib.runtime.compilers import Call
from ralib.types import Poses

AT_ONCE = 32
"""Particles of a call: as in an average and in a search, a multiple of those of a program."""


def average_calls(box: int) -> list[Call]:
    """Return the calls of class averages in a box, pixels, the first needed first."""
    return [partial(prefilter_zeros, box), partial(average_zeros, box), partial(figure_zeros, torch.float64)]


def prefilter_zeros(box: int, device: torch.device) -> None:
    """Prefilter an image of zeros: the first that an average does, and the longest to compile.

    Parameters
    ----------
    box : int
        Size of the image, pixels.
    device : torch.device
        The GPU.
    """
    interpolation_samples(torch.zeros(1, box, box, device=device))


def average_zeros(box: int, device: torch.device) -> None:
    """Add a few images of zeros to an average, and subtract them.

    Parameters
    ----------
    box : int
        Size of the images, pixels.
    device : torch.device
        The GPU.
    """
    zero = torch.zeros(AT_ONCE, device=device)
    poses = Poses(zero, torch.zeros(AT_ONCE, 2, device=device), zero > 0, zero.long(), zero)
    images = torch.zeros(AT_ONCE, box, box, device=device)
    for sign in (1, -1):
        ClassSums.empty(1, box, device, ctf=False).add_(images, poses, zero.long(), None, sign)


def figure_zeros(dtype: torch.dtype, device: torch.device) -> None:
    """Compute the figures of a few images of zeros.

    Parameters
    ----------
    dtype : torch.dtype
        Type of half averages.
    device : torch.device
        The GPU.
    """
    images, zero = torch.zeros(1, AT_ONCE, AT_ONCE, dtype=dtype, device=device), torch.zeros(AT_ONCE, device=device)
    frc(images, images)
    poses = Poses(zero, torch.zeros(AT_ONCE, 2, device=device), zero > 0, zero.long(), zero)
    pose_sums(poses.fields(), None, None, 1.0, 1)
