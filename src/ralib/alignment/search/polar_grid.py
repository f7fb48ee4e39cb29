"""Images as polar Fourier samples, where a shift is a phase factor and a rotation an offset in angle.

An image I(p), p = (x, y) from the centre pixel, becomes F(k, phi) = sum_p I(p) exp(-2 pi i k (x cos phi + y sin phi))
on K Gauss-Legendre radii in (0, k_max) cycles per pixel and on equally spaced angles; a real image needs half the
circle. With the weights of the grid,

    sum_p I(p) T(p)  =  sum_k w_k sum_phi Re[F_I conj(F_T)]            (both confined to k < k_max),

so that the inner product with any pose of T is a sum over the same samples. They are taken from a twice padded FFT with
a Kaiser-Bessel kernel (Beatty, Nishimura and Pauly 2005, "Rapid gridding reconstruction with a minimal oversampling
ratio", IEEE Trans. Med. Imaging 24, 799-808).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ralib.kernels.pose_search import gather_taps

KERNEL_WIDTH = 6
PADDING = 2


@dataclass(frozen=True)
class PolarGrid:
    """Radii, angles and quadrature weights of polar Fourier samples, on one device.

    Attributes
    ----------
    box : int
        Image size, pixels.
    radius_per_px : Tensor of shape (K,)
        Radii, cycles per pixel.
    angle_rad : Tensor of shape (H,)
        Angles of the stored half circle, from 0 up to (not including) pi.
    weight : Tensor of shape (K,)
        Weights with which sum_k w_k sum_{phi in half circle} Re[F conj(G)] is the images' inner product.
    """

    box: int
    radius_per_px: Tensor
    angle_rad: Tensor
    weight: Tensor
    _tap_index: Tensor
    _tap_weight: Tensor
    _window: Tensor

    @classmethod
    def create(
        cls,
        box: int,
        *,
        support_radius_px: float,
        max_frequency_per_px: float = 0.5,
        device: torch.device | str = "cpu",
    ) -> PolarGrid:
        """Make a grid that resolves inner products with templates in a disc.

        The product of a box-wide image and a template oscillates with lags up to box / 2 + support; the numbers of
        radii and angles follow from it.

        Parameters
        ----------
        box : int
            Image size, pixels.
        support_radius_px : float
            Radius of the templates' disc, pixels.
        max_frequency_per_px : float, default 0.5
            Band limit k_max, cycles per pixel.
        device : torch.device or str, default 'cpu'
            Where the grid is.

        Returns
        -------
        PolarGrid
            The grid.
        """
        lag = box / 2 + support_radius_px
        # Rounded up to what kernels take in blocks.
        n_radii = 8 * math.ceil((0.5 * math.pi * max_frequency_per_px * lag + 3) / 8)
        highest_m = 2 * math.pi * max_frequency_per_px * support_radius_px
        n_angles = 96 * math.ceil((2 * highest_m + 24) / 96)
        nodes, weights = np.polynomial.legendre.leggauss(n_radii)
        k = 0.5 * max_frequency_per_px * (nodes + 1)
        dk = 0.5 * max_frequency_per_px * weights
        phi = np.arange(n_angles // 2) * (2 * math.pi / n_angles)
        # Half the circle stands for all of it: hence the 2.
        w = 2 * k * dk * (2 * math.pi / n_angles)
        index, tap = _kernel_taps(k, phi, PADDING * box)
        return cls(
            box=box,
            radius_per_px=torch.tensor(k, dtype=torch.float32, device=device),
            angle_rad=torch.tensor(phi, dtype=torch.float32, device=device),
            weight=torch.tensor(w, dtype=torch.float32, device=device),
            _tap_index=torch.tensor(index, device=device),
            _tap_weight=torch.tensor(tap, dtype=torch.float32, device=device),
            _window=torch.tensor(_window(box), dtype=torch.float32, device=device),
        )

    @property
    def n_angles(self) -> int:
        """Number of angles A of the full circle."""
        return 2 * len(self.angle_rad)

    @property
    def n_radii(self) -> int:
        """Number of radii K."""
        return len(self.radius_per_px)

    @functools.cached_property
    def radius_rad_per_px(self) -> Tensor:
        """Radii (K,), radians per pixel."""
        return 2 * math.pi * self.radius_per_px

    @functools.cached_property
    def radii(self) -> list[float]:
        """The radii as Python numbers; reading them from the device would synchronise with it."""
        return self.radius_per_px.tolist()

    @property
    def device(self) -> torch.device:
        """Where the grid is."""
        return self.weight.device

    def frequency_xy(self) -> tuple[Tensor, Tensor]:
        """Return x and y component of every sample's frequency, each (K, H), cycles per pixel."""
        k, phi = self.radius_per_px[:, None], self.angle_rad[None, :]
        return k * torch.cos(phi), k * torch.sin(phi)

    def transform(self, images: Tensor) -> Tensor:
        """Compute the polar Fourier samples (b, K, H), complex64, of real images (b, n, n)."""
        n, big = self.box, PADDING * self.box
        if images.shape[-2:] != (n, n):
            raise ValueError(f"images are {tuple(images.shape[-2:])} px, the polar grid is for {n} px")
        padded = torch.nn.functional.pad(images * self._window, (0, big - n, 0, big - n))
        # Put the centre pixel at index 0, so that phases refer to it.
        padded = torch.roll(padded, (-(n // 2), -(n // 2)), dims=(-2, -1))
        cartesian = torch.fft.rfft2(padded)
        samples = gather_taps(cartesian.flatten(1), self._tap_index, self._tap_weight)
        return samples.view(-1, self.n_radii, len(self.angle_rad))

    def shift_phase(self, shift_xy_px: Tensor) -> Tensor:
        """Return exp(-2 pi i k.s), (b, K, H): multiplied to samples it moves the image by s (b, 2), pixels."""
        kx, ky = self.frequency_xy()
        turn = -2 * math.pi * (shift_xy_px[:, 0, None, None] * kx + shift_xy_px[:, 1, None, None] * ky)
        return torch.polar(torch.ones_like(turn), turn)

    def angular_spectrum(self, samples: Tensor, n_orders: int) -> Tensor:
        """Compute the coefficients F_m(k), m = 0..n_orders-1, of F(k, phi) = sum_m F_m exp(i m phi).

        Parameters
        ----------
        samples : Tensor of shape (..., K, H)
            Polar samples.
        n_orders : int
            Number of angular orders.

        Returns
        -------
        Tensor of shape (..., K, n_orders)
            Coefficients.
        """
        circle = torch.cat([samples, samples.conj()], dim=-1)
        return torch.fft.fft(circle, dim=-1)[..., :n_orders] / self.n_angles


def _kaiser_bessel_beta() -> float:
    return math.pi * math.sqrt((KERNEL_WIDTH / PADDING) ** 2 * (PADDING - 0.5) ** 2 - 0.8)


def _kernel_taps(k: np.ndarray, phi: np.ndarray, big: int) -> tuple[np.ndarray, np.ndarray]:
    """Index (P, w*w) into the flattened rfft2 and weight of each tap; a negative index means the conjugate.

    Angles in [0, pi) give ky >= 0, but the half transform holds kx >= 0: a tap with kx < 0 is read as the conjugate of
    its opposite. Such an index i is stored as -1 - i.
    """
    kx = (k[:, None] * np.cos(phi)).ravel() * big
    ky = (k[:, None] * np.sin(phi)).ravel() * big
    offsets = np.arange(KERNEL_WIDTH) - KERNEL_WIDTH // 2 + 1
    ix = np.floor(kx).astype(np.int64)[:, None] + offsets
    iy = np.floor(ky).astype(np.int64)[:, None] + offsets
    beta = _kaiser_bessel_beta()

    def kernel(distance: np.ndarray) -> np.ndarray:
        inside = np.clip(1 - (2 * distance / KERNEL_WIDTH) ** 2, 0, None)
        return np.i0(beta * np.sqrt(inside)) / np.i0(beta)

    weight = kernel(iy - ky[:, None])[:, :, None] * kernel(ix - kx[:, None])[:, None, :]
    row, column = np.broadcast_arrays(iy[:, :, None], ix[:, None, :])
    column = (column + big // 2) % big - big // 2
    negative = column < 0
    row, column = np.where(negative, -row, row) % big, np.abs(column)
    flat = row * (big // 2 + 1) + column
    index = np.where(negative, -1 - flat, flat)
    return index.reshape(len(kx), -1).astype(np.int32), weight.reshape(len(kx), -1).astype(np.float32)


def _window(box: int) -> np.ndarray:
    """The inscribed disc over the gridding kernel's transform in real space, (n, n).

    Corners reach no template, but their lags would need more radii and angles.
    """
    x = (np.arange(box) - box // 2) / (PADDING * box)
    beta = _kaiser_bessel_beta()
    z = np.sqrt((np.pi * KERNEL_WIDTH * x) ** 2 - beta**2 + 0j)
    transform = (KERNEL_WIDTH / np.i0(beta)) * np.sinc(z / np.pi).real
    y, x = np.mgrid[:box, :box] - box // 2
    disc = np.clip(box / 2 - np.hypot(x, y), 0.0, 1.0)
    return disc / np.outer(transform, transform)
