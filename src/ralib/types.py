"""The data types that all folders share: poses, CTF parameters, particle sets, class averages, run results, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum, StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd
    import xarray


class RalibError(Exception):
    """A mistake in the input or the options, described in one line: what, where, what to do.

    The command line prints it without a traceback and exits with status 2.
    """


@dataclass(frozen=True)
class Notice:
    """Something that a person should know of a run or its input.

    Attributes
    ----------
    what : str
        What was found.
    where : str, optional
        In which file, classes or particles.
    remedy : str, optional
        What to do about it.
    """

    what: str
    where: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        """The notice in one line."""
        return f"{self.what}; {self.remedy}" if self.remedy else self.what

    def record(self) -> dict[str, str]:
        """The notice as run.json holds it, with the keys what, where and do."""
        return {"what": self.what, "where": self.where, "do": self.remedy}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Notice:
        """The notice that run.json holds."""
        return cls(*(str(record.get(key, "")) for key in ("what", "where", "do")))


@dataclass(frozen=True)
class Poses:
    """Poses of n particles on their class averages, p_ref = M(R(psi)(p + origin)); see `ralib.conventions`.

    Attributes
    ----------
    psi_deg : Tensor of shape (n,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (n, 2)
        Origin shift, applied before the rotation, pixels.
    mirror : Tensor of shape (n,)
        True where x -> -x after the rotation.
    class_index : Tensor of shape (n,)
        Class from 0, int64; -1 where the particle belongs to no class.
    score : Tensor of shape (n,)
        Criterion reached, as the search defines it; NaN where unknown.
    """

    psi_deg: Tensor
    origin_xy_px: Tensor
    mirror: Tensor
    class_index: Tensor
    score: Tensor

    @classmethod
    def identity(cls, n: int, device: torch.device | str = "cpu") -> Poses:
        """Return poses that leave every particle unchanged, in class 0.

        Parameters
        ----------
        n : int
            Number of particles.
        device : torch.device or str, default 'cpu'
            Where the tensors are.

        Returns
        -------
        Poses
            The poses.
        """
        return cls(
            psi_deg=torch.zeros(n, device=device),
            origin_xy_px=torch.zeros(n, 2, device=device),
            mirror=torch.zeros(n, dtype=torch.bool, device=device),
            class_index=torch.zeros(n, dtype=torch.int64, device=device),
            score=torch.full((n,), float("nan"), device=device),
        )

    @classmethod
    def from_columns(
        cls,
        psi_deg: np.ndarray,
        origin_x_px: np.ndarray,
        origin_y_px: np.ndarray,
        mirror: np.ndarray,
        class_index: np.ndarray,
        score: np.ndarray,
    ) -> Poses:
        """Poses of columns (n,), as `ParticleSet.to_pandas` names them."""
        return cls(
            psi_deg=torch.tensor(psi_deg, dtype=torch.float32),
            origin_xy_px=torch.tensor(np.stack([origin_x_px, origin_y_px], axis=1), dtype=torch.float32),
            mirror=torch.tensor(mirror, dtype=torch.bool),
            class_index=torch.tensor(class_index, dtype=torch.int64),
            score=torch.tensor(score, dtype=torch.float32),
        )

    def __len__(self) -> int:
        return len(self.psi_deg)

    def __getitem__(self, index: Tensor | slice) -> Poses:
        return Poses(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Poses:
        """Return the poses on a device."""
        return Poses(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def replace(self, **changes: Tensor) -> Poses:
        """Return the poses with some fields changed."""
        return replace(self, **changes)

    @staticmethod
    def cat(parts: Sequence[Poses]) -> Poses:
        """Concatenate poses."""
        return Poses(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Poses)})


class CtfState(IntEnum):
    """What was already done to an image about its CTF: nothing, phases flipped, or multiplied by the CTF."""

    NONE = 0
    PHASE_FLIPPED = 1
    PREMULTIPLIED = 2


class CtfCorrection(StrEnum):
    """What a run does about the CTF: nothing, flip phases, or multiply by the CTF and divide by its square (Wiener)."""

    NONE = "none"
    FLIP = "flip"
    WIENER = "wiener"


@dataclass(frozen=True)
class CtfParameters:
    """Contrast transfer function of n particles.

    Attributes
    ----------
    defocus_u_A : ndarray of shape (n,)
        Larger defocus, Angstrom; positive for underfocus.
    defocus_v_A : ndarray of shape (n,)
        Smaller defocus, Angstrom.
    astigmatism_angle_deg : ndarray of shape (n,)
        Angle from the x axis to the direction of `defocus_u_A`, degrees.
    voltage_kV : ndarray of shape (n,)
        Acceleration voltage, kV.
    spherical_aberration_mm : ndarray of shape (n,)
        Spherical aberration, mm.
    amplitude_contrast : ndarray of shape (n,)
        Amplitude contrast, a fraction.
    phase_shift_deg : ndarray of shape (n,)
        Phase shift of a phase plate, degrees.
    bfactor_A2 : ndarray of shape (n,)
        B-factor, Angstrom^2.
    state : ndarray of shape (n,), optional
        `CtfState` of the image; by default NONE for all.
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
        """Return the same CTF for images of another state."""
        shape = np.shape(self.defocus_u_A)
        return replace(self, state=np.broadcast_to(np.asarray(state, dtype=np.int8), shape).copy())

    def in_pixels_of(self, pixel_size_A: np.ndarray, common_A: float) -> CtfParameters:
        """Return a CTF for another pixel size, the same at every frequency in cycles per pixel.

        The phase is pi lambda d k^2 - pi / 2 Cs lambda^3 k^4: where k is scaled, d and Cs scale with its inverse
        powers.

        Parameters
        ----------
        pixel_size_A : ndarray of shape (n,)
            Pixel size of the images, Angstrom.
        common_A : float
            Pixel size that they are taken to have, Angstrom.

        Returns
        -------
        CtfParameters
            The parameters.
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
    """Square images that are read when they are needed."""

    @property
    def n_images(self) -> int:
        """Number of images."""

    @property
    def box(self) -> int:
        """Image size, pixels."""

    def read(self, index: np.ndarray) -> np.ndarray:
        """Return images (b, n, n), float32, in the order of `index` (b,)."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """An image source over an array in memory.

    Attributes
    ----------
    images : ndarray of shape (n, m, m)
        The images.
    """

    images: np.ndarray

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def box(self) -> int:
        """Image size, pixels."""
        return int(self.images.shape[-1])

    def read(self, index: np.ndarray) -> np.ndarray:
        """Return images (b, n, n), float32, in the order of `index` (b,)."""
        return np.ascontiguousarray(self.images[index], dtype=np.float32)


@dataclass(frozen=True)
class ChosenImages:
    """Some images of another source.

    Attributes
    ----------
    source : ImageSource
        The other source.
    index : ndarray of shape (m,)
        Numbers of the images.
    """

    source: ImageSource
    index: np.ndarray

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.index)

    @property
    def box(self) -> int:
        """Image size, pixels."""
        return self.source.box

    def read(self, index: np.ndarray) -> np.ndarray:
        """Return images (b, n, n), float32, in the order of `index` (b,)."""
        return self.source.read(self.index[index])


@dataclass(frozen=True)
class Metadata:
    """What a particle file holds beyond the fields of `ParticleSet`, kept so that writing it back loses nothing.

    Attributes
    ----------
    source_format : str
        'relion', 'cryosparc', 'eman2', 'mrc', ...
    path : str, default ''
        The file.
    tables : dict
        Tables by block name, as the reader of that format keeps them; the particle table has a row for each particle,
        in order.
    """

    source_format: str
    path: str = ""
    tables: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ParticleSet:
    """A stack of n particles and what is known of each.

    Attributes
    ----------
    images : ImageSource
        Where the images are read from.
    pixel_size_A : float | None, optional
        Pixel size of the stack, Angstrom; None where no file gives it.
    ctf : CtfParameters | None, optional
        CTF parameters; None where the input has none.
    poses : Poses | None, optional
        Poses; None where the input has none.
    group : ndarray | None of shape (n,), optional
        Micrograph (or optics group) of each particle, for noise estimates.
    metadata : Metadata
        Everything else that the file holds.
    pixel_sizes_A : ndarray | None of shape (n,), optional
        Pixel size of each particle where they differ; `pixel_size_A` is then the most frequent one.
    same_as : ndarray | None of shape (n,), optional
        First particle that shows the same image; None where no image occurs twice.
    usable : ndarray | None of shape (n,), optional
        False for particles to leave out because numbers given for them are implausible; None for all.
    warnings : tuple of Notice, default ()
        What a user should know of the input.
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
    warnings: tuple[Notice, ...] = ()

    def __len__(self) -> int:
        return self.images.n_images

    @property
    def box(self) -> int:
        """Image size, pixels."""
        return self.images.box

    def __getitem__(self, rows: int | slice | np.ndarray | Tensor | Sequence[int] | Sequence[bool]) -> ParticleSet:
        """Return some of the particles, with all that is known of them; images are not read.

        Parameters
        ----------
        rows : int, slice, ndarray, Tensor, sequence of int or sequence of bool
            An index as in NumPy: a number, a slice, a mask (n,), or numbers in any order.

        Returns
        -------
        ParticleSet
            The particles.

        Raises
        ------
        RalibError
            If nothing is selected, or a number is out of range.
        """
        index = chosen_rows(rows, len(self))
        images = getattr(self.images, "taken", partial(ChosenImages, self.images))(index)
        tables = {name: _rows_of(table, index, len(self)) for name, table in self.metadata.tables.items()}
        return replace(
            self,
            images=images,
            ctf=None if self.ctf is None else self.ctf[index],
            poses=None if self.poses is None else self.poses[torch.from_numpy(index)],
            group=None if self.group is None else self.group[index],
            pixel_sizes_A=None if self.pixel_sizes_A is None else self.pixel_sizes_A[index],
            usable=None if self.usable is None else self.usable[index],
            same_as=None if self.same_as is None else _first_of(self.same_as[index]),
            metadata=replace(self.metadata, tables=tables),
        )

    def to_pandas(self) -> pd.DataFrame:
        """What is known of the particles as a table, without reading an image.

        Returns
        -------
        DataFrame
            One row a particle, its number as index; columns psi_deg, origin_x_px, origin_y_px, mirror, class_index,
            score (the pose), those of `CtfParameters`, pixel_size_A, group, usable, and the RELION file's own.
        """
        from ralib.interop.dataframes import frame_of

        return frame_of(self)

    @classmethod
    def from_dataframe(
        cls, frame: pd.DataFrame, images: ParticleSet | ImageSource | np.ndarray | Tensor
    ) -> ParticleSet:
        """Particles of a table such as `to_pandas` gives: sorted, filtered, its values changed.

        Parameters
        ----------
        frame : DataFrame
            Columns as in `to_pandas`; those of pose and CTF all or none of them.
        images : ParticleSet, ImageSource or array (n, box, box)
            Of a set, the frame's index says which particles, and what the frame leaves out stays. Else image i
            belongs to row i.

        Raises
        ------
        RalibError
            For columns that nothing would keep, and for half a pose or CTF.
        """
        from ralib.interop import dataframes

        if isinstance(images, ParticleSet):
            base = images[frame.index.to_numpy()]
        else:
            base = cls(images) if isinstance(images, ImageSource) else as_particles(images)
            if len(base) != len(frame):
                raise RalibError(f"{len(frame)} rows for {len(base)} images: give one row an image")
        table = dataframes.particle_table(base)
        if unknown := dataframes.unknown_columns(frame, table):
            raise RalibError(f"columns {', '.join(unknown)} mean nothing here: drop or rename them")
        if table is not None:
            kept = {k: dataframes.new_table(frame, t) if t is table else t for k, t in base.metadata.tables.items()}
            base = replace(base, metadata=replace(base.metadata, tables=kept))
        try:
            pose, ctf = (dataframes.arrays_of(frame, names) for names in (dataframes.POSE, dataframes.CTF))
        except KeyError as error:
            raise RalibError(str(error.args[0])) from error
        return base._with_columns(pose, ctf, {n: frame[n].to_numpy() for n in dataframes.OTHER if n in frame.columns})

    def _with_columns(
        self, pose: dict[str, np.ndarray] | None, ctf: dict[str, np.ndarray] | None, other: dict[str, np.ndarray]
    ) -> ParticleSet:
        """The set with the columns of a table in place of its own."""
        found = self
        if pose is not None:
            found = replace(found, poses=Poses.from_columns(**pose))
        if ctf is not None:
            found = replace(found, ctf=CtfParameters(**ctf))
        sizes = other.pop("pixel_size_A", None)
        if sizes is not None:
            values, counts = np.unique(sizes.astype(np.float64), return_counts=True)
            many = None if len(values) == 1 else sizes.astype(np.float64)
            found = replace(found, pixel_size_A=float(values[counts.argmax()]), pixel_sizes_A=many)
        return replace(found, **other)  # type: ignore[arg-type]

    def replace(self, **changes: Any) -> ParticleSet:
        """Return the set with some fields changed; one new pixel size holds for all its particles."""
        if "pixel_size_A" in changes:
            changes.setdefault("pixel_sizes_A", None)
        return replace(self, **changes)

    def leave_out(self, rows: np.ndarray, warning: Notice) -> ParticleSet:
        """Return the set with some particles marked as not usable.

        Parameters
        ----------
        rows : ndarray of shape (n,)
            True for the particles to leave out.
        warning : Notice
            The reason.

        Returns
        -------
        ParticleSet
            The set.
        """
        usable = ~rows if self.usable is None else self.usable & ~rows
        return replace(self, usable=usable, warnings=(*self.warnings, warning))

    def warned(self, what: str, where: str, remedy: str) -> ParticleSet:
        """Return the set with one more warning.

        Parameters
        ----------
        what : str
            What was found.
        where : str
            In which file or particles.
        remedy : str
            What to do.

        Returns
        -------
        ParticleSet
            The set.
        """
        return replace(self, warnings=(*self.warnings, Notice(what, where, remedy)))


@dataclass(frozen=True)
class ClassAverages:
    """Averages of k classes.

    Attributes
    ----------
    images : Tensor of shape (k, n, n)
        The averages.
    members : Tensor of shape (k,)
        Number of particles in each class.
    half_images : Tensor | None of shape (2, k, n, n), optional
        Averages of the even and the odd members.
    frc : Tensor | None of shape (k, n // 2 + 1), optional
        Fourier ring correlation of the half averages.
    pixel_size_A : float | None, optional
        Pixel size, Angstrom.
    """

    images: Tensor
    members: Tensor
    half_images: Tensor | None = None
    frc: Tensor | None = None
    pixel_size_A: float | None = None

    def to_xarray(self) -> xarray.Dataset:
        """The averages with named axes, as an xarray Dataset (`pip install 'cryo-ralib[xarray]'`).

        Returns
        -------
        Dataset
            `average` (class, y, x), `members` (class), and where they are known `half_average` (half, class, y, x) and
            `frc` (class, frequency). Classes count from 1; y and x are Angstrom from the centre pixel, pixels without
            a pixel size; frequency is in 1/Angstrom.
        """
        from ralib.interop.arrays import dataset_of

        return dataset_of(self)

    def to_napari(self, viewer: Any = None, name: str = "class averages") -> Any:
        """The averages as an image layer in napari (`pip install 'cryo-ralib[napari]'`), one class a slider step.

        Parameters
        ----------
        viewer : napari.Viewer or None
            Where to; None opens a new one.
        name : str
            Of the layer.

        Returns
        -------
        napari.Viewer
            With the layer, scaled in Angstrom.
        """
        from ralib.interop.arrays import layer_of

        return layer_of(self, viewer, name)

    def _repr_html_(self) -> str:
        """The gallery a notebook shows."""
        from ralib.report.jupyter import class_averages_html

        return class_averages_html(self)

    def to(self, device: torch.device | str) -> ClassAverages:
        """Return the averages on a device."""
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **cast("dict[str, Any]", tensors))


