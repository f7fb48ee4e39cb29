"""The phantom, an artificial asymmetric protein of Gaussians, and projections of any volume by Fourier slices."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ralib.images.fourier import frequency_grid
from ralib.types import RalibError

# Lobes of the made-up protein: centre and radii along (x, y, z), as fractions of the box. A large and a small
# subunit with a cleft between them, a stalk and an arm: no view looks like another, nor like its mirror image.
_LOBES = (
    ((0.00, 0.06, 0.00), (0.20, 0.13, 0.17)),
    ((-0.05, -0.15, 0.05), (0.18, 0.08, 0.11)),
    ((0.19, 0.19, -0.05), (0.045, 0.10, 0.045)),
    ((-0.20, 0.12, 0.13), (0.055, 0.055, 0.10)),
    ((0.12, -0.07, 0.17), (0.06, 0.05, 0.07)),
)
_N_RODS = 260
_BEADS_PER_ROD = 9
_BEAD_STEP = 0.019
_BEAD_SD = 0.0165


def phantom_volume(box: int) -> np.ndarray:
    """Make the phantom, always the same, with its centre of mass in the middle.

    Short rods (alpha helices) of Gaussian beads fill five lobes. The beads are never narrower than 0.7 pixels.

    Parameters
    ----------
    box : int
        Size n of the volume, pixels.

    Returns
    -------
    ndarray of shape (n, n, n)
        Density in order (z, y, x), float32.
    """
    if box < 16:
        raise RalibError(f"a box of {box} px is too small for the phantom: use 16 px or more")
    beads, weights = _phantom_beads()
    grid = (np.arange(box) - box // 2) / box
    sd = max(_BEAD_SD, 0.7 / box)
    profile = [np.exp(-0.5 * ((grid[None, :] - beads[:, [axis]]) / sd) ** 2) for axis in range(3)]
    plane = (profile[2] * weights[:, None])[:, :, None] * profile[1][:, None, :]
    volume = plane.reshape(len(beads), -1).T @ profile[0]
    return volume.reshape(box, box, box).astype(np.float32)


def _phantom_beads() -> tuple[np.ndarray, np.ndarray]:
    """Positions (g, 3) in fractions of the box and weights (g,) of the Gaussians."""
    rng = np.random.default_rng(1934)
    # A little more than their volume's share of the rods makes the small lobes stand out.
    volumes = np.array([np.prod(radii) for _, radii in _LOBES]) + 3e-4
    lobe = rng.choice(len(_LOBES), _N_RODS, p=volumes / volumes.sum())
    centre, radii = (np.array([part[i] for part in _LOBES])[lobe] for i in (0, 1))
    direction = rng.normal(size=(_N_RODS, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    inside = rng.normal(size=(_N_RODS, 3))
    inside *= (rng.random((_N_RODS, 1)) ** (1 / 3)) / np.linalg.norm(inside, axis=1, keepdims=True)
    along = (np.arange(_BEADS_PER_ROD) - _BEADS_PER_ROD // 2) * _BEAD_STEP
    beads = (centre + radii * inside)[:, None, :] + along[None, :, None] * direction[:, None, :]
    depth = np.linalg.norm((beads - centre[:, None, :]) / radii[:, None, :], axis=-1)
    keep = depth < 1.1
    weights = np.repeat(rng.uniform(0.7, 1.3, _N_RODS)[:, None], _BEADS_PER_ROD, axis=1)[keep]
    points = beads[keep]
    return points - np.average(points, axis=0, weights=weights), weights


class FourierProjector:
    """Projections of a volume as central slices of its Fourier transform (the projection theorem).

    The volume is padded to twice its size and divided by the transform of the linear interpolation kernel, which leaves
    an error of about one per cent; frequencies beyond Nyquist are left out.

    Parameters
    ----------
    volume : ndarray of shape (m, m, m)
        Density in order (z, y, x).
    device : torch.device or str, default 'cpu'
        Where to compute.
    """

    def __init__(self, volume: np.ndarray, *, device: torch.device | str = "cpu") -> None:
        if volume.ndim != 3 or len(set(volume.shape)) != 1:
            raise RalibError(f"a volume must be a cube, this one is {' x '.join(map(str, volume.shape))}")
        if not np.isfinite(volume).all():
            raise RalibError("the volume holds values that are not numbers (NaN or infinite)")
        self.size = volume.shape[0]
        self.padded = 2 * self.size
        density = torch.as_tensor(np.ascontiguousarray(volume, dtype=np.float32), device=device)
        offset = torch.arange(self.size, dtype=torch.float32, device=device) - self.size // 2
        kernel = torch.sinc(offset / self.padded) ** 2
        density = density / (kernel[:, None, None] * kernel[:, None] * kernel)
        # The origin goes to index 0 for the transform, and zero frequency to the middle for the sampling.
        low = self.padded // 2 - self.size // 2
        high = self.padded - low - self.size
        density = torch.nn.functional.pad(density, (low, high) * 3)
        transform = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(density)))
        self._samples = torch.view_as_real(transform).permute(3, 0, 1, 2)[None].contiguous()

    def slices(
        self, axes: Float[Tensor, "b 2 3"], box: int, *, scale: float = 1.0
    ) -> Complex[Tensor, "b {box} {box}//2+1"]:
        """Compute transforms of projections, with the image origin at pixel (0, 0).

        Parameters
        ----------
        axes : Tensor of shape (b, 2, 3)
            Directions (x, y, z) in the volume along which x and y of each image run.
        box : int
            Image size, pixels.
        scale : float, default 1.0
            Pixel size of the volume over that of the image.

        Returns
        -------
        Tensor of shape (b, box, box//2+1)
            Transforms in rfft2's layout.
        """
        kx, ky = frequency_grid(box, device=axes.device)
        inside = (kx**2 + ky**2 <= 0.25) & (torch.hypot(kx, ky) * scale <= 0.5)
        points = kx[..., None] * axes[:, None, None, 0] + ky[..., None] * axes[:, None, None, 1]
        index = points * (scale * self.padded) + self.padded // 2
        grid = index * (2.0 / (self.padded - 1)) - 1.0
        values = torch.nn.functional.grid_sample(
            self._samples, grid[None], mode="bilinear", padding_mode="zeros", align_corners=True
        )
        return torch.complex(values[0, 0], values[0, 1]) * inside


def view_frames(view_xyz: np.ndarray) -> np.ndarray:
    """Return right-handed frames of viewing directions.

    Parameters
    ----------
    view_xyz : ndarray of shape (n, 3)
        Viewing directions, unit vectors.

    Returns
    -------
    ndarray of shape (n, 3, 3)
        Rows are the directions of the image's x, of its y, and of the view.
    """
    view = view_xyz / np.linalg.norm(view_xyz, axis=1, keepdims=True)
    helper = np.where(np.abs(view[:, [2]]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    x_axis = np.cross(helper, view)
    x_axis /= np.linalg.norm(x_axis, axis=1, keepdims=True)
    return np.stack([x_axis, np.cross(view, x_axis), view], axis=1)


def spread_views(n: int) -> np.ndarray:
    """Return n viewing directions (n, 3) spread evenly over half a sphere (a Fibonacci spiral)."""
    z = (np.arange(n) + 0.5) / n
    azimuth = np.pi * (3.0 - np.sqrt(5.0)) * np.arange(n)
    radius = np.sqrt(1.0 - z**2)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1)
