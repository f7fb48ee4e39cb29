"""Particle sets: images that are read when needed, with poses, CTF and the file's own columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ralib.types.ctf import CtfParameters
from ralib.types.notices import Notice, RalibError
from ralib.types.poses import Poses

if TYPE_CHECKING:
    import pandas as pd

SAME_PIXEL_SIZE = 0.01
"""Relative difference of two pixel sizes up to which images are compared pixel by pixel."""


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

    raw_dtype: ClassVar[np.dtype] = np.dtype(np.float32)

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

    def read_raw(self, index: np.ndarray, out: np.ndarray) -> None:
        """Copy images into an array; see `ralib.particles.prefetch.RawSource.read_raw`."""
        in_a_row = len(index) > 0 and index[0] >= 0 and bool((np.diff(index) == 1).all())
        out[...] = self.images[index[0] : index[0] + len(index)] if in_a_row else self.images[index]


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
    images : ImageSource or array (n, box, box)
        Where the images are read from; an array is taken as an `ArraySource`.
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

    Raises
    ------
    RalibError
        If a table has another number of rows than there are images, or `images` are no images.
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

    def __post_init__(self) -> None:
        given: Any = self.images
        if not hasattr(given, "read"):
            object.__setattr__(self, "images", _array_source(given))
        n = self.images.n_images
        for name, rows in self._row_counts():
            if rows != n:
                raise RalibError(f"`{name}` has {rows} rows for {n} images: give one row an image, in their order")

    def _row_counts(self) -> Iterator[tuple[str, int]]:
        """Name and number of rows of each table that has one for each particle; no value is looked at."""
        for name, table in (("ctf", self.ctf), ("poses", self.poses)):
            if table is not None:
                yield from ((f"{name}.{f.name}", _n_rows(getattr(table, f.name))) for f in fields(table))
        for name in ("group", "pixel_sizes_A", "same_as", "usable"):
            if (values := getattr(self, name)) is not None:
                yield name, _n_rows(values)
        of_particles = {k: len(t) for k, t in self.metadata.tables.items() if _lists_particles(t)}
        if of_particles and self.images.n_images not in of_particles.values():  # other blocks may list images, too
            name, rows = next(iter(of_particles.items()))
            yield f"metadata.tables[{name!r}]", rows

    def __len__(self) -> int:
        return self.images.n_images

    def __iter__(self) -> Iterator[ParticleSet]:
        """Each particle as a set of one."""
        return (self[i] for i in range(len(self)))

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

        Poses, CTF and pixel sizes are those of our columns (psi_deg, defocus_u_A ...); a writer fills RELION's columns
        of the same meaning (rlnAnglePsi, rlnDefocusU ...) from them. A table that changes only RELION's is refused.

        Parameters
        ----------
        frame : DataFrame
            Columns as in `to_pandas`; those of pose and CTF all or none of them.
        images : ParticleSet, ImageSource or array (n, box, box)
            Of a set, the frame's index says which particles, and what the frame leaves out stays. Else image i
            belongs to row i.

        Returns
        -------
        ParticleSet
            Row i of the frame is particle i.

        Raises
        ------
        RalibError
            For columns that nothing would keep, for half a pose or CTF, and for a change of one of RELION's columns
            that a writer fills from ours.
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
            if why := dataframes.overruled(frame, base, table):
                raise RalibError(why)
            kept = {k: dataframes.new_table(frame, t) if t is table else t for k, t in base.metadata.tables.items()}
            base = replace(base, metadata=replace(base.metadata, tables=kept))
        try:
            pose, ctf = (dataframes.arrays_of(frame, names) for names in (dataframes.POSE, dataframes.CTF))
        except KeyError as error:
            raise RalibError(str(error.args[0])) from error
        return base._with_columns(pose, ctf, {n: frame[n].to_numpy(copy=True) for n in dataframes.OTHER if n in frame})

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

    def check_pixel_size(self, pixel_size_A: float | None, of: str) -> None:
        """Raise RalibError if particles and what they are compared with have pixel sizes that differ by over 1 %.

        Parameters
        ----------
        pixel_size_A : float or None
            The other pixel size, Angstrom; None, as that of the particles may be, if it is not known.
        of : str
            What has it, such as 'references'.
        """
        own_A = self.pixel_size_A
        if pixel_size_A and own_A and abs(own_A / pixel_size_A - 1) > SAME_PIXEL_SIZE:
            raise RalibError(f"the particles have {own_A:.4g} A/px, the {of} {pixel_size_A:.4g}: rescale the particles")

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


def as_particles(particles: ParticleSet | np.ndarray | Tensor) -> ParticleSet:
    """Return a particle set of a set, or of images (n, m, m)."""
    return particles if isinstance(particles, ParticleSet) else ParticleSet(_array_source(particles))


def _array_source(particles: ParticleSet | np.ndarray | Tensor) -> ArraySource:
    """Images (n, m, m) of any library as an image source, checked."""
    if isinstance(particles, ParticleSet):
        raise RalibError("this is a ParticleSet already: change it with its method replace")
    if not isinstance(particles, Tensor | np.ndarray) and hasattr(particles, "__dlpack__"):  # of CuPy, JAX, ...
        particles = torch.from_dlpack(particles)
    if isinstance(particles, Tensor):  # NumPy has no bfloat16
        particles = particles.detach().cpu()
        particles = particles.float() if particles.dtype == torch.bfloat16 else particles
    images = np.asarray(particles)
    if images.dtype.kind not in "biuf":
        raise RalibError(f"particles must be real numbers, not {images.dtype}")
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise RalibError(f"particles must be square images (n, box, box), not an array of shape {images.shape}")
    return ArraySource(images)


def chosen_rows(rows: Any, n: int) -> np.ndarray:
    """Resolve an index as NumPy takes it.

    Parameters
    ----------
    rows : slice, array of int or array of bool
        Which particles.
    n : int
        Number of all.

    Returns
    -------
    ndarray of shape (m,)
        Numbers of the chosen ones, from 0.

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
    if not _lists_particles(table) or len(table) != n:
        return table
    return table[index] if isinstance(table, np.ndarray) else table.iloc[index].reset_index(drop=True)


def _lists_particles(table: Any) -> bool:
    """Whether a file's table can have a row for each particle: a .cs table, or a STAR block with rlnImageName."""
    return isinstance(table, np.ndarray) or (hasattr(table, "iloc") and "rlnImageName" in table.columns)


def _n_rows(values: Any) -> int:
    """Rows of an array, tensor or list; 0 of a single number."""
    shape = np.shape(values)
    return int(shape[0]) if shape else 0
