"""The Fourier-Bessel basis of a disc, with fast expansion of images and exact radial spectra.

A function J_m(R_mq r / radius) exp(i m theta) has the angular order m, and its spectrum lies around the frequency R_mq
/ (2 pi radius). A filter that depends only on the frequency, such as a CTF without astigmatism, preserves m and mixes
only the q of one m. `hankel` holds the radial spectra, through which such a filter is a product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import jn_zeros, jv
from torch import Tensor


@dataclass(frozen=True)
class FourierBesselBasis:
    """Orthonormal functions on the pixels of a disc; for real images orders m >= 0 suffice.

    Attributes
    ----------
    box : int
        Image size, pixels.
    radius_px : float
        Radius of the disc, pixels.
    order : ndarray of shape (J,)
        Angular order of each function, ascending.
    frequency_per_px : ndarray of shape (J,)
        Centre of its spectrum, cycles per pixel.
    ring_frequency_per_px : Tensor of shape (K,)
        Radii at which spectra are sampled, cycles per pixel.
    hankel : tuple of Tensor
        For each m the radial spectra (K, q), with H^T H close to the identity.
    """

    box: int
    radius_px: float
    order: np.ndarray
    frequency_per_px: np.ndarray
    ring_frequency_per_px: Tensor
    hankel: tuple[Tensor, ...]
    _pixel: Tensor  # (P,) pixels of the disc: the j-th last lies opposite the j-th
    _even: tuple[Tensor, Tensor]  # cosine and sine parts on half the disc, and the centre
    _odd: tuple[Tensor, Tensor]
    _even_columns: Tensor
    _odd_columns: Tensor

    @classmethod
    def create(
        cls, box: int, *, radius_px: float, max_frequency_per_px: float, device: torch.device | str = "cpu"
    ) -> FourierBesselBasis:
        """Make the functions of a disc up to a frequency.

        Parameters
        ----------
        box : int
            Image size, pixels.
        radius_px : float
            Radius of the disc, pixels.
        max_frequency_per_px : float
            Band limit, cycles per pixel.
        device : torch.device or str, default 'cpu'
            Where to compute.

        Returns
        -------
        FourierBesselBasis
            The basis.

        References
        ----------
        Zhao and Singer 2013, "Fourier-Bessel rotational invariant eigenimages", J. Opt. Soc. Am. A 30, 871-877, doi
        10.1364/JOSAA.30.000871.
        """
        radius_px = min(radius_px, box / 2 - 1)
        pixel, radius, inverse, angle, count = _disc(box, radius_px)
        ring, weight = _rings(radius_px, max_frequency_per_px)
        half = len(pixel) // 2 + 1
        limit = 2 * np.pi * radius_px * max_frequency_per_px
        orders, frequencies, hankel, cosines, sines = [], [], [], [], []
        for m in range(int(limit) + 1):
            roots = jn_zeros(m, int(limit / np.pi) + 2)
            roots = roots[roots <= limit]
            if not len(roots):
                break
            norm = radius_px * np.sqrt(np.pi) * np.abs(jv(m + 1, roots))
            radial = jv(m, np.outer(radius / radius_px, roots)) / norm
            spectrum = _radial_spectrum(m, roots, radius_px, ring) / norm * weight[:, None]
            radial, spectrum = _orthonormal(radial, spectrum, count)
            values = radial[inverse[:half]]
            cosines.append(values * np.cos(m * angle[:half])[:, None])
            sines.append(values * np.sin(m * angle[:half])[:, None])
            orders.append(np.full(len(roots), m))
            frequencies.append(roots / (2 * np.pi * radius_px))
            hankel.append(torch.from_numpy(spectrum).float().to(device))
        order = np.concatenate(orders)
        columns = [torch.from_numpy(np.flatnonzero(order % 2 == parity)).to(device) for parity in (0, 1)]
        cosine, sine = (np.concatenate(parts, axis=1).astype(np.float32) for parts in (cosines, sines))
        even, odd = (
            [torch.from_numpy(np.ascontiguousarray(p[:, order % 2 == parity])).to(device) for p in (cosine, sine)]
            for parity in (0, 1)
        )
        return cls(
            box=box,
            radius_px=radius_px,
            order=order,
            frequency_per_px=np.concatenate(frequencies),
            ring_frequency_per_px=torch.from_numpy(ring).float().to(device),
            hankel=tuple(hankel),
            _pixel=torch.from_numpy(pixel).to(device),
            _even=(even[0], even[1]),
            _odd=(odd[0][:-1], odd[1][:-1]),
            _even_columns=columns[0],
            _odd_columns=columns[1],
        )

    def __len__(self) -> int:
        return len(self.order)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and last-but-one function of each order."""
        starts = np.flatnonzero(np.diff(self.order, prepend=-1))
        return list(zip(starts.tolist(), [*starts[1:].tolist(), len(self.order)], strict=True))

    def coefficients(self, images: Tensor) -> Tensor:
        """Return inner products (b, J), complex64, of images (b, h, h) with the functions, over the disc."""
        values = images.flatten(1)[:, self._pixel]
        half = values.shape[1] // 2
        first, last = values[:, :half], values[:, half + 1 :].flip(1)
        plus = torch.cat([first + last, values[:, half : half + 1]], dim=1)
        minus = first - last
        out = torch.empty(len(images), len(self.order), dtype=torch.complex64, device=images.device)
        out[:, self._even_columns] = torch.complex(plus @ self._even[0], -(plus @ self._even[1]))
        out[:, self._odd_columns] = torch.complex(minus @ self._odd[0], -(minus @ self._odd[1]))
        return out

    def images(self, coefficients: Tensor) -> Tensor:
        """Return images (b, h, h) of coefficients (b, J); orders above 0 count with their conjugates."""
        weight = torch.from_numpy(np.where(self.order == 0, 1.0, 2.0)).to(coefficients.device, torch.float32)
        weighted = coefficients * weight
        even, odd = weighted[:, self._even_columns], weighted[:, self._odd_columns]
        plus = even.real @ self._even[0].T - even.imag @ self._even[1].T
        minus = odd.real @ self._odd[0].T - odd.imag @ self._odd[1].T
        out = torch.zeros(len(coefficients), self.box * self.box, device=coefficients.device)
        values = [plus[:, :-1] + minus, plus[:, -1:], (plus[:, :-1] - minus).flip(1)]
        out[:, self._pixel] = torch.cat(values, dim=1)
        return out.unflatten(1, (self.box, self.box))


