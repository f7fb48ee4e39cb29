"""The truth of simulated particles: pose, view, defocus, junk; and the options by which it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from ralib.conventions import mirror_x, rotate_xy
from ralib.simulation.phantom import view_frames
from ralib.types import CtfParameters, Poses, RalibError


class Junk(IntEnum):
    """Kind of junk that a particle is, or none."""

    NONE = 0
    EMPTY_ICE = 1
    HALF_OUT = 2
    CONTAMINATION = 3


_LIMITS: dict[str, tuple[float, float]] = {
    "n_particles": (1, 10**9), "box": (16, 2048), "snr": (1e-9, 1e9), "seed": (0, 2**63 - 1), "n_views": (0, 10**6),
    "n_references": (1, 10**6), "shift_sd_px": (0, 1e4), "contrast_sd": (0, 1e3), "astigmatism_A": (0, 1e5),
    "voltage_kV": (20, 3000), "spherical_aberration_mm": (-20, 20), "amplitude_contrast": (0, 1),
    "particles_per_micrograph": (1, 10**9),
}  # fmt: skip
"""Lowest and highest value of each number: NaN is in no range."""


@dataclass(frozen=True)
class SimulationOptions:
    """Options of a simulation.

    Fractions are from 0 to 1, lengths in pixels unless their names say A.

    Attributes
    ----------
    n_particles : int
        Number of particles.
    box : int
        Image size, pixels.
    snr : float, default 0.1
        Variance of the clean signal (after the CTF, inside the largest circle) over that of the noise.
    seed : int, default 0
        Of all random numbers.
    pixel_size_A : float, optional
        Pixel size, Angstrom; by default from the volume.
    n_views : int, default 0
        K > 0: K discrete views, the classes; 0: continuous views, uniform on the sphere.
    view_frequencies : sequence of float, optional
        Relative frequency of each discrete view; by default equal.
    preferred_fraction : float, default 0.0
        Fraction of continuous views from one spot of the sphere.
    mirror : bool, default True
        Whether half of the particles show the mirror image of their discrete view (that of a continuous view is another
        view).
    shift_sd_px : float, default 1.2
        Standard deviation of the picking error along x and y, truncated at 2.5 of it, pixels.
    contrast_sd : float, default 0.1
        Standard deviation of the particles' contrast about 1.
    junk_fraction : float, default 0.0
        Fraction of junk particles.
    coloured_noise : float, default 0.0
        Fraction of the noise variance that is solvent, filtered by the CTF.
    ctf : bool, default True
        Whether particles have a CTF.
    defocus_range_A : tuple of float, default (8000.0, 28000.0)
        Range of the defocus, Angstrom.
    astigmatism_A : float, default 800.0
        Largest difference of defocus, Angstrom.
    voltage_kV : float, default 300.0
        Acceleration voltage, kV.
    spherical_aberration_mm : float, default 2.7
        Spherical aberration, mm.
    amplitude_contrast : float, default 0.1
        Amplitude contrast, a fraction.
    particles_per_micrograph : int, default 100
        Particles with one defocus.
    n_references : int, default 20
        Reference images to make with continuous views (discrete ones give K for each species).
    """

    n_particles: int
    box: int
    snr: float = 0.1
    seed: int = 0
    pixel_size_A: float | None = None
    n_views: int = 0
    view_frequencies: Sequence[float] | None = None
    preferred_fraction: float = 0.0
    mirror: bool = True
    shift_sd_px: float = 1.2
    contrast_sd: float = 0.1
    junk_fraction: float = 0.0
    coloured_noise: float = 0.0
    ctf: bool = True
    defocus_range_A: tuple[float, float] = (8000.0, 28000.0)
    astigmatism_A: float = 800.0
    voltage_kV: float = 300.0
    spherical_aberration_mm: float = 2.7
    amplitude_contrast: float = 0.1
    particles_per_micrograph: int = 100
    n_references: int = 20

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            _check(low <= value <= high, f"`{name}` {value}: give {low:g} to {high:g}")
        defocus_A = self.defocus_range_A
        _check(
            -3e5 <= defocus_A[0] <= defocus_A[1] <= 3e5, f"`defocus_range_A` {defocus_A}: give two rising numbers, A"
        )
        _check(
            self.pixel_size_A is None or 0.01 <= self.pixel_size_A <= 1000,
            f"`pixel_size_A` {self.pixel_size_A}: give 0.01 to 1000 A",
        )
        for name in ("preferred_fraction", "junk_fraction", "coloured_noise"):
            _check(0 <= getattr(self, name) <= 1, f"`{name}` {getattr(self, name)}: give a fraction, 0 to 1")
        frequencies = self.view_frequencies
        if frequencies is not None:
            good = len(frequencies) == self.n_views and min(frequencies) >= 0 and sum(frequencies) > 0
            _check(good, f"`view_frequencies`: give {self.n_views} numbers, not negative, not all zero")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise RalibError(message)


@dataclass(frozen=True)
class Truth:
    """The truth of n simulated particles.

    Attributes
    ----------
    poses : Poses
        Poses onto the view of the particle's class; class -1 for junk, and for continuous views, where the pose maps
        the particle onto its own view.
    rotation : ndarray of shape (n, 3, 3)
        Rows are the directions in the volume of the particle's x and y and of the viewing axis.
    junk : ndarray of shape (n,)
        Kind of junk.
    species : ndarray of shape (n,)
        Volume shown.
    contrast : ndarray of shape (n,)
        Contrast.
    micrograph : ndarray of shape (n,)
        Micrograph.
    ctf : CtfParameters or None
        CTF parameters, or None.
    """

    poses: Poses
    rotation: np.ndarray
    junk: np.ndarray
    species: np.ndarray
    contrast: np.ndarray
    micrograph: np.ndarray
    ctf: CtfParameters | None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the truth as plain arrays for truth.npz; `R`, `view`, `psi` and `shift` are for external scripts."""
        arrays = {f.name: getattr(self.poses, f.name).numpy() for f in fields(Poses) if f.name != "score"}
        arrays |= {n: getattr(self, n) for n in ("junk", "species", "contrast", "micrograph")}
        arrays |= {"R": self.rotation, "view": self.rotation[:, 2]}
        arrays |= {"psi": np.deg2rad(arrays["psi_deg"]), "shift": -arrays["origin_xy_px"]}
        if self.ctf is not None:
            arrays |= {f.name: getattr(self.ctf, f.name) for f in fields(CtfParameters)}
        return arrays


