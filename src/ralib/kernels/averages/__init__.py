"""What is done with class averages after they were summed.

`reference` describes it; the names below run the Triton form on a GPU, and the plain form on a CPU.
"""

from __future__ import annotations

from torch import Tensor

from ralib.kernels import implementation
from ralib.kernels.averages.reference import AllParticles, smoothed

__all__ = [
    "centred_origins",
    "circle_spectra",
    "correlated_share",
    "half_products",
    "ring_power",
    "smoothed",
    "wiener_averages",
]


def ring_power(orders: Tensor) -> Tensor:
    """Return the mean over angles of |A|^2, (k, r), of angular orders (k, r, m); see `reference.ring_power`."""
    power: Tensor = implementation("averages", orders).ring_power(orders)
    return power


def wiener_averages(
    numerator: Tensor, weight: Tensor, members: Tensor, ring_weight: Tensor, half_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute regularised averages, their halves, FRC and gain; see `reference.wiener_averages`."""
    form = implementation("averages", numerator)
    found: tuple[Tensor, Tensor, Tensor, Tensor] = form.wiener_averages(
        numerator, weight, members, ring_weight, half_weight
    )
    return found


def half_products(first: Tensor, second: Tensor) -> Tensor:
    """Return the product and the mean square of half averages; see `reference.half_products`."""
    products: Tensor = implementation("averages", first, second).half_products(first, second)
    return products


def correlated_share(common: Tensor, power: Tensor) -> Tensor:
    """Return the share of signal where halves correlate; see `reference.correlated_share`."""
    share: Tensor = implementation("averages", common, power).correlated_share(common, power)
    return share


def centred_origins(
    pose: tuple[Tensor, Tensor, Tensor], usable: Tensor, class_index: Tensor, members: Tensor, particles: AllParticles
) -> tuple[Tensor, Tensor]:
    """Compute the shifts that centre classes, and their members' origins; see `reference.centred_origins`."""
    form = implementation("averages", pose[0])
    found: tuple[Tensor, Tensor] = form.centred_origins(pose, usable, class_index, members, particles)
    return found


def circle_spectra(orders: Tensor, n_half: int) -> Tensor:
    """Return Fourier coefficients of whole circles from angular orders; see `reference.circle_spectra`."""
    spectra: Tensor = implementation("averages", orders).circle_spectra(orders, n_half)
    return spectra