def _disc(box: int, radius_px: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of the disc, different radii, which radius each pixel has, its angle, and how many pixels a radius has."""
    axis = np.arange(box) - box // 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    square = (x * x + y * y).ravel()
    pixel = np.flatnonzero(square <= radius_px**2)
    radius, inverse, count = np.unique(square[pixel], return_inverse=True, return_counts=True)
    return pixel, np.sqrt(radius), inverse, np.arctan2(y, x).ravel()[pixel], count


def _rings(radius_px: float, max_frequency_per_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Radii at which spectra are sampled, past the band limit, and the square roots of their quadrature weights."""
    step = 1.0 / (4 * radius_px + 8)
    ring = (np.arange(int((max_frequency_per_px + 1.0 / radius_px) / step)) + 0.5) * step
    return ring, 2 * np.pi * np.sqrt(ring * step)


def _orthonormal(radial: np.ndarray, spectrum: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radial functions orthonormal on the pixels, of which `count` have each radius; the spectra follow the change."""
    lower = np.linalg.cholesky((radial * count[:, None]).T @ radial)
    return np.linalg.solve(lower, radial.T).T, np.linalg.solve(lower, spectrum.T).T


def _radial_spectrum(m: int, roots: np.ndarray, radius_px: float, ring: np.ndarray) -> np.ndarray:
    """Hankel transforms (K, q) of J_m(root r / radius) within the disc (Lommel's integral), times sqrt(2 pi)."""
    a, k = roots / radius_px, 2 * np.pi * ring
    boundary = -(a * radius_px * jv(m - 1, roots))[None, :] * jv(m, k * radius_px)[:, None]
    gap = a[None, :] ** 2 - k[:, None] ** 2
    return np.sqrt(2 * np.pi) * boundary / np.where(np.abs(gap) < 1e-9, 1e-9, gap)
