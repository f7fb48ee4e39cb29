"""From class averages to the next references: low-pass filter by the FRC, centring, mask; or a user's function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.conventions import mirror_x, rotate_xy
from ralib.images.array_interop import as_tensor
from ralib.images.centering import center_shift
from ralib.images.fourier import (
    filter_images,
    low_pass,
    ring_counts,
    ring_sums,
    shift_images,
    spread_rings,
    tanh_low_pass,
)
from ralib.images.masks import soft_disc
from ralib.images.normalise import usable_images
from ralib.kernels.complex_numbers import squared
from ralib.kernels.references import nearest_filter
from ralib.types import ClassAverages, Poses, RalibError

UserFunction = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]
MASK_EDGE_PX = 3.0


@dataclass(frozen=True)
class ReferencePlan:
    """How class averages become the next references.

    Attributes
    ----------
    mask : Tensor of shape (n, n)
        Soft mask, 1 where the particle is.
    center : int
        SPARX's centring method, -1 to 7; see `ralib.images.centering`.
    outer_radius : float
        Radius of the mask, pixels.
    cutoff_range : tuple of float, default (0.1, 0.45)
        Range of the low-pass cut-off, cycles per pixel.
    max_falloff : float, default 0.2
        Largest fall-off of the low-pass filter.
    center_reference : Tensor of shape (n, n), optional
        Reference of centring method 4.
    fourier_variance : bool, default False
        Whether to weight every ring by one over its noise (SPARX's `--Fourvar`) before the low-pass.
    """

    mask: Tensor
    center: int
    outer_radius: float
    cutoff_range: tuple[float, float] = (0.1, 0.45)
    max_falloff: float = 0.2
    center_reference: Tensor | None = None
    fourier_variance: bool = False


def shift_limit_px(box: int, outer_radius: float) -> float:
    """Return how far a disc may move from the centre and stay inside the box, at least one pixel as in SPARX.

    Parameters
    ----------
    box : int
        Image size, pixels.
    outer_radius : float
        Radius of the disc, pixels.

    Returns
    -------
    float
        Pixels.
    """
    return max(1.0, box // 2 - 1 - outer_radius)


def prepare_references(
    averages: ClassAverages, plan: ReferencePlan, poses: Poses, largest_shift_px: float
) -> tuple[Tensor, Tensor]:
    """Make the references of the next iteration: low-pass filter by the FRC, centre, mask.

    An average is moved only as far as the mean shift of its members stays within `largest_shift_px`, over any number of
    iterations: beyond that its disc, or its members', would leave the box.

    Parameters
    ----------
    averages : ClassAverages
        Class averages with their FRC.
    plan : ReferencePlan
        What to do.
    poses : Poses
        Poses of all particles.
    largest_shift_px : float
        Largest mean shift of a class's members, pixels.

    Returns
    -------
    Tensor of shape (k, n, n)
        References.
    Tensor of shape (k, 2)
        Shift that centred each of them, pixels.
    """
    if averages.frc is None:
        raise ValueError("references need the averages' FRC")
    images = averages.images
    if plan.fourier_variance:
        images = _divide_by_noise(averages)
    images = low_pass(images, *fit_low_pass(averages.frc, plan.cutoff_range, plan.max_falloff))
    if plan.center == 0:
        return images * plan.mask, torch.zeros(len(images), 2, device=images.device)
    mean = mean_member_shift(poses, len(images)).to(images.device)
    off = mean if plan.center == -1 else _off_centre(images * plan.mask, plan, largest_shift_px)
    move = limit_shift(mean - off, largest_shift_px) - mean
    move = torch.where((averages.members > 0)[:, None], move, 0.0).float()
    return shift_images(images, move) * plan.mask, move


def limit_shift(shift_xy_px: Tensor, limit_px: float) -> Tensor:
    """Shorten shifts to a limit, keeping their direction.

    Parameters
    ----------
    shift_xy_px : Tensor of shape (k, 2)
        Shifts, pixels.
    limit_px : float
        Largest length, pixels.

    Returns
    -------
    Tensor of shape (k, 2)
        Shifts.
    """
    length = torch.linalg.vector_norm(shift_xy_px, dim=-1, keepdim=True)
    return shift_xy_px * (limit_px / length.clamp_min(max(limit_px, 1e-6)))


def _off_centre(images: Tensor, plan: ReferencePlan, largest_shift_px: float) -> Tensor:
    """How far (k, 2) each average lies from the centre, by the method of the plan."""
    shift = center_shift(
        images,
        plan.center,
        search_range_px=-1 if plan.center in (1, 6) else 2 * max(1, round(largest_shift_px)) + 1,
        inner_radius_px=plan.outer_radius / 3,
        outer_radius_px=plan.outer_radius / 2,
        reference=plan.mask if plan.center_reference is None else plan.center_reference,
    )
    return shift.to(images)


def mean_member_shift(poses: Poses, n_classes: int) -> Tensor:
    """Compute the mean shift of each class's members in the class frame.

    Parameters
    ----------
    poses : Poses
        Poses of all particles.
    n_classes : int
        Number of classes k.

    Returns
    -------
    Tensor of shape (k, 2)
        Mean shift, pixels; 0 for an empty class.
    """
    shift = mirror_x(rotate_xy(poses.psi_deg, poses.origin_xy_px), poses.mirror)
    one = torch.ones_like(shift[:, :1])
    # In float64 the order in which a GPU adds leaves no trace in the float32 result. Row 0 takes those of no class.
    total = torch.zeros(1 + n_classes, 3, dtype=torch.float64, device=shift.device)
    total.index_add_(0, 1 + poses.class_index, torch.cat([shift, one], dim=1).double())
    return (total[1:, :2] / total[1:, 2:].clamp_min(1)).float()


def _divide_by_noise(averages: ClassAverages) -> Tensor:
    """Averages with every ring divided by the noise amplitude there, measured on the difference of the halves."""
    if averages.half_images is None:
        raise ValueError("weighting by the Fourier variance needs half averages")
    box = averages.images.shape[-1]
    difference = squared(torch.fft.rfft2(averages.half_images[0] - averages.half_images[1]))
    noise = ring_sums(difference) / ring_counts(box, difference.device)
    weight = spread_rings(noise.clamp_min(1e-12).rsqrt(), box).float()
    return filter_images(averages.images, weight)


def fit_low_pass(curve: Tensor, cutoff_range: tuple[float, float], max_falloff: float) -> tuple[Tensor, Tensor]:
    """Fit the tanh low-pass filter closest to each FRC curve, by least squares.

    Where a curve counts is told by `ralib.kernels.references.reference.nearest_filter`. A search among all of a grid
    replaces SPARX's simplex, which may end in a local minimum.

    Parameters
    ----------
    curve : Tensor of shape (k, r)
        FRC curves.
    cutoff_range : tuple of float
        Range of the cut-off, cycles per pixel.
    max_falloff : float
        Largest fall-off.

    Returns
    -------
    Tensor of shape (k,)
        Cut-offs, cycles per pixel.
    Tensor of shape (k,)
        Fall-offs.
    """
    grid, filters = _filters(curve.shape[-1], cutoff_range, max_falloff, curve.device)
    cutoff, falloff = grid[nearest_filter(curve, filters)].unbind(1)
    return cutoff, falloff


@functools.lru_cache(maxsize=4)
def _filters(
    rings: int, cutoff_range: tuple[float, float], max_falloff: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cut-offs and fall-offs (f, 2) to choose from, and their filters (f, rings)."""
    frequency = torch.linspace(0, 0.5, rings, device=device)
    cutoffs = torch.linspace(*cutoff_range, 81, device=device)
    falloffs = torch.linspace(0.05, max_falloff, 8, device=device)
    grid = torch.cartesian_prod(cutoffs, falloffs)
    return grid, tanh_low_pass(frequency, grid[:, :1], grid[:, 1:])


def reference_mask(mask: np.ndarray | Tensor | None, box: int, outer_radius: float, device: torch.device) -> Tensor:
    """Return the mask of the averages: the one given, checked, or a soft disc.

    Parameters
    ----------
    mask : ndarray, Tensor of shape (n, n) or None
        The mask given, or None.
    box : int
        Image size n, pixels.
    outer_radius : float
        Radius of the soft disc, pixels.
    device : torch.device
        Where the result is.

    Returns
    -------
    Tensor of shape (n, n)
        The mask.

    Raises
    ------
    RalibError
        If the mask has another size or is zero everywhere.
    """
    if mask is None:
        return soft_disc(box, outer_radius, MASK_EDGE_PX, device=device)
    tensor = as_tensor(mask, "the mask").detach().to(device, torch.float32).squeeze()
    if tensor.shape != (box, box):
        raise RalibError(
            f"the mask is {tuple(tensor.shape)} px, the particles {box} px: make one of the particles' box"
        )
    if not float(tensor.abs().sum()) > 0:
        raise RalibError("the mask is zero everywhere: nothing would be left to align")
    return tensor


def user_references(function: UserFunction, averages: ClassAverages, plan: ReferencePlan) -> tuple[Tensor, Tensor]:
    """Make references by the user's function (average, mask, frc) -> reference or (reference, (dx, dy)).

    Parameters
    ----------
    function : UserFunction
        The user's function of NumPy arrays.
    averages : ClassAverages
        Class averages.
    plan : ReferencePlan
        For its mask.

    Returns
    -------
    Tensor of shape (k, n, n)
        References.
    Tensor of shape (k, 2)
        Shifts that the function reports, pixels; 0 by default.

    Raises
    ------
    RalibError
        If the function fails or returns something else.
    """
    mask = plan.mask.cpu().numpy()
    references, moves = [], []
    curves = averages.frc if averages.frc is not None else torch.zeros(len(averages.images), 1)
    for k, (image, curve) in enumerate(zip(averages.images.cpu().numpy(), curves.cpu().numpy(), strict=True)):
        try:
            answer = function(image.copy(), mask.copy(), curve.copy())
            reference, move = answer if isinstance(answer, tuple) else (answer, (0.0, 0.0))
            reference = np.asarray(reference, dtype=np.float32)
            moves.append([float(move[0]), float(move[1])])
        except Exception as error:  # whatever the user's code raises is the user's to mend
            raise RalibError(f"`user_function` failed on class {k + 1}: {type(error).__name__}: {error}") from error
        if reference.shape != image.shape or not np.isfinite(reference).all():
            raise RalibError(
                f"`user_function` returned {reference.shape} values, finite or not, for class {k + 1}: "
                f"it must return a finite image of {image.shape}"
            )
        references.append(torch.from_numpy(reference))
    device = averages.images.device
    return torch.stack(references).to(device), torch.tensor(moves, device=device)


def given_references(references: np.ndarray | Tensor, box: int, device: torch.device) -> Tensor:
    """Check references that the user gives.

    Parameters
    ----------
    references : ndarray or Tensor of shape (k, n, n)
        References.
    box : int
        Image size of the particles, pixels.
    device : torch.device
        Where the result is.

    Returns
    -------
    Tensor of shape (k, n, n)
        References, finite and none of them constant.

    Raises
    ------
    RalibError
        If they are not images of the particles' box.
    """
    images = as_tensor(references, "`references`").detach().to(device, torch.float32)
    if images.ndim == 2:
        images = images[None]
    if images.ndim != 3 or images.shape[-1] != images.shape[-2]:
        raise RalibError(f"references must be square images (k, box, box), not of shape {tuple(images.shape)}")
    if images.shape[-1] != box:
        raise RalibError(
            f"particles are {box} px, references {images.shape[-1]} px: bring one to the other's box with "
            "'ralib prepare --box'"
        )
    if len(images) == 0:
        raise RalibError("the reference stack is empty: give at least one image")
    bad = ~usable_images(images)
    if bool(bad.any()):
        raise RalibError(f"reference {int(bad.int().argmax()) + 1} is constant or not finite: leave it out")
    return images
