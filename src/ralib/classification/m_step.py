"""The M-step on the rings: weighted sums of posed particles, half averages, and Wiener regularisation by their SSNR."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ralib.classification.likelihood import ClassPoses, Spectra
from ralib.classification.memory_plan import PARTICLES_AT_ONCE, STEP_BYTES, samples_at_once
from ralib.classification.ring_grid import RingGrid
from ralib.classification.sharding import Shard, quantum_anchor
from ralib.classification.stored_spectra import StoredSpectra
from ralib.images.fourier import filter_images, frequency_grid
from ralib.kernels.averages import correlated_share, half_products, wiener_averages
from ralib.kernels.classes import PosedParticles, PosedTerms, add_posed, sum_bounds
from ralib.kernels.threads import on_cores, shares
from ralib.runtime.chunks import on_gpu, on_rows

TERMS_AT_ONCE = 8192
"""Posed particles that a GPU adds at once, at most."""


@dataclass(frozen=True)
class RingSums:
    """Sums over the members of each class, in two halves.

    Attributes
    ----------
    numerator : Tensor of shape (2, k, r, m, 2)
        Float64 sum of w a CTF F / sigma^2 in the class frame, as angular orders; w is a ring's weight in sums over the
        plane.
    weight : Tensor of shape (2, k, r)
        Float64 sum of w H a^2 CTF^2 / sigma^2, for H angles.
    """

    numerator: Tensor
    weight: Tensor

    def plus(self, other: RingSums) -> RingSums:
        """Return the sums over these particles and others, exactly: see `in_quanta`."""
        return RingSums(self.numerator + other.numerator, self.weight + other.weight)


@dataclass(frozen=True)
class RingAverages:
    """Class averages on the rings.

    Attributes
    ----------
    orders : Tensor of shape (k, r, m)
        Angular orders.
    halves : Tensor of shape (2, k, r, m)
        Angular orders of the half averages.
    frc : Tensor of shape (k, r)
        FRC of the halves.
    gain : Tensor of shape (k, r)
        Factor of the sums, and so the share of each particle.
    signal : Tensor of shape (k, n, n), optional
        What of each counts as signal, where that is known already; see `Model.mask`.
    """

    orders: Tensor
    halves: Tensor
    frc: Tensor
    gain: Tensor
    signal: Tensor | None = None

    def restricted(self, keep: Tensor) -> RingAverages:
        """Return the averages of some classes, by their numbers (m,)."""
        signal = None if self.signal is None else self.signal[keep]
        return RingAverages(self.orders[keep], self.halves[:, keep], self.frc[keep], self.gain[keep], signal)


def sum_classes(
    grid: RingGrid,
    spectra: Spectra,
    poses: ClassPoses,
    class_index: Tensor,
    weight: Tensor,
    scale: Tensor,
    half: Tensor,
    *,
    n_classes: int,
    rings: int,
    n_orders: int,
    anchors: Tensor,
    memory_bytes: float = STEP_BYTES,
    at_once: int = PARTICLES_AT_ONCE,
) -> RingSums:
    """Add every particle of this rank to its candidate classes.

    Sums are float64, of terms so rounded that neither order nor chunks change a bit.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    spectra : Spectra
        Spectra of b particles.
    poses : ClassPoses
        Poses, fields (c, b) for c candidate classes.
    class_index : Tensor of shape (c, b)
        Classes.
    weight : Tensor of shape (c, b)
        Responsibilities.
    scale : Tensor of shape (c, b)
        Contrasts.
    half : Tensor of shape (b,)
        Half data set of each particle, 0 or 1.
    n_classes : int
        Number of classes k.
    rings : int
        Number of rings.
    n_orders : int
        Number of angular orders.
    anchors : Tensor of shape (2, R)
        From `sum_anchors`.
    memory_bytes : float, default STEP_BYTES
        Memory of a step.
    at_once : int, default PARTICLES_AT_ONCE
        Particles of a chunk on a GPU, at most.

    Returns
    -------
    RingSums
        The sums.
    """
    terms = _terms(poses, half * n_classes + class_index, weight, scale, anchors[:, :rings])
    most = samples_at_once(grid, rings, min(at_once * len(weight), TERMS_AT_ONCE), memory_bytes)

    def part(some: slice) -> tuple[Tensor, Tensor]:
        numerator = torch.zeros(2 * n_classes, rings, n_orders, 2, dtype=torch.float64, device=weight.device)
        power = numerator.new_zeros(2 * n_classes, rings)
        add_posed(spectra.data, spectra.power, terms.part(some), grid.rings(rings), (numerator, power), most)
        return numerator, power

    # Cores of a CPU share the terms, each with sums of its own.
    n = max(1, len(terms.weight))
    parts = [part(slice(n))] if on_gpu(weight) else on_cores(part, shares(n))
    numerator, power = (functools.reduce(torch.add, sums) for sums in zip(*parts, strict=True))
    return RingSums(numerator.unflatten(0, (2, n_classes)), power.unflatten(0, (2, n_classes)))


def _terms(poses: ClassPoses, to: Tensor, weight: Tensor, scale: Tensor, anchors: Tensor) -> PosedTerms:
    """The particles that are added, candidate after candidate: on a CPU those of any weight.

    A GPU, which would have to wait for their number, is given all; those of no weight it leaves out itself.
    """
    tables = *poses.fields()[2:], to, weight, scale
    if on_gpu(weight):
        row = torch.arange(weight.shape[1], device=weight.device).repeat(len(weight))
        psi, origin, mirror, to, weight, scale = (table.flatten(0, 1) for table in tables)
    else:
        candidate, row = torch.nonzero(weight, as_tuple=True)
        psi, origin, mirror, to, weight, scale = (table[candidate, row] for table in tables)
    return PosedTerms(PosedParticles(row, origin, psi, mirror, to), weight, scale, anchors)


def sum_anchors(
    grid: RingGrid, spectra: Spectra | StoredSpectra, weight: Tensor, scale: Tensor, shard: Shard
) -> Tensor:
    """Return what rounds the terms of `sum_classes` to quanta; see `ralib.classification.sharding.quantum_anchor`.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    spectra : Spectra or StoredSpectra
        Spectra of this rank's particles.
    weight : Tensor of shape (c, b)
        Responsibilities of c candidate classes.
    scale : Tensor of shape (c, b)
        Contrasts.
    shard : Shard
        Which of all particles these are.

    Returns
    -------
    Tensor of shape (2, R)
        Anchors of the numerators, and of the weights, float64.
    """
    bounds = shard.ranks.all_max_(sum_bounds(spectra.energy, spectra.power, weight, scale, grid.n_half))
    return quantum_anchor(bounds * (shard.n * len(weight) * 1.01))


def average_classes(grid: RingGrid, sums: RingSums, members: Tensor) -> RingAverages:
    """Compute Wiener averages; see `ralib.kernels.averages.reference.wiener_averages`.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    sums : RingSums
        Sums over the members.
    members : Tensor of shape (k,)
        Number of members.

    Returns
    -------
    RingAverages
        The averages.
    """
    rings = sums.weight.shape[-1]
    weights = grid.weight[:rings], grid.half_weight[:rings]
    return RingAverages(*wiener_averages(sums.numerator, sums.weight, members, *weights))


def signal_share(grid: RingGrid, halves: Tensor, blur_px: float) -> Tensor:
    """Compute the share of signal in class averages at each pixel, from the local correlation of their halves.

    The correlation c in a Gaussian window gives 2 c / (1 + c), the Wiener weight of the average of both halves. A
    particle fills its mask in no view; the rest is noise, which is removed from a reference.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    halves : Tensor of shape (2, k, r, m)
        Angular orders of the half averages.
    blur_px : float
        Standard deviation of the window, pixels.

    Returns
    -------
    Tensor of shape (k, n, n)
        Share, 0 to 1.
    """
    images = grid.image_of_orders(halves.flatten(0, 1)).unflatten(0, halves.shape[:2])

    def share(of_classes: Tensor) -> Tensor:
        return correlated_share(*_blurred(half_products(*of_classes.unbind(1)), blur_px))

    return on_rows(share, images.transpose(0, 1), most=4)


def _blurred(images: Tensor, sd_px: float) -> Tensor:
    return filter_images(images, _gaussian(images.shape[-1], sd_px, images.device))


@functools.lru_cache(maxsize=4)
def _gaussian(box: int, sd_px: float, device: torch.device) -> Tensor:
    kx, ky = frequency_grid(box, device=device)
    return torch.exp(-2 * (math.pi * sd_px) ** 2 * (kx.square() + ky.square()))


def masked_references(grid: RingGrid, orders: Tensor, mask: Tensor, rings: int, n_orders: int) -> Tensor:
    """Multiply class averages by their masks.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    orders : Tensor of shape (k, R, m)
        Angular orders of the averages.
    mask : Tensor of shape (k, n, n)
        Masks.
    rings : int
        Number of rings of the result.
    n_orders : int
        Number of angular orders of the result.

    Returns
    -------
    Tensor of shape (k, rings, n_orders)
        Angular orders.
    """
    return grid.orders_of_image(grid.image_of_orders(orders) * mask, rings, n_orders)