def draw_truth(options: SimulationOptions, n_species: int, views: np.ndarray) -> tuple[Truth, np.ndarray]:
    """Draw the truth of every particle.

    Parameters
    ----------
    options : SimulationOptions
        What to simulate.
    n_species : int
        Number of volumes.
    views : ndarray of shape (k, 3, 3)
        Frames of the discrete views.

    Returns
    -------
    Truth
        The truth.
    ndarray of shape (n, 2)
        Additional shift of particles that are half outside the box, pixels.
    """
    rng = np.random.default_rng(options.seed)
    n = options.n_particles
    species = rng.integers(0, n_species, n)
    frames, class_index = _draw_views(options, views, rng)
    class_index = np.where(class_index < 0, -1, class_index + species * max(options.n_views, 1))
    junk = np.zeros(n, dtype=np.int64)
    spoilt = rng.permutation(n)[: round(options.junk_fraction * n)]
    junk[spoilt] = rng.integers(1, len(Junk), len(spoilt))
    off = rng.choice([-1.0, 1.0], (n, 2)) * rng.uniform(0.28, 0.4, (n, 2)) * options.box
    psi_deg = torch.as_tensor(rng.uniform(-180, 180, n), dtype=torch.float32)
    mirror = torch.as_tensor(rng.random(n) < 0.5) & (options.mirror and options.n_views > 0)
    poses = Poses(
        psi_deg=psi_deg,
        origin_xy_px=torch.as_tensor(_draw_shifts(options, rng), dtype=torch.float32),
        mirror=mirror,
        class_index=torch.as_tensor(np.where(junk == Junk.NONE, class_index, -1)),
        score=torch.full((n,), float("nan"), dtype=torch.float32),
    )
    micrograph = np.arange(n) // options.particles_per_micrograph
    truth = Truth(
        poses=poses,
        rotation=_particle_frames(frames, psi_deg, mirror),
        junk=junk,
        species=species,
        contrast=np.clip(rng.normal(1.0, options.contrast_sd, n), 0.5, 1.6),
        micrograph=micrograph,
        ctf=_draw_ctf(options, micrograph, rng) if options.ctf else None,
    )
    return truth, np.where((junk == Junk.HALF_OUT)[:, None], off, 0.0)


def _draw_views(
    options: SimulationOptions, views: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Frames (n, 3, 3) and the number of the view (n,), -1 where views are continuous."""
    n = options.n_particles
    if options.n_views:
        weights = np.ones(options.n_views) if options.view_frequencies is None else options.view_frequencies
        number = rng.choice(options.n_views, n, p=np.asarray(weights, float) / np.sum(weights))
        return views[number], number
    direction = rng.normal(size=(n, 3))
    spot = rng.normal(size=(n, 3)) * 0.25 + np.array([0.3, 0.2, 1.0])
    preferred = rng.random((n, 1)) < options.preferred_fraction
    return view_frames(np.where(preferred, spot, direction)), np.full(n, -1)


def _draw_shifts(options: SimulationOptions, rng: np.random.Generator) -> np.ndarray:
    shift = rng.normal(size=(options.n_particles, 2))
    length = np.linalg.norm(shift, axis=1, keepdims=True)
    return shift * np.minimum(1.0, 2.5 / length) * options.shift_sd_px


def _draw_ctf(options: SimulationOptions, micrograph: np.ndarray, rng: np.random.Generator) -> CtfParameters:
    n = int(micrograph.max()) + 1
    u_A = rng.uniform(*options.defocus_range_A, n)
    v_A = u_A - rng.uniform(0.0, max(options.astigmatism_A, 0.0), n)
    angle_deg = rng.uniform(0.0, 180.0, n)
    same = np.ones(len(micrograph))
    return CtfParameters(
        defocus_u_A=u_A[micrograph],
        defocus_v_A=v_A[micrograph],
        astigmatism_angle_deg=angle_deg[micrograph],
        voltage_kV=same * options.voltage_kV,
        spherical_aberration_mm=same * options.spherical_aberration_mm,
        amplitude_contrast=same * options.amplitude_contrast,
        phase_shift_deg=same * 0.0,
        bfactor_A2=same * 0.0,
    )


def _particle_frames(frames: np.ndarray, psi_deg: Tensor, mirror: Tensor) -> np.ndarray:
    """Volume directions of the particle's own axes: those of the view, undone by the pose's M R.

    A particle point p shows the view at M R p, so its x axis runs along M R (1, 0) in the view, its y axis
    likewise; a mirrored one is the view from the other side.
    """
    rows = []
    for unit in ((1.0, 0.0), (0.0, 1.0)):
        in_view = mirror_x(rotate_xy(psi_deg, torch.tensor(unit, dtype=torch.float32)), mirror).numpy()
        rows.append(in_view[:, [0]] * frames[:, 0] + in_view[:, [1]] * frames[:, 1])
    return np.stack([*rows, np.cross(rows[0], rows[1])], axis=1)
