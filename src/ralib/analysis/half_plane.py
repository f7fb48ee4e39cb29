"""Images of a disc as real vectors in Fourier space, where CTF and noise are diagonal."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ralib.analysis.particle_radius import disc_mask
from ralib.images.fourier import frequency_radius


@dataclass(frozen=True)
class HalfPlane:
    """One of each pair of opposite frequencies below a band limit, without zero and the Nyquist rows.

    A vector (..., 2, d) holds real and imaginary parts, scaled so that its norm is that of the band-limited image.

    Attributes
    ----------
    box : int
        Image size, pixels.
    index : Tensor of shape (d,)
        Positions in the flattened rfft2 plane.
    ring : Tensor of shape (d,)
        Nearest ring of the Fourier plane.
    mask : Tensor of shape (h, h)
        Soft disc in which images may differ from zero.
    radius_px : float
        Radius where the mask begins to fall, pixels.
    """

    box: int
    index: Tensor
    ring: Tensor
    mask: Tensor
    radius_px: float

    @classmethod
    def create(
        cls, box: int, *, max_frequency_per_px: float, radius_px: float, device: torch.device | str = "cpu"
    ) -> HalfPlane:
        """Make a half plane.

        Parameters
        ----------
        box : int
            Image size, pixels.
        max_frequency_per_px : float
            Band limit, cycles per pixel.
        radius_px : float
            Radius of the mask, pixels.
        device : torch.device or str, default 'cpu'
            Where to compute.

        Returns
        -------
        HalfPlane
            The half plane.
        """
        frequency = frequency_radius(box, device)
        ky = torch.fft.fftfreq(box, device=device)[:, None].expand_as(frequency)
        kx = torch.fft.rfftfreq(box, device=device)[None, :].expand_as(frequency)
        once = (kx > 0) | (ky > 0)
        keep = once & (frequency <= max_frequency_per_px) & (kx < 0.5) & (ky.abs() < 0.5) & (frequency > 0)
        index = keep.flatten().nonzero()[:, 0]
        ring = (frequency.flatten()[index] * box).round().long()
        return cls(box, index, ring, disc_mask(box, radius_px, device), radius_px)

    def with_radius(self, radius_px: float) -> HalfPlane:
        """Return the same half plane with a mask of another radius."""
        return replace(self, mask=disc_mask(self.box, radius_px, self.mask.device), radius_px=radius_px)

    @property
    def n_rings(self) -> int:
        """Number of rings."""
        return int(self.ring.max()) + 1

    @property
    def dimensions(self) -> float:
        """Degrees of freedom of a band-limited image within the mask."""
        return 2 * len(self.index) * float(self.mask.square().mean())

    def vector(self, plane: Tensor) -> Tensor:
        """Return vectors (..., 2, d) of orthonormal rfft2 planes (..., h, h // 2 + 1)."""
        values = plane.flatten(-2)[..., self.index]
        return torch.stack([values.real, values.imag], dim=-2) * math.sqrt(2)

    def from_images(self, images: Tensor) -> Tensor:
        """Return vectors (..., 2, d) of images (..., h, h) whose centre pixel is the origin."""
        return self.vector(torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)), norm="ortho"))

    def images(self, vector: Tensor) -> Tensor:
        """Return images (..., h, h) of vectors (..., 2, d)."""
        box = self.box
        flat = torch.zeros(*vector.shape[:-2], box * (box // 2 + 1), dtype=torch.complex64, device=vector.device)
        flat[..., self.index] = torch.complex(vector[..., 0, :], vector[..., 1, :]) / math.sqrt(2)
        plane = flat.unflatten(-1, (box, box // 2 + 1))
        # In the column kx = 0 both of a pair are stored.
        positive = plane[..., 1 : (box + 1) // 2, 0].clone()
        plane[..., box - positive.shape[-1] :, 0] = positive.flip(-1).conj()
        return torch.fft.fftshift(torch.fft.irfft2(plane, s=(box, box), norm="ortho"), dim=(-2, -1))

    def masked(self, vector: Tensor) -> Tensor:
        """Return vectors (..., 2, d) of the same images times the mask."""
        return self.from_images(self.images(vector) * self.mask)

    def spread(self, per_ring: Tensor) -> Tensor:
        """Return values (d,) from values for each ring."""
        return per_ring[self.ring]

    def ring_sums(self, values: Tensor) -> Tensor:
        """Return sums over each ring of values (d,)."""
        return torch.zeros(self.n_rings, device=values.device, dtype=values.dtype).index_add_(0, self.ring, values)