@dataclass(frozen=True)
class RunResult:
    """Result of an alignment or classification.

    Attributes
    ----------
    kind : str
        Name of the command.
    poses : Poses
        Pose of each particle.
    averages : ClassAverages
        Class averages.
    iterations : list of dict
        Figures of each iteration.
    options : dict
        Options of the run.
    warnings : list of Notice
        What a user should know.
    classes : list of dict
        Figures of each class (`classes.iteration_figures.class_figures`), and the verdict where one is given.
    references : Tensor of shape (k, n, n), optional
        The averages filtered to their resolution: what a next iteration would search.
    bad_particles : list of int
        Particles, from 0, whose images could not be used.
    timings : dict of float
        Where the time went, seconds by part.
    particle_scores : dict of ndarray of shape (n,)
        What the method judges of each particle, by name (`results.particle_scores`); empty where it judges none.
    log : list of str
        What was found out on the way, in words.
    """

    kind: str
    poses: Poses
    averages: ClassAverages
    iterations: list[dict[str, Any]]
    options: dict[str, Any]
    warnings: list[Notice] = field(default_factory=list)
    classes: list[dict[str, Any]] = field(default_factory=list)
    references: Tensor | None = None
    bad_particles: list[int] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    particle_scores: dict[str, np.ndarray] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """The result as run.json holds it, but for the timings; particles are counted from 1 there."""
        return {
            "iterations": self.iterations,
            "classes": self.classes,
            "warnings": [notice.record() for notice in self.warnings],
            "bad_particles": [i + 1 for i in self.bad_particles],
        }

    def _repr_html_(self) -> str:
        """What a notebook shows: the figures and the class averages."""
        from ralib.report.jupyter import run_result_html

        return run_result_html(self)


