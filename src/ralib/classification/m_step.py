"""The M-step on the rings: weighted sums of posed particles, half averages, and Wiener regularisation by their SSNR."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ralib.classification.likelihood import ClassPoses, Spectra
from ralib.classification.memory_plan import AT_ONCE, STEP_BYTES, samples_at_once
from ralib.classification.ring_grid import RingGrid
from ralib.classification.sharding import Shard, quantum_anchor
from ralib.classification.stored_spectra import StoredSpectra
from ralib.images.fourier import filter_images, frequency_grid
from ralib.kernels.averages import correlated_share, half_products, wiener_averages
from ralib.kernels.classes import PosedParticles, PosedTerms, add_posed, posed_orders
from ralib.kernels.threads import on_cores, shares
from ralib.runtime.chunks import gpu_chunks, on_rows


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
    limits: Tensor,
    memory_bytes: float = STEP_BYTES,
    at_once: int = AT_ONCE,
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
    limits : Tensor of shape (2, R)
        From `sum_limits`.
    memory_bytes : float, default STEP_BYTES
        Memory of a step.
    at_once : int, default AT_ONCE
        Particles of a chunk on a GPU, at most.

    Returns
    -------
    RingSums
        The sums.
    """
    own = _Terms(grid, spectra, poses, class_index, weight, scale, half, n_classes, rings, n_orders, limits)
    on_cpu = grid.device.type == "cpu"
    sums = own.of_cpu() if on_cpu else own.of_gpu(min(at_once * len(weight), 8192), memory_bytes)
    return RingSums(sums[0].view(2, n_classes, rings, n_orders, 2), sums[1].view(2, n_classes, rings))


@dataclass(frozen=True)
class _Terms:
    """What `sum_classes` is given, and the sums (2 k, r * m * 2) and (2 k, r) of it, flat."""

    grid: RingGrid
    spectra: Spectra
    poses: ClassPoses
    class_index: Tensor
    weight: Tensor
    scale: Tensor
    half: Tensor
    n_classes: int
    rings: int
    n_orders: int
    limits: Tensor

    def of_cpu(self) -> tuple[Tensor, Tensor]:
        """Sums on a CPU: a candidate of no weight is no work, and cores share the others."""
        terms, rings = self._terms(), self.grid.rings(self.rings)

        def part(some: slice) -> tuple[Tensor, Tensor]:
            numerator, weight = self._none()
            sums = numerator.view(-1, self.rings, self.n_orders, 2), weight
            add_posed(self.spectra.data, self.spectra.power, terms.part(some), rings, sums)
            return numerator, weight

        total, power = self._none()
        for numerator, weight in on_cores(part, shares(len(terms.weight))):
            total, power = total + numerator, power + weight
        return total, power

    def _terms(self) -> PosedTerms:
        """The particles of any weight, candidate after candidate."""
        candidate, row = torch.nonzero(self.weight, as_tuple=True)
        tables = *self.poses.fields()[2:], self._to, self.weight, self.scale
        psi, origin, mirror, to, weight, scale = (table[candidate, row] for table in tables)
        numerator, power = quantum_anchor(self.limits[:, : self.rings])
        return PosedTerms(PosedParticles(row, origin, psi, mirror, to), weight, scale, (numerator, power))

    @property
    def _to(self) -> Tensor:
        """Number (c, b) of the sums that each particle is added to."""
        return self.half * self.n_classes + self.class_index

    def of_gpu(self, most: int, memory_bytes: float) -> tuple[Tensor, Tensor]:
        """Sums on a GPU: of all candidates together, in fewer and larger operations."""
        sums, n, count = self._none(), len(self.spectra), len(self.weight)
        chunk = max(16, samples_at_once(self.grid, self.rings, most, memory_bytes) // count)
        cuts = gpu_chunks(n, chunk, self.grid.device) if n else []
        factor = self.weight * self.scale
        tables = *self.poses.fields()[2:], self._to, factor, factor * self.scale
        for first, cut in zip(range(0, n, chunk), cuts, strict=True):
            part = [table[:, cut] for table in tables]
            if isinstance(cut, Tensor):  # what is repeated to fill the last chunk counts nothing
                for factors in part[-2:]:
                    factors[:, n - first :] = 0
            self._add(sums, cut, *(f.flatten(0, 1) for f in part))
        return sums

    def _none(self) -> tuple[Tensor, Tensor]:
        k, rings, device = 2 * self.n_classes, self.rings, self.grid.device
        numerator = torch.zeros(k, rings * self.n_orders * 2, dtype=torch.float64, device=device)
        return numerator, torch.zeros(k, rings, dtype=torch.float64, device=device)

    @cached_property
    def _anchors(self) -> tuple[Tensor, Tensor]:
        numerator, power = quantum_anchor(self.limits[:, : self.rings])
        return numerator[:, None].expand(-1, 2 * self.n_orders).flatten(), power

    def _add(
        self,
        sums: tuple[Tensor, Tensor],
        cut: slice | Tensor,
        psi_deg: Tensor,
        origin_xy_px: Tensor,
        mirror: Tensor,
        to: Tensor,
        factor: Tensor,
        power_factor: Tensor,
    ) -> None:
        """Add some particles b, of each candidate class one after another: tables (c * b,)."""
        grid, rings, count = self.grid, self.rings, len(self.weight)
        data, own_power = self.spectra.data[cut, :rings], self.spectra.power[cut, :rings]
        moved = data * grid.phase(origin_xy_px, rings).unflatten(0, (count, -1))
        posed = posed_orders(grid.orders_of(moved.flatten(0, 1), self.n_orders), psi_deg, mirror)
        terms = torch.view_as_real(posed).flatten(1) * factor[:, None]
        terms_power = (own_power * power_factor.view(count, -1, 1)).flatten(0, 1)
        for total, values, anchor in zip(sums, (terms, terms_power), self._anchors, strict=True):
            total.index_add_(0, to, (anchor + values).sub_(anchor))  # float64, as the anchor is


def sum_limits(grid: RingGrid, spectra: Spectra | StoredSpectra, weight: Tensor, scale: Tensor, shard: Shard) -> Tensor:
    """Return upper bounds of the sums of `sum_classes` on each ring.

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
        Bounds of the numerators, and of the weights.
    """
    factor = weight * scale
    heaviest, largest = factor.amax(0)[:, None], (factor * scale).amax(0)[:, None]
    # An angular order is a mean over angles: no larger than the root of the mean square.
    amplitude = torch.sqrt(spectra.energy / grid.n_half) * heaviest
    bound = shard.largest(torch.stack([amplitude, spectra.power * largest], dim=1))
    return bound * (shard.n * len(weight) * 1.01)


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
