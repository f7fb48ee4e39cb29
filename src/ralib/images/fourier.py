"""The Fourier plane of images: rings, phase shifts, cropping and padding to other box sizes, low-pass filters."""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from ralib.kernels import figures


@functools.lru_cache(maxsize=8)
def ring_index(box: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the ring 0..n//2 of every sample in rfft2's layout.

    Parameters
    ----------
    box : int
        Image size n, pixels.
    device : torch.device or str, default 'cpu'
        Where the result is.

    Returns
    -------
    Tensor of shape (n, n // 2 + 1)
        Ring numbers; the corners beyond the last ring have n // 2 + 1.
    """
    fy = torch.fft.fftfreq(box, device=device) * box
    fx = torch.fft.rfftfreq(box, device=device) * box
    radius = torch.sqrt(fy[:, None] ** 2 + fx[None, :] ** 2)
    return torch.clamp(torch.round(radius), max=box // 2 + 1).long()


@functools.lru_cache(maxsize=8)
def hermitian_weight(box: int, device: torch.device | str) -> Tensor:
    """Return how many samples of the full transform each column of the half transform stands for.

    Parameters
    ----------
    box : int
        Image size n, pixels.
    device : torch.device or str
        Where the result is.

    Returns
    -------
    Tensor of shape (n // 2 + 1,)
        1 or 2, float64.
    """
    weight = torch.full((box // 2 + 1,), 2.0, device=device, dtype=torch.float64)
    weight[0] = 1.0
    if box % 2 == 0:
        weight[-1] = 1.0
    return weight


def ring_sums(values: Tensor) -> Tensor:
    """Sum values over the Fourier rings of the full plane.

    Parameters
    ----------
    values : Tensor of shape (..., n, n // 2 + 1)
        Real values in rfft2's layout.

    Returns
    -------
    Tensor of shape (..., n // 2 + 1)
        Sums in double precision; samples that stand for a conjugate pair count twice.
    """
    box, device = values.shape[-2], values.device
    return figures.ring_sums(values, ring_index(box, device), hermitian_weight(box, device))


@functools.lru_cache(maxsize=8)
def ring_counts(box: int, device: torch.device | str = "cpu") -> Tensor:
    """Count the samples of the full transform in each ring.

    Parameters
    ----------
    box : int
        Image size n, pixels, whose full transform has n * n samples.
    device : torch.device or str, default 'cpu'
        Where the result is.

    Returns
    -------
    Tensor of shape (n // 2 + 1,)
        Counts in double precision.
    """
    return ring_sums(torch.ones(box, box // 2 + 1, device=device))


def spread_rings(curve: Tensor, box: int) -> Tensor:
    """Expand a curve over rings to every sample of rfft2's layout.

    Parameters
    ----------
    curve : Tensor of shape (..., n // 2 + 1)
        A value for each ring.
    box : int
        Image size n, pixels.

    Returns
    -------
    Tensor of shape (..., n, n // 2 + 1)
        The value of each sample's ring; the corners have that of the last ring.
    """
    index = ring_index(box, curve.device).clamp(max=box // 2)
    return curve[..., index]


def frequency_grid(
    box: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return the frequencies of rfft2's samples.

    Parameters
    ----------
    box : int
        Image size n, pixels.
    device : torch.device or str, default 'cpu'
        Where the result is.
    dtype : torch.dtype, default torch.float32
        Floating point type.

    Returns
    -------
    kx : Tensor of shape (1, n // 2 + 1)
        Along x, cycles per pixel.
    ky : Tensor of shape (n, 1)
        Along y, cycles per pixel.
    """
    kx = torch.fft.rfftfreq(box, device=device, dtype=dtype)[None, :]
    ky = torch.fft.fftfreq(box, device=device, dtype=dtype)[:, None]
    return kx, ky


def filter_images(images: Tensor, response: Tensor) -> Tensor:
    """Multiply the transform of images by a response.

    Parameters
    ----------
    images : Tensor of shape (..., n, n)
        Images.
    response : Tensor of shape (..., n, n // 2 + 1)
        Real or complex response in rfft2's layout.

    Returns
    -------
    Tensor of shape (..., n, n)
        Filtered images.
    """
    return torch.fft.irfft2(torch.fft.rfft2(images) * response, s=images.shape[-2:])


@functools.lru_cache(maxsize=8)
def frequency_radius(box: int, device: torch.device | str = "cpu") -> Float[Tensor, "{box} {box}//2+1"]:
    """Return the distance of rfft2's samples from zero frequency.

    Parameters
    ----------
    box : int
        Image size n, pixels.
    device : torch.device or str, default 'cpu'
        Where the result is.

    Returns
    -------
    Tensor of shape (n, n // 2 + 1)
        Cycles per pixel.
    """
    return torch.hypot(*reversed(frequency_grid(box, device=device)))


def shift_images(images: Tensor, shift_xy_px: Tensor) -> Tensor:
    """Shift images by multiplication with Fourier phases; cyclic.

    Parameters
    ----------
    images : Tensor of shape (k, n, n)
        Images.
    shift_xy_px : Tensor of shape (k, 2)
        Shift (x, y), pixels; the image moves towards larger coordinates.

    Returns
    -------
    Tensor of shape (k, n, n)
        Shifted images.
    """
    fx, fy = frequency_grid(images.shape[-1], device=images.device)
    angle = -2 * math.pi * (shift_xy_px[:, 0, None, None] * fx + shift_xy_px[:, 1, None, None] * fy)
    return filter_images(images, torch.polar(torch.ones_like(angle), angle))


def fshift(images: Tensor, shift_xy_px: Tensor) -> Tensor:
    """Shift images by SPARX's Fourier phases (`fundamentals.fshift`); cyclic.

    Differs from `shift_images` in the Nyquist row of even boxes, which EMAN2 keeps at +n / 2.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.
    shift_xy_px : Tensor of shape (b, 2)
        Shift (x, y), pixels.

    Returns
    -------
    Tensor of shape (b, n, n)
        Shifted images.
    """
    n = images.shape[-1]
    k = torch.arange(n, device=images.device, dtype=torch.float64)
    # EMAN2 keeps the Nyquist row at +n/2, so a half-pixel shift of it is not symmetric.
    ky = torch.where(k > n // 2, k - n, k)
    kx = torch.arange(n // 2 + 1, device=images.device, dtype=torch.float64)
    shift = shift_xy_px.to(images.device).double() / n
    turns = shift[:, 0, None, None] * kx + shift[:, 1, None, None] * ky[:, None]
    phase = torch.polar(torch.ones_like(turns), -2.0 * math.pi * turns)
    return filter_images(images, phase.to(_complex(images)))


def _complex(images: Tensor) -> torch.dtype:
    return torch.complex128 if images.dtype == torch.float64 else torch.complex64


def fourier_resize(
    images: Float[Tensor, "b n n"], box: int, response: Float[Tensor, "#b {box} {box}//2+1"] | None = None
) -> Float[Tensor, "b {box} {box}"]:
    """Crop or pad the transform of images, so that they have another box and the same field of view.

    Pixel n // 2 stays the centre, and grey values stay. The Nyquist frequency of the smaller box, where it is even, is
    left out: it stands for two frequencies of the larger box.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.
    box : int
        New image size m, pixels.
    response : Tensor of shape (b, m, m // 2 + 1), optional
        Filter of the new box, for each image or for all: as `filter_images` afterwards, without further transforms.

    Returns
    -------
    Tensor of shape (b, m, m)
        Resized images.
    """
    n = images.shape[-1]
    if box == n:
        return images if response is None else filter_images(images, response)
    keep = (min(n, box) - 1) // 2
    transform = torch.fft.rfft2(images)
    rows = torch.cat([torch.arange(keep + 1), torch.arange(-keep, 0)]).to(images.device)
    frequency_y, frequency_x = rows[:, None].to(images.dtype), rows[None, : keep + 1].to(images.dtype)
    # The centre goes from n // 2 to pixel 0 and on to box // 2.
    shift = 2.0 * torch.pi * ((n // 2) / n - (box // 2) / box)
    angle = (frequency_x + frequency_y) * shift
    resized = torch.zeros(len(images), box, box // 2 + 1, dtype=transform.dtype, device=images.device)
    part = transform[:, rows, : keep + 1] * torch.polar(torch.ones_like(angle), angle)
    resized[:, rows, : keep + 1] = part * (box / n) ** 2
    if response is not None:
        resized *= response
    return torch.fft.irfft2(resized, s=(box, box))


def tanh_low_pass(frequency: Tensor, cutoff: Tensor, falloff: Tensor) -> Tensor:
    """Evaluate SPARX's hyperbolic tangent low-pass filter (`filt_tanl`), which is one half at the cut-off.

    The response is 0.5 (tanh(c (f + cutoff)) - tanh(c (f - cutoff))) with c = pi / (2 falloff cutoff).

    Parameters
    ----------
    frequency : Tensor of shape (r,)
        Frequencies, cycles per pixel.
    cutoff : Tensor
        Cut-off, cycles per pixel; broadcasts with `frequency`.
    falloff : Tensor
        Width of the transition over the cut-off; broadcasts with `frequency`.

    Returns
    -------
    Tensor
        Response at each frequency.
    """
    c = math.pi / (2.0 * falloff * cutoff)
    return 0.5 * (torch.tanh(c * (frequency + cutoff)) - torch.tanh(c * (frequency - cutoff)))


def low_pass(images: Tensor, cutoff: Tensor, falloff: Tensor) -> Tensor:
    """Filter each image with its own tanh low-pass filter; see `tanh_low_pass`.

    Parameters
    ----------
    images : Tensor of shape (k, n, n)
        Images.
    cutoff : Tensor of shape (k,)
        Cut-offs, cycles per pixel.
    falloff : Tensor of shape (k,)
        Widths of the transition over the cut-off.

    Returns
    -------
    Tensor of shape (k, n, n)
        Filtered images.
    """
    frequency = frequency_radius(images.shape[-1], images.device)
    return filter_images(images, tanh_low_pass(frequency, cutoff[:, None, None], falloff[:, None, None]))


def resample(images: Float[Tensor, "b n n"], box: int, magnification: float) -> Float[Tensor, "b {box} {box}"]:
    """Resample images on a grid whose pixels are larger or smaller by any ratio.

    The trigonometric polynomial through the pixels, without frequencies beyond the Nyquist frequency of either grid, is
    evaluated at the new points: exact for any ratio, unlike a Fourier crop. Pixel n // 2 stays the centre; grey values
    stay.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.
    box : int
        New image size, pixels.
    magnification : float
        New pixel size over the old one.

    Returns
    -------
    Tensor of shape (b, box, box)
        Resampled images.
    """
    n = images.shape[-1]
    highest = min((n - 1) // 2, math.ceil(0.5 * n / magnification) - 1)
    at = (torch.arange(box, dtype=torch.float64) - box // 2) * magnification + n // 2
    angle = torch.pi / n * (at[:, None] - torch.arange(n, dtype=torch.float64))
    order = 2 * highest + 1  # Dirichlet's kernel: the sum of exp(2 i k angle) over |k| <= highest
    far = torch.sin(angle).abs() > 1e-9
    kernel = torch.where(far, torch.sin(order * angle) / torch.where(far, torch.sin(angle), 1.0), float(order))
    weight = kernel / n
    weight = weight.to(images)
    return weight @ images @ weight.T
