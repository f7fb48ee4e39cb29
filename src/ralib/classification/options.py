"""Options of a classification: checked by themselves, and against the particles that they are for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ralib.classification.schedule_settings import default_classes
from ralib.classification.whitening import FINEST, LARGEST_RADIUS
from ralib.io import for_computing
from ralib.io.plausible import with_sound_poses
from ralib.types import CtfState, ParticleSet, RalibError, check_whole_number

CTF_CHOICES = ("auto", "on", "off", "flipped")

LEAST_AMPLITUDE_CONTRAST = 0.05
"""Of amplitude contrasts from 0 to 0.1, those below 0.04 misled the classes of a set whose own was 0.07."""


def usual_search_px(box: int) -> float:
    """Return the default of the largest distance of a particle from the centre of a box, pixels."""
    return 0.1 * box


def with_least_amplitude_contrast(particles: ParticleSet) -> ParticleSet:
    """Return particles whose CTF lets some of the coarsest detail through.

    With an amplitude contrast of 0, and no phase shift, it lets nothing through there. Averages would divide by that:
    noise, or what images do hold where the file says less than is true.
    """
    if (ctf := particles.ctf) is None:
        return particles
    shifted = np.abs(np.sin(np.deg2rad(ctf.phase_shift_deg))) > LEAST_AMPLITUDE_CONTRAST
    low = (ctf.amplitude_contrast < LEAST_AMPLITUDE_CONTRAST) & ~shifted
    if not low.any():
        return particles
    least = np.where(low, LEAST_AMPLITUDE_CONTRAST, ctf.amplitude_contrast)
    return particles.replace(ctf=replace(ctf, amplitude_contrast=least)).warned(
        f"an amplitude contrast of {ctf.amplitude_contrast[low].min():g}, as {low.sum()} particles have it, is taken "
        f"as {LEAST_AMPLITUDE_CONTRAST:g}: the CTF would let none of the coarsest detail through",
        "CTF",
        "correct it in the file: 0.07 to 0.1 is usual in ice",
    )


@dataclass(frozen=True)
class ClassificationOptions:
    """Options of a classification; see `Classifier` for their meaning.

    Raises
    ------
    RalibError
        If a value is out of range.
    """

    n_classes: int | None = None
    diameter_A: float | None = None
    resolution_A: float | None = None
    lowest_A: float | None = None
    balance: float = 0.3
    equal_sizes: bool = False
    mirror: bool = True
    ctf: str = "auto"
    search_px: float | None = None
    skip_align: bool = False
    seed: int = 1000

    def __post_init__(self) -> None:
        if self.n_classes is not None:
            check_whole_number("n_classes", self.n_classes, 1)
        check_whole_number("seed", self.seed, 0)
        if not 0 <= self.balance <= 1:
            raise RalibError(f"`balance` {self.balance:g} must lie between 0 (free) and 1 (equal)")
        if self.ctf not in CTF_CHOICES:
            raise RalibError(f"`ctf` {self.ctf!r} is unknown: choose one of {', '.join(CTF_CHOICES)}")
        for name in ("diameter_A", "resolution_A", "lowest_A"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise RalibError(f"`{name}` {value:g} A must be above 0")
        if self.search_px is not None and not self.search_px > 0:
            raise RalibError(f"`search_px` {self.search_px:g} px must be above 0")

    def class_count(self, n: int, n_references: int | None) -> int:
        """Return the number of classes of n particles.

        Parameters
        ----------
        n : int
            Number of particles.
        n_references : int or None
            Number of references given, if any.

        Returns
        -------
        int
            As asked for, or as many as references, or the default for n particles.

        Raises
        ------
        RalibError
            If there are too few particles.
        """
        if n < 2:
            raise RalibError(f"{n} particle{'s' * (n != 1)} cannot be classified: give at least 2")
        n_classes = n_references if self.n_classes is None else self.n_classes
        if n_classes is None:
            n_classes = default_classes(n)
        if n < 2 * n_classes:
            raise RalibError(f"{n} particles are too few for {n_classes} classes: ask for at most {n // 2}")
        return n_classes

    def checked(self, particles: ParticleSet) -> ParticleSet:
        """Return the particles as they can be classified, with what a user should know of them in `warnings`.

        Parameters
        ----------
        particles : ParticleSet
            Particles as they were read.

        Returns
        -------
        ParticleSet
            The particles, with the CTF state that the options give them.

        Raises
        ------
        RalibError
            If particles and options do not fit together.
        """
        if self.skip_align:
            particles = with_sound_poses(particles)
        self._check(particles)
        if self.ctf == "auto" and particles.ctf is not None and particles.pixel_size_A is None:
            particles = particles.warned(
                "the particles have CTF parameters, but their pixel size is not known: the CTF is left out",
                "CTF",
                "give the pixel size with `ParticleSet.pixel_size_A`, or `ctf=off` if that is what you want",
            )
        if self.ctf == "flipped" and particles.ctf is not None:
            flipped = np.maximum(particles.ctf.state, CtfState.PHASE_FLIPPED)
            particles = particles.replace(ctf=particles.ctf.with_state(flipped))
        particles = for_computing(particles, ctf=self.ctf_mode(particles) == "on")
        if self.ctf_mode(particles) == "on":
            particles = with_least_amplitude_contrast(particles)
        return self._within_limits(particles)

    def ctf_mode(self, particles: ParticleSet) -> str:
        """Return whether the CTF of these particles is corrected.

        Parameters
        ----------
        particles : ParticleSet
            The particles.

        Returns
        -------
        str
            'on' or 'off'.
        """
        known = particles.ctf is not None and particles.pixel_size_A is not None
        return "off" if not known or self.ctf == "off" else "on"

    def detail_limits_px(self, particles: ParticleSet) -> dict[str, float | None]:
        """Return the finest and the coarsest detail compared, by the names that `whiten_particles` has for them.

        Parameters
        ----------
        particles : ParticleSet
            The particles.

        Returns
        -------
        dict
            `resolution_px` and `lowest_px`, pixels of the input; None without a limit.
        """
        pixel = particles.pixel_size_A or 1.0
        return {
            "resolution_px": self.resolution_A / pixel if self.resolution_A else None,
            "lowest_px": self.lowest_A / pixel if self.lowest_A else None,
        }

    def search_radius_px(self, particles: ParticleSet) -> float:
        """Return the largest distance of a particle from the centre of its box.

        Parameters
        ----------
        particles : ParticleSet
            The particles.

        Returns
        -------
        float
            Pixels of the input.
        """
        return usual_search_px(particles.box) if self.search_px is None else self.search_px

    def _check(self, particles: ParticleSet) -> None:
        """Refuse options that need what the particles lack."""
        if self.ctf in ("on", "flipped") and particles.ctf is None:
            raise RalibError(
                f"`ctf={self.ctf}`: the particles have no CTF parameters: use `ctf=off`, or a file with them"
            )
        if self.ctf in ("on", "flipped") and particles.pixel_size_A is None:
            raise RalibError(f"`ctf={self.ctf}`: no file says the pixel size: give it with `ParticleSet.pixel_size_A`")
        lengths = (self.diameter_A, self.resolution_A, self.lowest_A)
        if particles.pixel_size_A is None and any(v is not None for v in lengths):
            raise RalibError(
                "lengths in A need a pixel size and no file says it: give one with `ParticleSet.pixel_size_A`"
            )
        if self.skip_align and particles.poses is None:
            raise RalibError("`skip_align`: the particles have no poses: give them with `ParticleSet.poses`")

    def _within_limits(self, particles: ParticleSet) -> ParticleSet:
        """The particles with a warning for each option that is cut to what their images hold."""
        box, pixel = particles.box, particles.pixel_size_A
        if pixel is not None and self.diameter_A is not None and self.diameter_A > 2 * LARGEST_RADIUS * box * pixel:
            particles = particles.warned(
                f"`diameter_A` {self.diameter_A:g} A was cut to {2 * LARGEST_RADIUS * box * pixel:.0f} A: the box is "
                f"{box * pixel:.0f} A wide, and some background must be left",
                "`diameter_A`",
                "give a smaller diameter, or extract the particles in a larger box",
            )
        if pixel is not None and self.resolution_A is not None and self.resolution_A * FINEST < pixel:
            particles = particles.warned(
                f"`resolution_A` {self.resolution_A:g} A was cut to {pixel / FINEST:.3g} A: pixels of {pixel:g} A hold "
                f"nothing beyond {2 * pixel:g} A (Nyquist)",
                "`resolution_A`",
                "leave it out, or extract the particles with smaller pixels",
            )
        if pixel is not None and self.resolution_A is not None and self.resolution_A > box * pixel / 2:
            raise RalibError(
                f"`resolution_A` {self.resolution_A:g} A leaves nothing to compare: the box is {box * pixel:.0f} A wide"
            )
        if self.search_px is not None and self.search_px > box / 2:
            raise RalibError(
                f"`search_px` {self.search_px:g} px: a particle lies within {box // 2} px of the box's centre"
            )
        if pixel is not None and self.lowest_A is not None and self.lowest_A < 2 * pixel:
            raise RalibError(f"`lowest_A` {self.lowest_A:g} A leaves nothing to compare: pixels are {pixel:g} A")
        return particles
