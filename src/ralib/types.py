"""The few shapes of data every room shares: poses, CTF parameters, particle sets, class averages, run results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum, StrEnum
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor


class RalibError(Exception):
    """A mistake in the input or the options, told in one line: what, where, what to do.

    The command line prints it without a traceback and exits with status 2.
    """


@dataclass(frozen=True)
class Poses:
    """How each particle maps onto its class average: p_ref = M(R(psi)(p + origin)); see `conventions`.

    psi_deg         (n,)   in-plane rotation, degrees
    origin_xy_px    (n, 2) origin shift, pixels, applied before the rotation
    mirror          (n,)   bool, x -> -x after the rotation
    class_index     (n,)   int64, from 0; -1 where the particle belongs to no class
    score           (n,)   the criterion reached (its meaning is the search's); NaN where unknown
    """

    psi_deg: Tensor
    origin_xy_px: Tensor
    mirror: Tensor
    class_index: Tensor
    score: Tensor

    @classmethod
    def identity(cls, n: int, device: torch.device | str = "cpu") -> Poses:
        """Poses that leave every particle as it is, in class 0."""
        return cls(
            psi_deg=torch.zeros(n, device=device),
            origin_xy_px=torch.zeros(n, 2, device=device),
            mirror=torch.zeros(n, dtype=torch.bool, device=device),
            class_index=torch.zeros(n, dtype=torch.int64, device=device),
            score=torch.full((n,), float("nan"), device=device),
        )

    def __len__(self) -> int:
        return len(self.psi_deg)

    def __getitem__(self, index: Tensor | slice) -> Poses:
        return Poses(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Poses:
        return Poses(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def replace(self, **changes: Tensor) -> Poses:
        return replace(self, **changes)

    @staticmethod
    def cat(parts: Sequence[Poses]) -> Poses:
        return Poses(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Poses)})


class CtfState(IntEnum):
    """What has been done already to the CTF of an image: nothing, its phases flipped, or multiplied by its CTF."""

    NONE = 0
    PHASE_FLIPPED = 1
    PREMULTIPLIED = 2


class CtfCorrection(StrEnum):
    """What a run does about the CTF: nothing, turn phases, or weigh by the CTF and divide by its square (Wiener)."""

    NONE = "none"
    FLIP = "flip"
    WIENER = "wiener"


@dataclass(frozen=True)
class CtfParameters:
    """Contrast transfer function of each particle; every array has shape (n,).

    Defocus is positive for underfocus, in Angstrom; `astigmatism_angle_deg` is the angle from the x axis to the
    direction of `defocus_u_A`; `amplitude_contrast` is a fraction; spherical aberration in millimetres; `state` is
    the `CtfState` of the image, NONE for all where it is left out.
    """

    defocus_u_A: np.ndarray
    defocus_v_A: np.ndarray
    astigmatism_angle_deg: np.ndarray
    voltage_kV: np.ndarray
    spherical_aberration_mm: np.ndarray
    amplitude_contrast: np.ndarray
    phase_shift_deg: np.ndarray
    bfactor_A2: np.ndarray
    state: np.ndarray = None  # type: ignore[assignment]  # made by __post_init__

    def __post_init__(self) -> None:
        if self.state is None:
            object.__setattr__(self, "state", np.zeros(np.shape(self.defocus_u_A), dtype=np.int8))

    def __len__(self) -> int:
        return len(self.defocus_u_A)

    def __getitem__(self, index: np.ndarray | slice) -> CtfParameters:
        return CtfParameters(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def with_state(self, state: CtfState | np.ndarray) -> CtfParameters:
        """The same CTF of images to which `state` was done."""
        shape = np.shape(self.defocus_u_A)
        return replace(self, state=np.broadcast_to(np.asarray(state, dtype=np.int8), shape).copy())

    def in_pixels_of(self, pixel_size_A: np.ndarray, common_A: float) -> CtfParameters:
        """The CTF of images of pixel_size_A (n,), as one of images of `common_A`: the same at every cycle per pixel.

        The phase is pi lambda d k^2 - pi / 2 Cs lambda^3 k^4: where k grows by a factor, d and Cs shrink by its powers.
        """
        ratio = (common_A / np.asarray(pixel_size_A, dtype=np.float64)) ** 2
        return replace(
            self,
            defocus_u_A=self.defocus_u_A * ratio,
            defocus_v_A=self.defocus_v_A * ratio,
            spherical_aberration_mm=self.spherical_aberration_mm * ratio**2,
            bfactor_A2=self.bfactor_A2 * ratio,
        )


@runtime_checkable
class ImageSource(Protocol):
    """Images that are read when asked for: n_images square images of box x box pixels."""

    @property
    def n_images(self) -> int: ...

    @property
    def box(self) -> int: ...

    def read(self, index: np.ndarray) -> np.ndarray:
        """float32 images (len(index), box, box), in the order of `index`."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """An image source over an array already in memory."""

    images: np.ndarray

    @property
    def n_images(self) -> int:
        return len(self.images)

    @property
    def box(self) -> int:
        return int(self.images.shape[-1])

    def read(self, index: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.images[index], dtype=np.float32)


@dataclass(frozen=True)
class Metadata:
    """What a particle file held beyond what we understand, kept so that writing it back loses nothing.

    source_format   'relion', 'cryosparc', 'eman2', 'mrc', ...
    tables          block name -> table, as the reader of that format keeps them; the particle table has one row
                    per particle, in order
    """

    source_format: str
    path: str = ""
    tables: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ParticleSet:
    """A stack of particles and what is known of each.

    pixel_size_A    one number for the stack, or None where no file says it
    ctf, poses      None where the input has none
    group           (n,) int, micrograph (or optics group) of each particle, for noise estimates
    pixel_sizes_A   (n,) where the particles differ in it; `pixel_size_A` is then the most frequent one
    same_as         (n,) the first particle that shows the same image; None where no image is there twice
    usable          (n,) False for particles to be left out, since numbers given for them cannot be meant; None: all
    warnings        what a person should know of the input: dicts of what, where and do, as in `RunResult`
    """

    images: ImageSource
    pixel_size_A: float | None = None
    ctf: CtfParameters | None = None
    poses: Poses | None = None
    group: np.ndarray | None = None
    metadata: Metadata = field(default_factory=lambda: Metadata("memory"))
    pixel_sizes_A: np.ndarray | None = None
    same_as: np.ndarray | None = None
    usable: np.ndarray | None = None
    warnings: tuple[dict[str, str], ...] = ()

    def __len__(self) -> int:
        return self.images.n_images

    @property
    def box(self) -> int:
        return self.images.box

    def replace(self, **changes: Any) -> ParticleSet:
        """The set with these changes; one new pixel size holds for all its particles."""
        if "pixel_size_A" in changes:
            changes.setdefault("pixel_sizes_A", None)
        return replace(self, **changes)

    def leave_out(self, rows: np.ndarray, warning: dict[str, str]) -> ParticleSet:
        """The set with the particles `rows` (n,) bool marked as not usable, and the warning that says why."""
        usable = ~rows if self.usable is None else self.usable & ~rows
        return replace(self, usable=usable, warnings=(*self.warnings, warning))

    def warned(self, what: str, where: str, do: str) -> ParticleSet:
        """The set with one more warning."""
        return replace(self, warnings=(*self.warnings, {"what": what, "where": where, "do": do}))


@dataclass(frozen=True)
class ClassAverages:
    """Averages of k classes, with what is needed to judge them.

    images          (k, n, n) the averages
    half_images     (2, k, n, n) averages of the even and the odd members, or None
    members         (k,) particles in each class
    frc             (k, n // 2 + 1) Fourier ring correlation between the half averages, or None
    """

    images: Tensor
    members: Tensor
    half_images: Tensor | None = None
    frc: Tensor | None = None
    pixel_size_A: float | None = None

    def _repr_html_(self) -> str:
        """The gallery a notebook shows."""
        from ralib.report.jupyter import class_averages_html

        return class_averages_html(self)

    def to(self, device: torch.device | str) -> ClassAverages:
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **cast("dict[str, Any]", tensors))


@dataclass(frozen=True)
class RunResult:
    """What an aligner found: poses, averages, one dict of figures an iteration, warnings with what to do."""

    kind: str
    poses: Poses
    averages: ClassAverages
    iterations: list[dict[str, Any]]
    options: dict[str, Any]
    warnings: list[dict[str, str]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        """What a notebook shows: the figures and the class averages."""
        from ralib.report.jupyter import run_result_html

        return run_result_html(self)


def as_particles(particles: ParticleSet | np.ndarray | Tensor) -> ParticleSet:
    """A particle set of whatever holds images (n, m, m)."""
    if isinstance(particles, ParticleSet):
        return particles
    images = particles.detach().cpu().numpy() if isinstance(particles, Tensor) else np.asarray(particles)
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise RalibError(f"particles must be square images (n, box, box), not an array of shape {images.shape}")
    return ParticleSet(ArraySource(images))
