"""Preparation of particle images as they are read: cut, phase-flip, Fourier-crop, invert, normalise, mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ralib.images.ctf import ctf_2d, phase_flip, remaining_flip
from ralib.images.fourier import fourier_resize, resample
from ralib.images.masks import soft_disc
from ralib.images.normalise import (
    divided_by_sd,
    normalise_background,
    usable_images,
    without_offset,
)
from ralib.io import with_plausible_ctf
from ralib.io.cryosparc import with_contrast_inverted
from ralib.io.plausible import one_or_many
from ralib.io.stacks import mixed_boxes
from ralib.types import CtfParameters, CtfState, ParticleSet, RalibError

NORMALISATIONS = ("none", "background", "variance")


@dataclass(frozen=True)
class Preparation:
    """Steps of a preparation, in this order; lengths in pixels of the finished image unless named otherwise.

    Attributes
    ----------
    clip_px : int, optional
        Cut (or pad with the mean of the edge) to this box in real space, in pixels of the input.
    flip_phases : bool, default False
        Multiply each frequency by the sign of the CTF.
    box_px : int, optional
        Fourier-crop (or pad) to this box: the pixel size changes, the field of view stays.
    pixel_size_A : float, optional
        Fourier-crop to the even box whose pixel size comes closest to this, Angstrom.
    invert : bool, default False
        Change the sign of the contrast.
    normalise : str, default 'none'
        'background': subtract the plane fitted outside `background_radius_px` and make the standard deviation there 1
        (as RELION); 'variance': mean 0 and standard deviation 1 of the whole image; 'none'.
    background_radius_px : float, optional
        By default three quarters of half the box.
    mask_radius_px : float, optional
        Fade to 0 beyond this radius.
    mask_edge_px : float, default 5.0
        Width over which images fade.
    """

    clip_px: int | None = None
    flip_phases: bool = False
    box_px: int | None = None
    pixel_size_A: float | None = None
    invert: bool = False
    normalise: str = "none"
    background_radius_px: float | None = None
    mask_radius_px: float | None = None
    mask_edge_px: float = 5.0

    def __post_init__(self) -> None:
        if self.normalise not in NORMALISATIONS:
            raise RalibError(f"`normalise` {self.normalise!r}: choose one of {', '.join(NORMALISATIONS)}")
        if self.box_px is not None and self.pixel_size_A is not None:
            raise RalibError("`box_px` and `pixel_size_A` both set the Fourier crop: give one of them")
        for option, size in (("`box_px`", self.box_px), ("`clip_px`", self.clip_px)):
            if size is not None and not 8 <= size <= 16384:
                raise RalibError(f"{option} {size}: give 8 to 16384 px")
        for option, size_A in (
            ("`pixel_size_A`", self.pixel_size_A),
            ("`mask_radius_px`", self.mask_radius_px),
            ("`background_radius_px`", self.background_radius_px),
        ):
            if size_A is not None and not 0 < size_A < float("inf"):
                raise RalibError(f"{option} {size_A}: give a number above 0")
        if self.background_radius_px is not None and self.normalise != "background":
            raise RalibError("`background_radius_px` is of `normalise=background` alone: give both, or leave it out")
        if not 0 <= self.mask_edge_px < float("inf"):
            raise RalibError(f"`mask_edge_px` {self.mask_edge_px}: give a width of 0 or more")


def prepare_particles(
    particles: ParticleSet,
    preparation: Preparation | None = None,
    *,
    device: torch.device | str = "cpu",
    **options: Any,
) -> ParticleSet:
    """Prepare particles; images are processed when they are read, and none are held in memory.

    Pixel size, poses (origins are in pixels), the CTF's state and, through the writers, image size follow; origins in
    Angstrom are unchanged. Particles of several pixel sizes or boxes each keep their own: `pixel_size_A` brings all to
    exactly that pixel size and to the largest box that every field of view fills, `clip_px` or `box_px` to one box.

    Parameters
    ----------
    particles : ParticleSet
        Particles.
    preparation : Preparation, optional
        The steps.
    device : torch.device or str, default 'cpu'
        Where to compute.
    **options : Any
        Fields of `Preparation`, in place of `preparation`.

    Returns
    -------
    ParticleSet
        Prepared particles.

    Raises
    ------
    RalibError
        If the CTF or the pixel size that a step needs is missing, or `preparation` and options are given.
    """
    if preparation is not None and options:
        raise RalibError(
            f"a Preparation and `{'`, `'.join(options)}` are both given: give one Preparation of all steps"
        )
    preparation = preparation or Preparation(**options)
    if preparation.flip_phases:
        _check_flip(particles)
        particles = with_plausible_ctf(particles)
    source = PreparedSource(particles, preparation, torch.device(device))
    poses, old_A = particles.poses, source.pixel_sizes_A
    if poses is not None:
        growth = torch.from_numpy(np.broadcast_to(source.magnifications, len(poses)).copy())
        poses = poses.replace(origin_xy_px=(poses.origin_xy_px.double() / growth[:, None]).float())
    ctf = particles.ctf
    if ctf is not None and preparation.flip_phases:
        ctf = ctf.with_state(np.maximum(ctf.state, CtfState.PHASE_FLIPPED))
    if preparation.invert:
        particles = with_contrast_inverted(particles)
    one_A, many_A = one_or_many(None if old_A is None else old_A * source.magnifications)
    return particles.replace(images=source, poses=poses, ctf=ctf, pixel_size_A=one_A, pixel_sizes_A=many_A)


def _check_flip(particles: ParticleSet) -> None:
    if particles.ctf is None:
        raise RalibError("phase flipping needs a CTF, and these particles have none: leave `flip_phases` out")
    if particles.pixel_size_A is None:
        raise RalibError("phase flipping needs the pixel size, and no file says it: give `ParticleSet.pixel_size_A`")
    if (particles.ctf.state != CtfState.NONE).all():
        raise RalibError(
            "the file says that the phases of these images are flipped (or that they are multiplied by their CTF) "
            "already: leave `flip_phases` out"
        )


class PreparedSource:
    """An image source that prepares images when they are read.

    Parameters
    ----------
    particles : ParticleSet
        Particles to prepare.
    preparation : Preparation
        The steps.
    device : torch.device
        Where to compute.

    Attributes
    ----------
    bad : set of int
        Images that are not finite or constant, or whose CTF is implausible; they become zeros.
    magnifications : ndarray of shape (n,)
        Pixel size of the finished images over that of the input.
    """

    def __init__(self, particles: ParticleSet, preparation: Preparation, device: torch.device) -> None:
        self.particles, self.preparation, self.device = particles, preparation, device
        self.bad: set[int] = set()
        n = len(particles)
        boxes = getattr(particles.images, "boxes", None)
        self._boxes = np.full(n, particles.box) if boxes is None else boxes
        sizes = particles.pixel_size_A if particles.pixel_sizes_A is None else particles.pixel_sizes_A
        self.pixel_sizes_A = None if sizes is None else np.broadcast_to(np.asarray(sizes, dtype=np.float64), (n,))
        self._mixed = boxes is not None or particles.pixel_sizes_A is not None
        self.box = self._finished_box()
        self.magnifications = self._magnifications()
        radius = preparation.background_radius_px
        if preparation.normalise == "background" and radius is not None and radius > 0.65 * self.box:
            raise RalibError(f"`background_radius_px` {radius}: no background is left in a box of {self.box} px")
        if preparation.mask_radius_px is not None and preparation.mask_radius_px > self.box / 2**0.5:
            raise RalibError(
                f"`mask_radius_px` {preparation.mask_radius_px:g}: nothing lies beyond it in a box of {self.box} px; "
                "leave it out"
            )

    @property
    def n_images(self) -> int:
        """Number of images."""
        return self.particles.images.n_images

    @property
    def _clipped(self) -> np.ndarray:
        return self._boxes if self.preparation.clip_px is None else np.full_like(self._boxes, self.preparation.clip_px)

    @property
    def _to_one_scale(self) -> bool:
        """Whether particles of several pixel sizes or boxes are brought to one pixel size."""
        return self._mixed and self.preparation.pixel_size_A is not None

    def _finished_box(self) -> int:
        p, clipped = self.preparation, self._clipped
        if not self._to_one_scale:
            if p.box_px is None and not (clipped == clipped[0]).all():
                raise RalibError(mixed_boxes(clipped))
            return target_box(p, int(clipped[0]), self.particles.pixel_size_A)
        if self.pixel_sizes_A is None:
            raise RalibError(
                "the pixel size of the input is not known: give it with `ParticleSet.pixel_size_A`, or use `box_px`"
            )
        box = int((clipped * self.pixel_sizes_A).min() / p.pixel_size_A * (1 + 1e-9)) // 2 * 2
        if not 8 <= box <= 16384:
            raise RalibError(f"`pixel_size_A` {p.pixel_size_A} A would make images of {box} px: choose another one")
        return box

    def _magnifications(self) -> np.ndarray:
        if self._to_one_scale:
            assert self.pixel_sizes_A is not None
            assert self.preparation.pixel_size_A is not None
            return self.preparation.pixel_size_A / self.pixel_sizes_A
        return self._clipped / self.box

    def read(self, index: np.ndarray) -> np.ndarray:
        """Return prepared images (b, m, m) in the order of `index` (b,)."""
        index = np.asarray(index, dtype=np.int64).reshape(-1)
        out = np.empty((len(index), self.box, self.box), dtype=np.float32)
        sizes = np.zeros(len(index)) if self.pixel_sizes_A is None else self.pixel_sizes_A[index]
        alike = np.unique(np.stack([self._boxes[index], sizes], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        for kind in range(int(alike.max()) + 1 if len(index) else 0):
            rows = np.flatnonzero(alike == kind)
            out[rows] = self._prepared(index[rows])
        return out

    def _prepared(self, index: np.ndarray) -> np.ndarray:
        """Finished images of particles of one box and pixel size."""
        images = torch.from_numpy(self.particles.images.read(index)).to(self.device)
        usable = usable_images(images)
        if self.particles.usable is not None and self.preparation.flip_phases:
            usable &= torch.from_numpy(self.particles.usable[index]).to(self.device)
        self.bad.update(index[~usable.cpu().numpy()].tolist())
        ctf = None if self.particles.ctf is None else self.particles.ctf[index]
        images = torch.where(usable[:, None, None], images, 0.0)
        size_A = None if self.pixel_sizes_A is None else float(self.pixel_sizes_A[index[0]])
        done = prepare_images(
            images,
            replace(self.preparation, pixel_size_A=None, box_px=self.box),
            ctf=ctf,
            pixel_size_A=size_A,
            magnification=float(self.magnifications[index[0]]),
        )
        return torch.where(usable[:, None, None], done, 0.0).cpu().numpy()


def prepare_images(
    images: Float[Tensor, "b n n"],
    preparation: Preparation,
    *,
    ctf: CtfParameters | None = None,
    pixel_size_A: float | None = None,
    magnification: float | None = None,
) -> Float[Tensor, "b m m"]:
    """Prepare images on their device.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images of one box and pixel size.
    preparation : Preparation
        The steps.
    ctf : CtfParameters, optional
        Their CTF parameters, for phase flipping.
    pixel_size_A : float, optional
        Their pixel size, Angstrom.
    magnification : float, optional
        Pixel size of the finished images over that of the input; by default the field of view stays.

    Returns
    -------
    Tensor of shape (b, m, m)
        Prepared images, float32.

    Raises
    ------
    RalibError
        If the CTF or the pixel size that a step needs is missing.
    """
    images, offset = without_offset(images.float())
    if preparation.clip_px is not None:
        images = clip(images, preparation.clip_px)
    if preparation.flip_phases:
        if ctf is None or pixel_size_A is None:
            raise RalibError("phase flipping needs the CTF and the pixel size")
        transfer = remaining_flip(ctf, ctf_2d(ctf, images.shape[-1], pixel_size_A, device=images.device))
        images = phase_flip(images, transfer)
        offset = torch.where(transfer[:, :1, :1] < 0, -offset, offset)
    n, box = images.shape[-1], target_box(preparation, images.shape[-1], pixel_size_A)
    if magnification is None or abs(magnification * box / n - 1) < 1e-9:
        images = fourier_resize(images, box)
    else:
        images = resample(images, box, magnification)
    if preparation.normalise == "variance":
        images = divided_by_sd(images - images.mean((1, 2), keepdim=True), images.std((1, 2)), images)
    elif preparation.normalise == "background":
        images = normalise_background(images, preparation.background_radius_px)
    else:
        images = images + offset
    if preparation.invert:
        images = -images
    if preparation.mask_radius_px is not None:
        radius_px, edge_px = preparation.mask_radius_px, preparation.mask_edge_px
        images = images * soft_disc(images.shape[-1], radius_px, edge_px, device=images.device)
    return images


def target_box(preparation: Preparation, box: int, pixel_size_A: float | None) -> int:
    """Return the box after Fourier cropping.

    Parameters
    ----------
    preparation : Preparation
        The steps.
    box : int
        Size of the images, pixels.
    pixel_size_A : float or None
        Their pixel size, Angstrom.

    Returns
    -------
    int
        Pixels.

    Raises
    ------
    RalibError
        If the pixel size is needed and unknown, or the box would be out of range.
    """
    if preparation.box_px is not None:
        return preparation.box_px
    if preparation.pixel_size_A is None:
        return box
    if pixel_size_A is None:
        raise RalibError(
            "the pixel size of the input is not known: give it with `ParticleSet.pixel_size_A`, or use `box_px`"
        )
    target = 2 * round(box * pixel_size_A / preparation.pixel_size_A / 2)
    if not 8 <= target <= 16384:
        raise RalibError(
            f"`pixel_size_A` {preparation.pixel_size_A} A would make {box} px images of {pixel_size_A} A/px "
            f"{target} px: choose one nearer to {pixel_size_A}"
        )
    return target


def clip(images: Float[Tensor, "b n n"], box: int) -> Float[Tensor, "b {box} {box}"]:
    """Cut images about the centre, or pad them with the mean of each image's edge.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.
    box : int
        New image size, pixels.

    Returns
    -------
    Tensor of shape (b, box, box)
        Cut or padded images.
    """
    n = images.shape[-1]
    first = n // 2 - box // 2
    if box <= n:
        return images[:, first : first + box, first : first + box]
    edge = torch.cat([images[:, [0, -1]].flatten(1), images[:, 1:-1, [0, -1]].flatten(1)], dim=1)
    padded = edge.mean(1)[:, None, None].repeat(1, box, box)
    padded[:, -first : n - first, -first : n - first] = images
    return padded
