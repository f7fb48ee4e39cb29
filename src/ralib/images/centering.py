"""SPARX's methods to centre an average (`utilities.center_2D`), for batches of images (k, n, n).

The methods, by number:

- 0: none
- 1: centre of gravity by phase approximation
- 2: correlation with a Gaussian
- 3: correlation with a ring (a wide less a narrow Gaussian)
- 4: correlation with a given reference (the mask, in `ref_ali2d`)
- 5: correlation with the image's own rotational average
- 6: as 1, of the pixels brighter than mean + sigma
- 7: correlation of a binary image with the reference

Each measures how far the object lies from pixel (n // 2, n // 2), and `center_2D` moves it there. Method -1, the
average of the particles' shifts, needs poses rather than an image: see `ralib.alignment.references.mean_member_shift`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ralib.images.fourier import fshift
from ralib.images.masks import model_circle, statistics_under
from ralib.types import RalibError

METHODS = tuple(range(8))


def center_2D(
    images: Tensor,
    method: int = 1,
    *,
    search_range_px: float = -1,
    inner_radius_px: float = 2.0,
    outer_radius_px: float = 7.0,
    reference: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Centre images by one of SPARX's methods.

    Parameters
    ----------
    images : Tensor of shape (k, n, n)
        Images to centre.
    method, search_range_px, inner_radius_px, outer_radius_px, reference : as in `center_shift`
        The method and its options.

    Returns
    -------
    Tensor of shape (k, n, n)
        The centred images.
    Tensor of shape (k, 2)
        Offset (x, y) from the centre that was removed, pixels.

    Raises
    ------
    RalibError
        If the images are not square, the method is unknown, or its reference is missing.
    """
    shift = center_shift(
        images,
        method,
        search_range_px=search_range_px,
        inner_radius_px=inner_radius_px,
        outer_radius_px=outer_radius_px,
        reference=reference,
    )
    if method == 0:
        return images, shift
    if method == 7:
        return _roll(images, -shift.long()), shift
    return fshift(images, -shift), shift


def center_shift(
    images: Tensor,
    method: int,
    *,
    search_range_px: float = -1,
    inner_radius_px: float = 2.0,
    outer_radius_px: float = 7.0,
    reference: Tensor | None = None,
) -> Tensor:
    """Measure how far each image is off centre.

    Parameters
    ----------
    images : Tensor of shape (k, n, n)
        Images to measure.
    method : int
        Number of the method, 0 to 7; see the module's list.
    search_range_px : float, default -1
        Above 0, a phase shift larger than this counts as none, and a correlation is searched in a window of this width.
        -1 means no limit.
    inner_radius_px : float, default 2.0
        Standard deviation of the (narrow) Gaussian of methods 2 and 3, pixels.
    outer_radius_px : float, default 7.0
        Standard deviation of the wide Gaussian of method 3, pixels.
    reference : Tensor of shape (n, n), optional
        Reference of methods 4 and 7.

    Returns
    -------
    Tensor of shape (k, 2)
        Offset (x, y) from pixel (n // 2, n // 2), pixels.

    Raises
    ------
    RalibError
        If the images are not square, the method is unknown, or its reference is missing.
    """
    if images.ndim != 3 or images.shape[-1] != images.shape[-2]:
        raise RalibError(f"centring takes square images (k, n, n), not {tuple(images.shape)}")
    if method not in METHODS:
        raise RalibError(f"`center` {method} is not a method of SPARX: choose -1 (average shift) or 0 to 7")
    n = images.shape[-1]
    if method == 0:
        return torch.zeros(len(images), 2, dtype=torch.float64, device=images.device)
    if method == 1:
        return _limited(phase_cog(images), search_range_px)
    if method == 5:
        return _self_rotated_shift(images, search_range_px)
    if method == 6:
        return _limited(phase_cog(_above_threshold(images)), search_range_px)
    if method == 2:
        reference = _gaussian(inner_radius_px, n, images.device)
    elif method == 3:
        reference = _gaussian(outer_radius_px, n, images.device) - _gaussian(inner_radius_px, n, images.device)
    elif reference is None or reference.shape[-2:] != images.shape[-2:]:
        raise RalibError(f"`center` {method} correlates with a reference of {n} px: give one of that size")
    if method == 7:
        return _binary_shift(images, reference, search_range_px)
    # SPARX windows here from a range above 1, elsewhere from above 0.
    return peak_shift(ccf(images, reference), search_range_px if search_range_px > 1 else -1)


def phase_cog(images: Tensor) -> Tensor:
    """Return centres of gravity (k, 2), from n // 2, by the phase of each projection's first Fourier coefficient."""
    n = images.shape[-1]
    angle = 2.0 * math.pi / n * torch.arange(n, device=images.device, dtype=torch.float64)
    wave = torch.polar(torch.ones_like(angle), angle)

    def centre(profile: Tensor) -> Tensor:
        turn = torch.angle((profile.double() * wave).sum(dim=-1))
        return torch.where(turn < 0, turn + 2.0 * math.pi, turn) * n / (2.0 * math.pi) - n // 2

    return torch.stack([centre(images.sum(dim=-2)), centre(images.sum(dim=-1))], dim=-1)


