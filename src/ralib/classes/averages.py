"""From poses to class averages: half sums, CTF-weighted averages, Fourier ring correlation; shifted averages.

The loops call these in this order in each iteration:

    sums.add_(...) for every batch  ->  class_averages  ->  references.prepare_references
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ralib.conventions import compose
from ralib.images.ctf import ctf_2d
from ralib.images.fourier import ring_counts, ring_sums, shift_images, spread_rings
from ralib.images.frc import frc, ssnr
from ralib.kernels import Samples, rotate_shift_sum
from ralib.runtime.distributed import Ranks
from ralib.types import ClassAverages, CtfParameters, Poses

LEAST_CTF_POWER = 2e-3
"""Sums of CTF^2 below this share of their mean are no signal: next to frequency 0 where the amplitude contrast is 0."""


@dataclass(frozen=True)
class ClassSums:
    """Running sums over the particles of each class, of even and odd ones apart.

    Attributes
    ----------
    images : Tensor of shape (2, k, n, n)
        Sums of images in the class frame (times their CTF, where there is one), float64.
    ctf_power : Tensor of shape (2, k, n, n // 2 + 1) or None
        Sums of CTF^2 in the class frame, float64, or None.
    members : Tensor of shape (2, k)
        Numbers of particles, float64.
    """

    images: Tensor
    ctf_power: Tensor | None
    members: Tensor

    @classmethod
    def empty(cls, n_classes: int, box: int, device: torch.device, *, ctf: bool) -> ClassSums:
        """Allocate zero sums.

        Parameters
        ----------
        n_classes : int
            Number of classes k.
        box : int
            Image size n, pixels.
        device : torch.device
            Where the sums are.
        ctf : bool
            Whether to sum CTF^2.

        Returns
        -------
        ClassSums
            The sums.
        """

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        power = zeros(2, n_classes, box, box // 2 + 1) if ctf else None
        return cls(zeros(2, n_classes, box, box), power, zeros(2, n_classes))

    @property
    def n_classes(self) -> int:
        """Number of classes k."""
        return self.members.shape[1]

    def add_(
        self,
        images: Tensor | Samples,
        poses: Poses,
        half: Tensor,
        ctf_power: Tensor | None,
        sign: int = 1,
        *,
        rounded: bool = False,
    ) -> None:
        """Add particles to the sums.

        Parameters
        ----------
        images : Tensor or Samples of shape (b, n, n)
            Images, or their interpolation samples.
        poses : Poses
            Their poses; those of class -1 count nowhere.
        half : Tensor of shape (b,)
            Half data set of each, 0 or 1.
        ctf_power : Tensor of shape (b, n, n // 2 + 1) or None
            Their CTF^2 in the class frame, or None.
        sign : int, default 1
            1 to add, -1 to subtract.
        rounded : bool, default False
            Whether interpolation samples pass through half precision; see `rotate_shift_sum`.
        """
        pose = (poses.psi_deg, poses.origin_xy_px, poses.mirror)
        # A particle of no class counts as nothing in the first one: choosing rows would wait for the device.
        row = half * self.n_classes + poses.class_index.clamp_min(0)
        keep = poses.class_index >= 0
        # Running sums in float64, so that how particles are cut into batches leaves no trace.
        weights = None if sign == 1 else torch.full_like(poses.psi_deg, sign)
        rotate_shift_sum(
            images, *pose, poses.class_index, self.n_classes,
            weights=weights, half_index=half, out=self.images, rounded=rounded,
        )  # fmt: skip
        self.members.view(-1).index_add_(0, row, keep.double(), alpha=sign)
        if self.ctf_power is not None and ctf_power is not None:
            power = torch.where(keep[:, None, None], ctf_power.double(), 0.0)
            self.ctf_power.flatten(0, 1).index_add_(0, row, power, alpha=sign)

    def all_reduce_(self, ranks: Ranks) -> None:
        """Replace the sums by those over all ranks."""
        for part in (self.images, self.ctf_power, self.members):
            if part is not None:
                ranks.all_reduce_(part)


def ctf_power_in_class_frame(ctf: CtfParameters, poses: Poses, box: int, pixel_size_A: float) -> Tensor:
    """Compute CTF^2 of each particle in the frame of its class average; only astigmatism depends on the pose.

    Parameters
    ----------
    ctf : CtfParameters
        CTF parameters of b particles.
    poses : Poses
        Their poses.
    box : int
        Image size n, pixels.
    pixel_size_A : float
        Pixel size, Angstrom.

    Returns
    -------
    Tensor of shape (b, n, n // 2 + 1)
        Squared CTF.
    """
    angle = ctf.astigmatism_angle_deg + poses.psi_deg.cpu().numpy().astype(np.float64)
    angle = np.where(poses.mirror.cpu().numpy(), -angle, angle)
    turned = replace(ctf, astigmatism_angle_deg=angle)
    return ctf_2d(turned, box, pixel_size_A, device=poses.psi_deg.device).square()


def class_averages(
    sums: ClassSums, *, snr: float | None = None, mask: Tensor | None = None, pixel_size_A: float | None = None
) -> ClassAverages:
    """Compute averages, half averages and their FRC from class sums.

    With CTF sums this is the Wiener average, sum(CTF F) / (sum(CTF^2) + 1 / snr).

    Parameters
    ----------
    sums : ClassSums
        Sums over all particles.
    snr : float, optional
        Signal to noise ratio of one particle; by default measured on each ring from the halves.
    mask : Tensor of shape (n, n), optional
        Mask for the FRC.
    pixel_size_A : float, optional
        Pixel size to record, Angstrom.

    Returns
    -------
    ClassAverages
        The averages; a class without members is zero.
    """
    members = sums.members.sum(0)
    if sums.ctf_power is None:
        halves = sums.images / sums.members.clamp_min(1)[..., None, None]
        whole = sums.images.sum(0) / members.clamp_min(1)[:, None, None]
        curve = frc(halves[0], halves[1], mask)
    else:
        start = 1.0 if snr is None else snr
        halves = _wiener(sums.images, sums.ctf_power, torch.full_like(sums.members, 0.5 / start)[..., None])
        curve = frc(halves[0], halves[1], mask)
        power = sums.ctf_power.sum(0)
        noise = torch.full_like(curve, 1.0 / start) if snr is not None else _inverse_snr(curve, power)
        whole = _wiener(sums.images.sum(0), power, noise)
    curve = torch.where((sums.members > 0).all(0)[:, None], curve, 0.0)
    return ClassAverages(whole.float(), members.long(), halves.float(), curve.float(), pixel_size_A)


def _wiener(image_sums: Tensor, ctf_power: Tensor, inverse_snr: Tensor) -> Tensor:
    """irfft2(F / (power + 1/snr)), 0 where the CTF let nothing through; inverse_snr (..., rings) or (..., 1)."""
    box = image_sums.shape[-1]
    if inverse_snr.shape[-1] == 1:
        inverse_snr = inverse_snr.expand(*inverse_snr.shape[:-1], box // 2 + 1)
    denominator = ctf_power + spread_rings(inverse_snr, box)
    nothing = ~(denominator > LEAST_CTF_POWER * ctf_power.mean((-2, -1), keepdim=True))
    filtered = torch.fft.rfft2(image_sums) / torch.where(nothing, 1.0, denominator)
    filtered = torch.where(nothing, 0.0, filtered)
    return torch.fft.irfft2(filtered, s=(box, box))


def _inverse_snr(curve: Tensor, ctf_power: Tensor) -> Tensor:
    """1 / (signal to noise ratio of one particle) per ring, from the halves' FRC: (k, rings).

    The average has SSNR = snr * mean(sum CTF^2); rings whose FRC is noise are held at a small ratio, which damps
    them without erasing them.
    """
    box = ctf_power.shape[-2]
    mean_power = ring_sums(ctf_power) / ring_counts(box, ctf_power.device)
    return mean_power / ssnr(torch.nan_to_num(curve).clamp_min(0.01))


def shift_poses(poses: Poses, class_shift_xy_px: Tensor) -> Poses:
    """Change poses as each class average is shifted.

    Parameters
    ----------
    poses : Poses
        Poses of all particles.
    class_shift_xy_px : Tensor of shape (k, 2)
        Shift of each class average, pixels.

    Returns
    -------
    Poses
        Poses onto the shifted averages.
    """
    index = poses.class_index.clamp_min(0)
    second = class_shift_xy_px.to(poses.origin_xy_px)[index] * (poses.class_index >= 0)[:, None]
    still = torch.zeros_like(poses.psi_deg)
    psi, origin, mirror = compose(
        (poses.psi_deg, poses.origin_xy_px, poses.mirror), (still, second, torch.zeros_like(poses.mirror))
    )
    return poses.replace(psi_deg=psi, origin_xy_px=origin, mirror=mirror)


def shift_averages(averages: ClassAverages, class_shift_xy_px: Tensor) -> ClassAverages:
    """Shift averages and half averages.

    Parameters
    ----------
    averages : ClassAverages
        Class averages.
    class_shift_xy_px : Tensor of shape (k, 2)
        Shift of each, pixels.

    Returns
    -------
    ClassAverages
        Shifted averages.
    """
    halves = averages.half_images
    if halves is not None:
        both = class_shift_xy_px.repeat(2, 1)
        halves = shift_images(halves.flatten(0, 1), both).view_as(halves)
    return replace(averages, images=shift_images(averages.images, class_shift_xy_px), half_images=halves)