@dataclass(frozen=True)
class ClassificationResult(RunResult):
    """Result of a classification from scratch.

    Attributes
    ----------
    stability : dict
        Whether the data support the classes: figures of averages without the particle, `believable` among them.
    diameter_A : float
        Diameter of the mask, Angstrom; pixels where the pixel size is not known.
    """

    stability: dict[str, Any] = field(default_factory=dict)
    diameter_A: float = float("nan")

    def record(self) -> dict[str, Any]:
        """The result as run.json holds it, but for the timings."""
        return super().record() | {"stability": self.stability, "log": self.log, "diameter_A": self.diameter_A}


def chosen_rows(rows: Any, n: int) -> np.ndarray:
    """Numbers (m,) from 0 of the particles that an index as NumPy takes it chooses out of n.

    Raises
    ------
    RalibError
        Where nothing is chosen, a number is out of range, or a mask is of another length.
    """
    if isinstance(rows, slice):
        index = np.arange(n)[rows].copy()  # torch has no negative strides
    else:
        given = np.atleast_1d(rows.cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows))
        if given.dtype == bool:
            if given.shape != (n,):
                raise RalibError(f"a mask of shape {given.shape} for {n} particles: give one value a particle")
            given = np.flatnonzero(given)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise RalibError(
                f"particles cannot be chosen by {given.dtype} of shape {given.shape}: give numbers or a mask"
            )
        index = np.where(given < 0, given + n, given).astype(np.int64)
    if not len(index) or index.min() < 0 or index.max() >= n:
        raise RalibError(f"no such selection: {len(index)} of {n} particles, numbers must be from 0 to {n - 1}")
    return index


def _first_of(same_as: np.ndarray) -> np.ndarray | None:
    """`ParticleSet.same_as` of some of the particles, by their new numbers."""
    _, first, inverse = np.unique(same_as, return_index=True, return_inverse=True)
    return None if len(first) == len(same_as) else first[inverse.reshape(-1)]


def _rows_of(table: Any, index: np.ndarray, n: int) -> Any:
    """Rows of a file's particle table, which has one a particle; all other tables stay whole."""
    if hasattr(table, "iloc") and len(table) == n and "rlnImageName" in table.columns:
        return table.iloc[index].reset_index(drop=True)
    return table[index] if isinstance(table, np.ndarray) and len(table) == n else table


def as_particles(particles: ParticleSet | np.ndarray | Tensor) -> ParticleSet:
    """Return a particle set of a set, or of images (n, m, m)."""
    if isinstance(particles, ParticleSet):
        return particles
    images = particles.detach().cpu().numpy() if isinstance(particles, Tensor) else np.asarray(particles)
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise RalibError(f"particles must be square images (n, box, box), not an array of shape {images.shape}")
    return ParticleSet(ArraySource(images))