def ccf(images: Tensor, reference: Tensor) -> Tensor:
    """Compute the circulant cross-correlation with its origin at pixel (n // 2, n // 2).

    Parameters
    ----------
    images : Tensor of shape (k, n, n)
        Images.
    reference : Tensor of shape (n, n) or (k, n, n)
        What they are correlated with.

    Returns
    -------
    Tensor of shape (k, n, n)
        Correlation maps.
    """
    spectrum = torch.fft.rfft2(images) * torch.fft.rfft2(reference.to(images.dtype)).conj()
    correlation = torch.fft.irfft2(spectrum, s=images.shape[-2:])
    return torch.fft.fftshift(correlation, dim=(-2, -1))


def scf(images: Tensor) -> Tensor:
    """Compute EMAN2's circulant self-correlation (k, n, n): the transform of the amplitudes, origin at the centre."""
    amplitude = torch.fft.rfft2(images).abs()
    return torch.fft.fftshift(torch.fft.irfft2(amplitude, s=images.shape[-2:]), dim=(-2, -1))


def peak_shift(correlation: Tensor, window_px: float = -1) -> Tensor:
    """Locate the highest peak of correlation maps.

    Parameters
    ----------
    correlation : Tensor of shape (k, n, n)
        Maps with their origin at pixel (n // 2, n // 2).
    window_px : float, default -1
        Width of the central window that is searched, pixels; -1 searches everything.

    Returns
    -------
    Tensor of shape (k, 2)
        Peak position (x, y) from the origin, pixels; (0, 0) for a flat map.
    """
    if window_px > 0:
        correlation = window(correlation, int(window_px))
    n = correlation.shape[-1]
    # The highest pixel is the highest of SPARX's strict local maxima too; a flat map has none and shifts nothing.
    index = correlation.flatten(1).argmax(dim=1)
    flat = correlation.flatten(1).std(dim=1) == 0
    shift = torch.stack([index % n - n // 2, torch.div(index, n, rounding_mode="floor") - n // 2], dim=-1).double()
    return torch.where(flat[:, None], torch.zeros_like(shift), shift)


def window(images: Tensor, size: int) -> Tensor:
    """Cut out the central part of images.

    Parameters
    ----------
    images : Tensor of shape (..., n, n)
        Images.
    size : int
        Width of the part, pixels.

    Returns
    -------
    Tensor of shape (..., size, size)
        The part; the centre stays at size // 2.
    """
    start = images.shape[-1] // 2 - size // 2
    return images[..., start : start + size, start : start + size]


def rot_avg_image(images: Tensor) -> Tensor:
    """Replace each image (k, n, n) by its rotational average (`EMData::rotavg_i`), constant beyond n // 2 pixels."""
    n = images.shape[-1]
    axis = torch.arange(n, device=images.device, dtype=torch.float32) - n // 2
    radius = torch.sqrt(axis[:, None] ** 2 + axis[None, :] ** 2).double()
    index = radius.long()
    largest = n // 2 + n % 2
    inside = index < largest
    ring, part = index[inside], (radius - index)[inside]
    values = images[:, inside].double()
    total = torch.zeros(len(images), largest + 1, dtype=torch.float64, device=images.device)
    total.index_add_(1, ring, values * (1 - part)).index_add_(1, ring + 1, values * part)
    count = torch.zeros(largest + 1, dtype=torch.float64, device=images.device)
    count.index_add_(0, ring, 1 - part).index_add_(0, ring + 1, part)
    profile = total / count.clamp_min(1.0)
    rim = index[(index <= largest) & (index >= largest - 2)]
    beyond = profile[:, rim].mean(dim=1)[:, None, None]
    index = index.clamp_max(largest - 1)
    low, high = profile[:, index], profile[:, index + 1]
    return torch.where(inside, low + (high - low) * (radius - index), beyond).to(images.dtype)


def _self_rotated_shift(images: Tensor, search_range_px: float) -> Tensor:
    """Method 5: shift onto the image's own rotational average until it moves by less than a pixel."""
    total = torch.zeros(len(images), 2, dtype=torch.float64, device=images.device)
    moved = images
    for _ in range(images.shape[-1]):  # SPARX has no limit here and can hang on an image that swings
        step = torch.cat([peak_shift(ccf(m[None], rot_avg_image(m[None])), search_range_px) for m in moved])
        total = total + step
        if bool((torch.linalg.vector_norm(step, dim=-1) < 1.0).all()):
            break
        moved = fshift(moved, -step)
    return total


def _above_threshold(images: Tensor) -> Tensor:
    """Pixels above mean + sigma inside the largest circle; the rest at that threshold (threshold_to_minval)."""
    n = images.shape[-1]
    mean, sigma = statistics_under(images, model_circle(n // 2 - 2, n, images.device))
    return torch.maximum(images, (mean + sigma).to(images.dtype)[:, None, None])


def _binary_shift(images: Tensor, reference: Tensor, search_range_px: float) -> Tensor:
    """Method 7: the bright pixels, smoothed and made binary, correlated with the reference; whole pixels."""
    mean, sigma = images.double().mean(dim=(1, 2)), images.double().std(dim=(1, 2))
    bright = (images > (mean + sigma)[:, None, None]).to(images.dtype)
    padded = torch.nn.functional.pad(bright[:, None], (2, 2, 2, 2), mode="circular")
    smooth = torch.nn.functional.avg_pool2d(padded, 5, stride=1)[:, 0]
    overlap = ccf((smooth > 0.5).to(images.dtype), reference)
    # Overlaps are whole numbers, so many pixels share the best: SPARX takes the floor of their mean.
    best = (overlap >= overlap.amax(dim=(1, 2), keepdim=True) - 0.5).double()
    axis = torch.arange(images.shape[-1], device=images.device, dtype=torch.float64) - images.shape[-1] // 2
    total = torch.stack([(best * axis).sum(dim=(1, 2)), (best * axis[:, None]).sum(dim=(1, 2))], dim=-1)
    return _limited(torch.floor(total / best.sum(dim=(1, 2))[:, None]), search_range_px)


def _gaussian(sigma_px: float, n: int, device: torch.device) -> Tensor:
    """A Gaussian of height one at the centre."""
    axis = torch.arange(n, device=device, dtype=torch.float64) - n // 2
    profile = torch.exp(-0.5 * (axis / sigma_px) ** 2)
    return profile[:, None] * profile[None, :]


def _limited(shift: Tensor, search_range_px: float) -> Tensor:
    """Shifts with each coordinate beyond the range set to zero, as SPARX does (it does not clip)."""
    if search_range_px <= 0:
        return shift
    return torch.where(shift.abs() > search_range_px, torch.zeros_like(shift), shift)


def _roll(images: Tensor, shift: Tensor) -> Tensor:
    return torch.stack(
        [torch.roll(m, (int(y), int(x)), dims=(0, 1)) for m, (x, y) in zip(images, shift.tolist(), strict=True)]
    )


def centre_of_mass(images: Tensor, mask: Tensor) -> Tensor:
    """Compute the centre of the density above a third of the maximum inside a mask, dark or bright.

    Parameters
    ----------
    images : Tensor of shape (k, n, n)
        Images.
    mask : Tensor of shape (n, n)
        Weight of each pixel, 0 to 1.

    Returns
    -------
    Tensor of shape (k, 2)
        Centre (x, y) from pixel (n // 2, n // 2), pixels.
    """
    n = images.shape[-1]
    inside = images * mask
    sign = torch.where(inside.sum((1, 2)) < 0, -1.0, 1.0)[:, None, None]
    inside = inside * sign
    mass = (inside - 0.33 * inside.amax((1, 2), keepdim=True)).clamp_min(0)
    line = torch.arange(n, device=images.device, dtype=torch.float32) - n // 2
    total = mass.sum((1, 2)).clamp_min(1e-20)
    return torch.stack([(mass * line).sum((1, 2)) / total, (mass * line[:, None]).sum((1, 2)) / total], dim=1)


def centre_of_outline(images: Tensor, mask: Tensor, sigma_px: float) -> Tensor:
    """Compute the centre of the area that an object covers inside a mask, dark or bright.

    Its density is not a weight, so that a view that is thicker at one end is not off centre, and what the background
    adds, measured on the mask's rim, counts for nothing: `centre_of_mass` errs by twice as much.

    Parameters
    ----------
    images : Tensor of shape (k, n, n)
        Images.
    mask : Tensor of shape (n, n)
        Weight of each pixel, 0 to 1, with a soft edge.
    sigma_px : float
        Standard deviation of the Gaussian that smooths the outline, pixels.

    Returns
    -------
    Tensor of shape (k, 2)
        Centre (x, y) from pixel (n // 2, n // 2), pixels.
    """
    n, device = images.shape[-1], images.device
    background = images[:, (mask > 0) & (mask < 1)].median(1).values[:, None, None]
    across, down = torch.fft.rfftfreq(n, device=device), torch.fft.fftfreq(n, device=device)[:, None]
    gaussian = torch.exp(-2 * (math.pi * sigma_px) ** 2 * (across**2 + down**2))
    smooth = torch.fft.irfft2(torch.fft.rfft2(images - background) * gaussian, s=(n, n)) * mask
    smooth = smooth * torch.where(smooth.sum((1, 2)) < 0, -1.0, 1.0)[:, None, None]
    area = (smooth > 0.33 * smooth.amax((1, 2), keepdim=True)).float()
    line = torch.arange(n, device=device, dtype=torch.float32) - n // 2
    total = area.sum((1, 2)).clamp_min(1)
    return torch.stack([(area * line).sum((1, 2)) / total, (area * line[:, None]).sum((1, 2)) / total], dim=1)
