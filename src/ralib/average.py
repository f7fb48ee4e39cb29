"""From poses to class averages: half sums, CTF-weighted averages, ring correlation, low-pass, mask, centring.

The loops call these in this order once an iteration:

    sums.add_(...) for every batch  ->  class_averages  ->  prepare_references  ->  the next iteration's references
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ralib import metrics
from ralib.conventions import compose, mirror_x, rotate_xy
from ralib.ctf import ctf_2d
from ralib.ops import Samples, rotate_shift_sum
from ralib.ranks import Ranks
from ralib.sparx.centering import center_shift
from ralib.types import ClassAverages, CtfParameters, Poses


@dataclass(frozen=True)
class ClassSums:
    """Running sums over the particles of each class, even and odd ones apart.

    images     (2, k, n, n) float64, images in the class frame (times their CTF, where there is one)
    ctf_power  (2, k, n, n//2+1) float64, sums of CTF^2 in the class frame, or None
    members    (2, k) float64
    """

    images: Tensor
    ctf_power: Tensor | None
    members: Tensor

    @classmethod
    def empty(cls, n_classes: int, box: int, device: torch.device, *, ctf: bool) -> ClassSums:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        power = zeros(2, n_classes, box, box // 2 + 1) if ctf else None
        return cls(zeros(2, n_classes, box, box), power, zeros(2, n_classes))

    @property
    def n_classes(self) -> int:
        return self.members.shape[1]

    def add_(
        self, images: Tensor | Samples, poses: Poses, half: Tensor, ctf_power: Tensor | None, sign: int = 1
    ) -> None:
        """Add particles (b, n, n) under their poses to half 0 or 1 (b,); sign -1 takes them out again."""
        pose = (poses.psi_deg, poses.origin_xy_px, poses.mirror)
        keep = poses.class_index >= 0
        row = (half * self.n_classes + poses.class_index)[keep]
        # Running sums in float64, so that how particles are cut into batches leaves no trace.
        weights = None if sign == 1 else torch.full_like(poses.psi_deg, sign)
        rotate_shift_sum(
            images, *pose, poses.class_index, self.n_classes, weights=weights, half_index=half, out=self.images
        )
        one = torch.full_like(row, sign, dtype=torch.float64)
        self.members.view(-1).index_add_(0, row, one)
        if self.ctf_power is not None and ctf_power is not None:
            self.ctf_power.flatten(0, 1).index_add_(0, row, ctf_power[keep].double(), alpha=sign)

    def all_reduce_(self, ranks: Ranks) -> None:
        """Make every rank hold the sums over all ranks."""
        for part in (self.images, self.ctf_power, self.members):
            if part is not None:
                ranks.all_reduce_(part)


def ctf_power_in_class_frame(ctf: CtfParameters, poses: Poses, box: int, pixel_size_A: float) -> Tensor:
    """CTF^2 of each particle as its class average sees it: (b, n, n//2+1); only astigmatism notices the turn."""
    angle = ctf.astigmatism_angle_deg + poses.psi_deg.cpu().numpy().astype(np.float64)
    angle = np.where(poses.mirror.cpu().numpy(), -angle, angle)
    turned = replace(ctf, astigmatism_angle_deg=angle)
    return ctf_2d(turned, box, pixel_size_A, device=poses.psi_deg.device).square()


def class_averages(
    sums: ClassSums, *, snr: float | None = None, mask: Tensor | None = None, pixel_size_A: float | None = None
) -> ClassAverages:
    """Averages, half averages and their FRC; a class without members is all zero.

    With CTF sums the average is Wiener's, sum(CTF F) / (sum(CTF^2) + 1 / snr), with the signal to noise ratio of one
    particle either given or, for None, measured ring by ring from the halves.
    """
    members = sums.members.sum(0)
    if sums.ctf_power is None:
        halves = sums.images / sums.members.clamp_min(1)[..., None, None]
        whole = sums.images.sum(0) / members.clamp_min(1)[:, None, None]
        curve = metrics.frc(halves[0], halves[1], mask)
    else:
        start = 1.0 if snr is None else snr
        halves = _wiener(sums.images, sums.ctf_power, torch.full_like(sums.members, 0.5 / start)[..., None])
        curve = metrics.frc(halves[0], halves[1], mask)
        power = sums.ctf_power.sum(0)
        noise = torch.full_like(curve, 1.0 / start) if snr is not None else _inverse_snr(curve, power)
        whole = _wiener(sums.images.sum(0), power, noise)
    curve = torch.where((sums.members > 0).all(0)[:, None], curve, 0.0)
    return ClassAverages(whole.float(), members.long(), halves.float(), curve.float(), pixel_size_A)


def _wiener(image_sums: Tensor, ctf_power: Tensor, inverse_snr: Tensor) -> Tensor:
    """irfft2(F / (power + 1/snr)); inverse_snr (..., rings) or (..., 1)."""
    box = image_sums.shape[-1]
    if inverse_snr.shape[-1] == 1:
        inverse_snr = inverse_snr.expand(*inverse_snr.shape[:-1], box // 2 + 1)
    filtered = torch.fft.rfft2(image_sums) / (ctf_power + metrics.spread_rings(inverse_snr, box))
    return torch.fft.irfft2(filtered, s=(box, box))


def _inverse_snr(curve: Tensor, ctf_power: Tensor) -> Tensor:
    """1 / (signal to noise ratio of one particle) per ring, from the halves' FRC: (k, rings).

    The average has SSNR = snr * mean(sum CTF^2); rings whose FRC is noise are held at a small ratio, which damps
    them without erasing them.
    """
    box = ctf_power.shape[-2]
    mean_power = metrics.ring_sums(ctf_power) / metrics.ring_counts(box, ctf_power.device)
    return mean_power / metrics.ssnr(curve.clamp_min(0.01))


def fit_low_pass(curve: Tensor, cutoff_range: tuple[float, float], max_falloff: float) -> tuple[Tensor, Tensor]:
    """Cut-off (k,) and fall-off (k,) of the tanh filter closest to each FRC curve (k, rings), least squares.

    A curve counts as zero after it first falls below 0.1, as in SPARX's fit_tanh; a grid search stands in for its
    simplex, so that no curve can lead it astray.
    """
    frequency = torch.linspace(0, 0.5, curve.shape[-1], device=curve.device)
    alive = torch.cumprod((curve[:, 1:] >= 0.1).int(), dim=1)
    target = torch.cat([torch.ones_like(curve[:, :1]), curve[:, 1:].clamp(0, 1) * alive], dim=1)
    cutoffs = torch.linspace(*cutoff_range, 81, device=curve.device)
    falloffs = torch.linspace(0.05, max_falloff, 8, device=curve.device)
    grid = torch.cartesian_prod(cutoffs, falloffs)
    filters = tanh_low_pass(frequency, grid[:, :1], grid[:, 1:])
    best = torch.cdist(target, filters.to(target)).argmin(1)
    return grid[best, 0], grid[best, 1]


def tanh_low_pass(frequency: Tensor, cutoff: Tensor, falloff: Tensor) -> Tensor:
    """SPARX's filt_tanl, one half at `cutoff`: 0.5 (tanh(c (f + cutoff)) - tanh(c (f - cutoff))), c = pi/(2 a cutoff).

    frequency (r,) in cycles per pixel against cutoff and falloff that broadcast with it.
    """
    c = math.pi / (2.0 * falloff * cutoff)
    return 0.5 * (torch.tanh(c * (frequency + cutoff)) - torch.tanh(c * (frequency - cutoff)))


def low_pass(images: Tensor, cutoff: Tensor, falloff: Tensor) -> Tensor:
    """Images (k, n, n) under the tanh filter of each."""
    n = images.shape[-1]
    fy = torch.fft.fftfreq(n, device=images.device)[:, None]
    fx = torch.fft.rfftfreq(n, device=images.device)[None, :]
    response = tanh_low_pass(torch.hypot(fy, fx), cutoff[:, None, None], falloff[:, None, None])
    return torch.fft.irfft2(torch.fft.rfft2(images) * response, s=(n, n))


def shift_images(images: Tensor, shift_xy_px: Tensor) -> Tensor:
    """Images (k, n, n) moved by (k, 2) pixels, by Fourier phases."""
    n = images.shape[-1]
    fy = torch.fft.fftfreq(n, device=images.device)[:, None]
    fx = torch.fft.rfftfreq(n, device=images.device)[None, :]
    turn = -2 * math.pi * (shift_xy_px[:, 0, None, None] * fx + shift_xy_px[:, 1, None, None] * fy)
    phase = torch.polar(torch.ones_like(turn), turn)
    return torch.fft.irfft2(torch.fft.rfft2(images) * phase, s=(n, n))


def shift_poses(poses: Poses, class_shift_xy_px: Tensor) -> Poses:
    """Poses after each class average moved by class_shift (k, 2): the members follow their average."""
    index = poses.class_index.clamp_min(0)
    second = class_shift_xy_px.to(poses.origin_xy_px)[index] * (poses.class_index >= 0)[:, None]
    still = torch.zeros_like(poses.psi_deg)
    psi, origin, mirror = compose(
        (poses.psi_deg, poses.origin_xy_px, poses.mirror), (still, second, torch.zeros_like(poses.mirror))
    )
    return poses.replace(psi_deg=psi, origin_xy_px=origin, mirror=mirror)


def shift_averages(averages: ClassAverages, class_shift_xy_px: Tensor) -> ClassAverages:
    """Averages and half averages moved by class_shift (k, 2)."""
    halves = averages.half_images
    if halves is not None:
        both = class_shift_xy_px.repeat(2, 1)
        halves = shift_images(halves.flatten(0, 1), both).view_as(halves)
    return replace(averages, images=shift_images(averages.images, class_shift_xy_px), half_images=halves)


@dataclass(frozen=True)
class ReferencePlan:
    """How class averages become the next references.

    mask              (n, n) soft mask, 1 where the particle is
    center            SPARX's centring method -1..7; see `sparx.centering`
    outer_radius      the mask's radius, pixels
    cutoff_range      the low-pass cut-off stays in it, cycles per pixel
    max_falloff       of the low-pass
    center_reference  (n, n) for centring method 4
    fourier_variance  weight every ring by one over its noise (SPARX's --Fourvar) before the low-pass
    """

    mask: Tensor
    center: int
    outer_radius: float
    cutoff_range: tuple[float, float] = (0.1, 0.45)
    max_falloff: float = 0.2
    center_reference: Tensor | None = None
    fourier_variance: bool = False


def shift_limit_px(box: int, outer_radius: float) -> float:
    """How far a disc may move from the centre pixel and stay inside the box; at least one pixel, as in SPARX."""
    return max(1.0, box // 2 - 1 - outer_radius)


def prepare_references(
    averages: ClassAverages, plan: ReferencePlan, poses: Poses, room_px: float
) -> tuple[Tensor, Tensor]:
    """References (k, n, n) for the next iteration, and how far each was moved to its centre, (k, 2) pixels.

    Low-pass by the FRC, centre, mask. An average moves only as far as its members' mean shift stays within `room_px`,
    however many iterations push it: beyond that its disc, or its members', would leave the box.
    """
    if averages.frc is None:
        raise ValueError("references need the averages' FRC")
    images = averages.images
    if plan.fourier_variance:
        images = _divide_by_noise(averages)
    images = low_pass(images, *fit_low_pass(averages.frc, plan.cutoff_range, plan.max_falloff))
    mean = mean_member_shift(poses, len(images)).to(images.device)
    off = mean if plan.center == -1 else _off_centre(images * plan.mask, plan, room_px)
    move = limit_shift(mean - off, room_px) - mean if plan.center != 0 else torch.zeros_like(mean)
    move = torch.where((averages.members > 0)[:, None], move, 0.0).float()
    if plan.center != 0:
        images = shift_images(images, move)
    return images * plan.mask, move


def limit_shift(shift_xy_px: Tensor, limit_px: float) -> Tensor:
    """Shifts (k, 2) no longer than the limit, their direction kept."""
    length = torch.linalg.vector_norm(shift_xy_px, dim=-1, keepdim=True)
    return shift_xy_px * (limit_px / length.clamp_min(max(limit_px, 1e-6)))


def _off_centre(images: Tensor, plan: ReferencePlan, room_px: float) -> Tensor:
    """How far (k, 2) each average lies from the centre, by the method of the plan."""
    shift = center_shift(
        images,
        plan.center,
        search_range_px=-1 if plan.center in (1, 6) else 2 * max(1, round(room_px)) + 1,
        inner_radius_px=plan.outer_radius / 3,
        outer_radius_px=plan.outer_radius / 2,
        reference=plan.mask if plan.center_reference is None else plan.center_reference,
    )
    return shift.to(images)


def mean_member_shift(poses: Poses, n_classes: int) -> Tensor:
    """Mean shift (k, 2) of each class's members in the class frame; 0 for an empty class."""
    shift = mirror_x(rotate_xy(poses.psi_deg, poses.origin_xy_px), poses.mirror)
    keep = poses.class_index >= 0
    index = poses.class_index[keep]
    total = torch.zeros(n_classes, 2, device=shift.device).index_add_(0, index, shift[keep])
    return total / torch.bincount(index, minlength=n_classes).clamp_min(1)[:, None]


def _divide_by_noise(averages: ClassAverages) -> Tensor:
    """Averages with every ring divided by the noise amplitude there, measured on the difference of the halves."""
    if averages.half_images is None:
        raise ValueError("weighting by the Fourier variance needs half averages")
    box = averages.images.shape[-1]
    difference = torch.fft.rfft2(averages.half_images[0] - averages.half_images[1]).abs().square()
    noise = metrics.ring_sums(difference) / metrics.ring_counts(box, difference.device)
    weight = metrics.spread_rings(noise.clamp_min(1e-12).rsqrt(), box).float()
    return torch.fft.irfft2(torch.fft.rfft2(averages.images) * weight, s=(box, box))
