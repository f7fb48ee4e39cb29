"""What is done with class averages after they were summed.

`reference` describes it; the names below run the Triton form on a GPU, and the plain form on a CPU.
"""

from __future__ import annotations

from torch import Tensor

from ralib.kernels import implementation
from ralib.kernels.averages.reference import AllParticles, Waves, smoothed

__all__ = [
    "Waves",
    "centred_origins",
    "circle_spectra",
    "correlated_share",
    "half_circle",
    "half_products",
    "quarter_circle",
    "quarter_pixels",
    "ring_power",
    "smoothed",
    "whole_images",
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


def quarter_pixels(images: Tensor, pixel: Tensor, share: Tensor) -> Waves:
    """Add up the pixels that share their waves; see `reference.quarter_pixels`."""
    parts: Waves = implementation("averages", images).quarter_pixels(images, pixel, share)
    return parts


def half_circle(waves: Waves, rings: int) -> Tensor:
    """Compute samples of the half circle from those up to pi / 2; see `reference.half_circle`."""
    samples: Tensor = implementation("averages", *waves).half_circle(waves, rings)
    return samples


def quarter_circle(samples: Tensor) -> Waves:
    """Add up samples at the angles phi and pi - phi; see `reference.quarter_circle`."""
    parts: Waves = implementation("averages", samples).quarter_circle(samples)
    return parts


def whole_images(waves: Waves, pixel: Tensor, box: int) -> Tensor:
    """Compute images from a quarter of their pixels; see `reference.whole_images`."""
    images: Tensor = implementation("averages", *waves).whole_images(waves, pixel, box)
    return images
