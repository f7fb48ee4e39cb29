"""The Fourier plane of images: rings, shifts by phases, other box sizes, low-pass filters."""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor


@functools.lru_cache(maxsize=8)
def ring_index(box: int, device: torch.device | str = "cpu") -> Tensor:
    """Ring 0..n//2 of every sample of rfft2's layout (n, n//2+1); the corners beyond get n//2+1."""
    fy = torch.fft.fftfreq(box, device=device) * box
    fx = torch.fft.rfftfreq(box, device=device) * box
    radius = torch.sqrt(fy[:, None] ** 2 + fx[None, :] ** 2)
    return torch.clamp(torch.round(radius), max=box // 2 + 1).long()


@functools.lru_cache(maxsize=8)
def _hermitian_weight(box: int, device: torch.device | str) -> Tensor:
    """How many samples of the full transform each column of the half transform stands for: (n//2+1,)."""
    weight = torch.full((box // 2 + 1,), 2.0, device=device, dtype=torch.float64)
    weight[0] = 1.0
    if box % 2 == 0:
        weight[-1] = 1.0
    return weight


def ring_sums(values: Tensor) -> Tensor:
    """Sums over Fourier rings of the full plane: real (..., n, n//2+1) -> float64 (..., n//2+1)."""
    box = values.shape[-2]
    ring = ring_index(box, values.device).flatten()
    weighted = (values.double() * _hermitian_weight(box, values.device)).flatten(-2)
    sums = torch.zeros(*values.shape[:-2], box // 2 + 2, dtype=torch.float64, device=values.device)
    return sums.index_add_(-1, ring, weighted)[..., : box // 2 + 1]


@functools.lru_cache(maxsize=8)
def ring_counts(box: int, device: torch.device | str = "cpu") -> Tensor:
    """Samples of the full transform in each ring: (n//2+1,) float64."""
    return ring_sums(torch.ones(box, box // 2 + 1, device=device))


def spread_rings(curve: Tensor, box: int) -> Tensor:
    """A curve over rings (..., n//2+1) on every sample of rfft2's layout; the corners take the last ring's
    value.
    """
    index = ring_index(box, curve.device).clamp(max=box // 2)
    return curve[..., index]


def squared(values: Tensor) -> Tensor:
    """Squared magnitudes of complex values, whose `abs` PyTorch would compile at run time on a GPU: seconds, once."""
    return values.real.square() + values.imag.square()


def frequency_grid(
    box: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Frequencies (kx, ky) in cycles per pixel, rfft2 layout; they broadcast to (box, box // 2 + 1)."""
    kx = torch.fft.rfftfreq(box, device=device, dtype=dtype)[None, :]
    ky = torch.fft.fftfreq(box, device=device, dtype=dtype)[:, None]
    return kx, ky


def filter_images(images: Tensor, response: Tensor) -> Tensor:
    """Images (..., n, n) whose transform is multiplied by a response (..., n, n // 2 + 1)."""
    return torch.fft.irfft2(torch.fft.rfft2(images) * response, s=images.shape[-2:])


def frequency_radius(box: int, device: torch.device | str = "cpu") -> Float[Tensor, "{box} {box}//2+1"]:
    """Distance of rfft2's samples from zero frequency, cycles per pixel."""
    return torch.hypot(*reversed(frequency_grid(box, device=device)))


def shift_images(images: Tensor, shift_xy_px: Tensor) -> Tensor:
    """Images (k, n, n) moved by (k, 2) pixels, by Fourier phases."""
    fx, fy = frequency_grid(images.shape[-1], device=images.device)
    angle = -2 * math.pi * (shift_xy_px[:, 0, None, None] * fx + shift_xy_px[:, 1, None, None] * fy)
    return filter_images(images, torch.polar(torch.ones_like(angle), angle))


def fshift(images: Tensor, shift_xy_px: Tensor) -> Tensor:
    """Images (b, n, n) moved by (b, 2) pixels with a Fourier phase (fundamentals.fshift); cyclic."""
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


def fourier_resize(images: Float[Tensor, "b n n"], box: int) -> Float[Tensor, "b {box} {box}"]:
    """Images (b, n, n) on another grid, (b, box, box), by cropping or padding their transform.

    Pixel n // 2 stays the centre and grey values stay what they are. The Nyquist frequency of the smaller box, where
    it is even, is left out: it stands for two frequencies of the larger.
    """
    n = images.shape[-1]
    if box == n:
        return images
    keep = (min(n, box) - 1) // 2
    transform = torch.fft.rfft2(images)
    rows = torch.cat([torch.arange(keep + 1), torch.arange(-keep, 0)]).to(images.device)
    frequency_y, frequency_x = rows[:, None], rows[None, : keep + 1]
    # The centre goes from n // 2 to pixel 0 and on to box // 2.
    shift = 2.0 * torch.pi * ((n // 2) / n - (box // 2) / box)
    angle = (frequency_x + frequency_y) * shift
    resized = torch.zeros(len(images), box, box // 2 + 1, dtype=transform.dtype, device=images.device)
    part = transform[:, rows, : keep + 1] * torch.polar(torch.ones_like(angle), angle)
    resized[:, rows, : keep + 1] = part * (box / n) ** 2
    return torch.fft.irfft2(resized, s=(box, box))


def tanh_low_pass(frequency: Tensor, cutoff: Tensor, falloff: Tensor) -> Tensor:
    """SPARX's filt_tanl, one half at `cutoff`: 0.5 (tanh(c (f + cutoff)) - tanh(c (f - cutoff))), c = pi/(2 a cutoff).

    frequency (r,) in cycles per pixel against cutoff and falloff that broadcast with it.
    """
    c = math.pi / (2.0 * falloff * cutoff)
    return 0.5 * (torch.tanh(c * (frequency + cutoff)) - torch.tanh(c * (frequency - cutoff)))


def low_pass(images: Tensor, cutoff: Tensor, falloff: Tensor) -> Tensor:
    """Images (k, n, n) under the tanh filter of each."""
    frequency = frequency_radius(images.shape[-1], images.device)
    return filter_images(images, tanh_low_pass(frequency, cutoff[:, None, None], falloff[:, None, None]))


def resample(images: Float[Tensor, "b n n"], box: int, magnification: float) -> Float[Tensor, "b {box} {box}"]:
    """Images (b, n, n) on a grid of `box` pixels that are `magnification` times as large, (b, box, box).

    The trigonometric polynomial through the pixels, without what lies beyond the Nyquist frequency of either grid, at
    the new points: exact for any ratio, unlike a Fourier crop. Pixel n // 2 stays the centre; grey values stay.
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
