"""Implausible numbers: CTF parameters and poses that are NaN, infinite, zero, or in another unit.

The one place for all readers and commands. A particle with such a number is left out, counted and named; where every
particle has one (a voltage in volts, amplitude contrast in per cent) the file is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ralib.io.stack_file import plausible_pixel_size
from ralib.io.stacks import FilesSource, mixed_boxes
from ralib.types import CtfParameters, Notice, ParticleSet, Poses, RalibError

LIMITS: dict[str, tuple[float, float, str]] = {
    "defocus_u_A": (-3e5, 3e5, "defocus U {:g} A (Angstrom, not micrometres)"),
    "defocus_v_A": (-3e5, 3e5, "defocus V {:g} A (Angstrom, not micrometres)"),
    "astigmatism_angle_deg": (-1e4, 1e4, "astigmatism (defocus) angle {:g} degrees"),
    "voltage_kV": (20.0, 3000.0, "voltage {:g} kV (kilovolts: 300)"),
    "spherical_aberration_mm": (-20.0, 20.0, "spherical aberration {:g} mm (millimetres: 2.7)"),
    "amplitude_contrast": (0.0, 1.0, "amplitude contrast {:g} (a fraction, 0 to 1)"),
    "phase_shift_deg": (-720.0, 720.0, "phase shift {:g} degrees"),
    "bfactor_A2": (-100.0, 1e5, "CTF B-factor {:g} A^2"),
}
"""What can be meant: lowest and highest value, and how a value outside is named."""
LEAST_DEFOCUS_A = 50.0
"""Defocus below which no micrograph is taken: 1.2 is micrometres, 0 was never measured."""


def implausible_ctf(ctf: CtfParameters) -> tuple[np.ndarray, str]:
    """Return which CTFs (n,) are implausible, and what is wrong with the first of them ('' where none is)."""
    bad = np.zeros(len(ctf), dtype=bool)
    reasons: list[tuple[int, str]] = []
    for name, (low, high, reason) in LIMITS.items():
        values = np.asarray(getattr(ctf, name), dtype=np.float64)
        wrong = ~((values >= low) & (values <= high))
        if wrong.any():
            row = int(np.argmax(wrong))
            reasons.append((row, reason.format(values[row])))
            bad |= wrong
    u, v = (np.asarray(values, dtype=np.float64) for values in (ctf.defocus_u_A, ctf.defocus_v_A))
    for name, values in (("", (u + v) / 2), (" U", u), (" V", v)):
        wrong = ~bad & ~(np.abs(values) >= LEAST_DEFOCUS_A)
        if wrong.any():
            row = int(np.argmax(wrong))
            reasons.append((row, f"defocus{name} {values[row]:g} A (Angstrom, not micrometres)"))
            bad |= wrong
    return bad, min(reasons)[1] if reasons else ""


def with_plausible_ctf(particles: ParticleSet) -> ParticleSet:
    """Leave out particles of implausible CTF, for a computation that uses the CTF; repeating it changes nothing.

    Parameters
    ----------
    particles : ParticleSet
        The particles.

    Returns
    -------
    ParticleSet
        The set with those particles marked as not usable.

    Raises
    ------
    RalibError
        If no particle has a plausible CTF.
    """
    if particles.ctf is None:
        return particles
    bad, reason = implausible_ctf(particles.ctf)
    if particles.usable is not None and not (bad & particles.usable).any():
        return particles
    if not bad.any():
        return particles
    source = particles.metadata.path or "the particles"
    if bad.all():
        raise RalibError(
            f"{source}: the CTF of all particles cannot be meant: {reason}; correct the file, or leave the CTF out "
            "(`ctf=off`)"
        )
    return particles.leave_out(
        bad,
        Notice(
            what=f"{named(bad)} left out: the CTF cannot be meant: {reason}",
            where="CTF",
            remedy=f"correct the CTF of these particles in {source}",
        ),
    )


def named(rows: np.ndarray) -> str:
    """Return how many of rows (n,) are True, and the first of them from 1: '3 of 60 particles (4, 9, 17) are'."""
    numbers = np.flatnonzero(rows) + 1
    first = ", ".join(map(str, numbers[:5].tolist())) + (", ..." if len(numbers) > 5 else "")
    return f"{len(numbers)} of {len(rows)} particles ({first}) {'is' if len(numbers) == 1 else 'are'}"


def with_incomplete_ctf_noted(particles: ParticleSet, needed: Sequence[str], given: Sequence[str]) -> ParticleSet:
    """Return the set with a warning where the file has some of the columns that a CTF needs, but not all.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    needed : sequence of str
        Columns (or fields) without which there is no CTF.
    given : sequence of str
        Columns that the file has.

    Returns
    -------
    ParticleSet
        The set.
    """
    missing = [name for name in needed if name not in given]
    if particles.ctf is not None or len(missing) == len(needed):
        return particles
    there = ", ".join(name for name in needed if name in given)
    return particles.warned(
        f"the CTF is incomplete and not used: there is {there}, but no {', '.join(missing)}",
        "CTF",
        f"add what is missing to {particles.metadata.path or 'the file'}, if the CTF is to be corrected",
    )


def sound_poses(poses: Poses | None, box: int) -> tuple[Poses | None, np.ndarray]:
    """Replace implausible poses by none (class -1, no shift).

    Implausible are angles or origins that are not finite, and origins further away than twice the box.

    Parameters
    ----------
    poses : Poses or None
        Poses.
    box : int
        Image size, pixels.

    Returns
    -------
    Poses or None
        The poses; None where no pose is plausible.
    ndarray of shape (n,)
        True where replaced.
    """
    if poses is None:
        return None, np.zeros(0, dtype=bool)
    psi, origin = poses.psi_deg.double().numpy(), poses.origin_xy_px.double().numpy()
    farthest = 2.0 * box if box else 1e5
    bad = ~(np.isfinite(psi) & (np.abs(psi) < 1e6) & (np.abs(origin) <= farthest).all(axis=1))
    if not bad.any():
        return poses, bad
    if bad.all():
        return None, bad
    import torch

    rows = torch.from_numpy(bad)
    return (
        poses.replace(
            psi_deg=poses.psi_deg.masked_fill(rows, 0.0),
            origin_xy_px=poses.origin_xy_px.masked_fill(rows[:, None], 0.0),
            class_index=poses.class_index.masked_fill(rows, -1),
        ),
        bad,
    )


def with_sound_poses(particles: ParticleSet) -> ParticleSet:
    """Return the set with particles of implausible pose left out; without poses where none is plausible."""
    poses, bad = sound_poses(particles.poses, particles.box)
    if particles.poses is None or not bad.any():
        return particles
    source = particles.metadata.path or "the input"
    if poses is None:
        return particles.replace(poses=None).warned(
            "no particle has a pose that can be meant (angles or origins are no numbers, or far outside the box)",
            "poses",
            f"correct angles and origins in {source} if they are needed",
        )
    return particles.replace(poses=poses).leave_out(
        bad,
        Notice(
            what=f"{named(bad)} left out: angle or origin is no number, or far outside the box",
            where="poses",
            remedy=f"correct angles and origins of these particles in {source}",
        ),
    )


def check_pixel_sizes(size_A: np.ndarray, where: str) -> np.ndarray:
    """Check pixel sizes.

    Parameters
    ----------
    size_A : ndarray of shape (n,)
        Pixel sizes, Angstrom.
    where : str
        Where they come from, for the error.

    Returns
    -------
    ndarray of shape (n,)
        The same.

    Raises
    ------
    RalibError
        With the first that is implausible.
    """
    good = np.array([plausible_pixel_size(size) for size in size_A.tolist()])
    if not good.all():
        row = int(np.argmin(good))
        raise RalibError(f"{where}: pixel size {size_A[row]:g} A/px of particle {row + 1} cannot be meant: correct it")
    return size_A


def with_header_scales_noted(particles: ParticleSet, stated_A: np.ndarray | None) -> ParticleSet:
    """Return the set with warnings where the headers of the image files tell of other pixel sizes than are used.

    A header's 1 A/px is what programs write that know none, and counts as such where the particle file states one.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    stated_A : ndarray of shape (n,) or None
        Pixel size that the particle file itself states, Angstrom; None where it states none.

    Returns
    -------
    ParticleSet
        The set.
    """
    images = particles.images
    if not isinstance(images, FilesSource):
        return particles
    header_A = images.header_sizes_A
    source = particles.metadata.path or "the particle file"
    unknown = np.isnan(header_A)
    if stated_A is None:
        if unknown.any() and not unknown.all():
            taken = particles.pixel_size_A if particles.pixel_sizes_A is None else particles.pixel_sizes_A[unknown][0]
            return particles.warned(
                f"{named(unknown)} in files whose headers say no pixel size: {taken:g} A/px is taken, as in the others",
                "pixel size",
                f"add the pixel size to {source}, if theirs is another",
            )
        return particles
    with np.errstate(invalid="ignore"):
        other = ~unknown & (np.abs(header_A - 1) > 1e-6) & (np.abs(header_A / stated_A - 1) > 0.01)
    if not other.any():
        return particles
    row = int(np.argmax(other))
    return particles.warned(
        f"{named(other)} in files whose headers say another pixel size ({header_A[row]:g} A/px) than "
        f"{source} ({stated_A[row]:g} A/px): the latter is taken",
        "pixel size",
        "correct the one that is wrong, or give the pixel size as an option",
    )


def with_stated_boxes_noted(particles: ParticleSet, stated_px: np.ndarray) -> ParticleSet:
    """Return the set with a warning where images have another box than their file says.

    Such images were cropped or binned since, and the pixel size that the file states may be that of the former ones.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    stated_px : ndarray of shape (n,)
        Box of each image as the file states it, pixels; not above 0 where it does not.

    Returns
    -------
    ParticleSet
        The set.
    """
    images = particles.images
    if not isinstance(images, FilesSource):
        return particles
    boxes = np.broadcast_to(images.box if images.boxes is None else images.boxes, len(particles))
    other = (stated_px > 0) & (stated_px != boxes)
    if not other.any():
        return particles
    row = int(np.argmax(other))
    return particles.warned(
        f"{named(other)} of {boxes[row]} px, where {particles.metadata.path or 'the file'} says {stated_px[row]:g} px: "
        "if they were binned since, the pixel size and the origins there are not theirs",
        "images",
        "correct the file, or give the pixel size as an option",
    )


def with_plausible_scale(particles: ParticleSet) -> ParticleSet:
    """Return the set without a pixel size that a header states and that cannot be meant, and a warning about it."""
    odd = getattr(particles.images, "odd_sizes", None)
    size_A = particles.pixel_size_A
    if odd:
        path, size_A = odd[0]
        what = f"{path}" if len(odd) == 1 else f"{len(odd)} files ({path}, ...)"
    elif size_A is not None and not plausible_pixel_size(size_A):
        particles, what = particles.replace(pixel_size_A=None), particles.metadata.path
    else:
        return particles
    return particles.warned(
        f"{what}: the header's pixel size of {size_A:g} A/px cannot be meant, and is not used",
        "pixel size",
        "give the pixel size as an option",
    )


def one_or_many(size_A: np.ndarray | float | None) -> tuple[float | None, np.ndarray | None]:
    """Return (pixel size, None) where all particles share it, else (the most frequent one, each particle's (n,))."""
    if size_A is None or isinstance(size_A, float):
        return size_A, None
    unique, counts = np.unique(size_A, return_counts=True)
    common = float(unique[np.argmax(counts)])
    return common, None if np.allclose(size_A, common, rtol=1e-6, atol=0) else np.asarray(size_A, dtype=np.float64)


def for_computing(particles: ParticleSet, *, ctf: bool) -> ParticleSet:
    """Return the set as a computation over all its images needs it: one box, one scale, and with `ctf` plausible CTFs.

    Pixel sizes that differ by less than a pixel over the whole box count as one scale; each particle's CTF keeps its
    own.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    ctf : bool
        Whether the CTF is used.

    Returns
    -------
    ParticleSet
        The set.

    Raises
    ------
    RalibError
        For several boxes or scales, with the command that brings them to one.
    """
    boxes = getattr(particles.images, "boxes", None)
    sizes = particles.pixel_sizes_A
    if boxes is not None:
        several = sizes is not None and np.ptp(sizes) * particles.box > float(np.median(sizes))
        raise RalibError(mixed_pixel_sizes(sizes) if sizes is not None and several else mixed_boxes(boxes))
    if sizes is not None:
        common = particles.pixel_size_A or float(np.median(sizes))
        if np.ptp(sizes) * particles.box > common:
            raise RalibError(mixed_pixel_sizes(sizes))
        own = particles.ctf if particles.ctf is None else particles.ctf.in_pixels_of(sizes, common)
        if ctf:
            particles = with_plausible_ctf(particles)  # by the numbers that the file holds
        return particles.replace(ctf=own, pixel_size_A=common)
    return with_plausible_ctf(particles) if ctf else particles


def usable_only(particles: ParticleSet) -> tuple[ParticleSet, np.ndarray]:
    """Return the particles that are not left out, and their numbers (m,), for what takes all that it is given."""
    if particles.usable is None or particles.usable.all():
        return particles, np.arange(len(particles))
    rows = np.flatnonzero(particles.usable)
    if not len(rows):
        raise RalibError(
            f"{particles.metadata.path or 'the particles'}: no particle is left: correct the numbers above"
        )
    return particles[rows], rows


def mixed_pixel_sizes(sizes_A: np.ndarray) -> str:
    """Return the error text for images (n,) of several pixel sizes, with advice."""
    sizes = np.unique(np.round(sizes_A, 5))
    shown = " and ".join(f"{size:g}" for size in sizes[:4]) + (" and more" if len(sizes) > 4 else "")
    return (
        f"the particles have several pixel sizes ({shown} A/px) and cannot be averaged: bring them to one with 'ralib "
        f"prepare STACK OUT.star --to-pixel-size {sizes[-1]:g}', and use OUT.star"
    )
