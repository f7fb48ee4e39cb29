"""EMAN2 HDF stacks, plain and bit-compressed, with their attributes.

Layout: group /MDF/images with attribute imageid_max; image i is the dataset /MDF/images/<i>/image, its header the
attributes `EMAN.*` of that group; a transform is a compound of twelve floats 00..23 (rows of a 3 x 4 matrix).
Compressed images are integers: value = rendermin + raw (rendermax - rendermin) / (2^bits - 1).
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ralib.io.atomic import PathLike
from ralib.io.eman_ctf import STATE_ATTRIBUTE
from ralib.io.eman_headers import positive, with_headers
from ralib.io.stack_file import check_index, check_square, in_single_precision
from ralib.io.stacks import FilesSource, file_references, images_of_file
from ralib.types import Metadata, ParticleSet, RalibError

IMAGES = "/MDF/images"
SUFFIXES = (".hdf", ".h5", ".hdf5")
MATRIX = [f"{row}{column}" for row in range(3) for column in range(4)]
TRANSFORM = np.dtype([(name, "<f4") for name in MATRIX])
TRANSFORM_TYPE = h5py.h5t.py_create(TRANSFORM)
_STATISTICS = ("minimum", "maximum", "mean", "sigma", "square_sum", "mean_nonzero", "sigma_nonzero")
_STORED = ("renderbits", "rendermin", "rendermax", "truncated")
_STORAGE = {"nx", "ny", "nz", "datatype", "render_compress_level", *_STATISTICS, *(f"stored_{n}" for n in _STORED)}
_MAX_ATTRIBUTE = 1 << 16
_MAX_INFLATED = 1 << 26  # bytes of one image that may come from however few
_OPTICS = ("ctf", "ctf_applied", STATE_ATTRIBUTE, "apix_x", "apix_y")
_READ = ("xform.align2d", "assign", *_OPTICS, "ptcl_source_image", "score_align")


class HdfStack:
    """Images of an EMAN2 HDF file, by their numbers in it; a lock admits one thread at a time, as HDF5 requires.

    Parameters
    ----------
    path : Path
        The file.

    Attributes
    ----------
    numbers
        Numbers of the images in the file; 0 to n_images - 1 where none is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        with _hdf_errors(path):
            self._file = _open(path)
            group = images_group(self._file, path)
            self.numbers = _image_numbers(group)
            if not len(self.numbers):
                raise RalibError(f"{path} holds no images")
            self._ids = group.id
            first = self._dataset(self.numbers[0])
            ny, nx = _plane(path, first.shape)
            check_square(path, ny, nx)
            self.n_images, self.box = self.numbers[-1] + 1, nx
            size = _attribute(self._header(self.numbers[0]), "apix_x")
            self.pixel_size_A = positive(size)

    def read(self, index: np.ndarray) -> np.ndarray:
        """Return images (b, n, n), float32, in the order of `index` (b,)."""
        index = check_index(self.path, index, self.n_images)
        out = np.empty((len(index), self.box, self.box), dtype=np.float32)
        with self._lock, _hdf_errors(self.path):
            for row, number in enumerate(index.tolist()):
                out[row] = self._image(number)
        return out

    def taken(self, index: np.ndarray) -> FilesSource:
        """Return the images `index` (m,) only, unread."""
        return images_of_file(self, self.path, index)

    def attributes(self, names: tuple[str, ...], index: np.ndarray | None = None) -> list[dict[str, Any]]:
        """Return attributes of images.

        Parameters
        ----------
        names : tuple of str
            Names without EMAN.
        index : ndarray | None of shape (m,), optional
            The images; by default all.

        Returns
        -------
        list of dict
            For each image the attributes that it has.
        """
        with self._lock, _hdf_errors(self.path):
            numbers = self.numbers if index is None else index.tolist()
            return [_attributes(self._header(i), names) for i in numbers]

    def all_attributes(self, index: np.ndarray) -> list[dict[str, Any]]:
        """Return every attribute of images `index`, except those that describe how the pixels are stored."""
        with self._lock, _hdf_errors(self.path):
            headers = [self._header(i) for i in index.tolist()]
            named = [[h5py.h5a.open(h, index=i).name for i in range(h5py.h5a.get_num_attrs(h))] for h in headers]
            kept = [tuple(n[5:].decode() for n in names if n.startswith(b"EMAN.")) for names in named]
            return [_attributes(h, tuple(set(k) - _STORAGE)) for h, k in zip(headers, kept, strict=True)]

    def _header(self, number: int) -> h5py.h5g.GroupID:
        if number not in self._present:
            raise RalibError(f"image {number + 1} of {self.path} is not there: that number was left out or deleted")
        _refuse_link(self._ids, str(number), self.path)
        return h5py.h5g.open(self._ids, str(number).encode())

    def _dataset(self, number: int) -> h5py.Dataset:
        """The pixels of an image, once it is certain that they lie in this file and are all there."""
        header = self._header(number)
        if "image" not in h5py.Group(header):
            raise RalibError(f"image {number} of {self.path} has no pixels; the file is incomplete")
        _refuse_link(header, "image", self.path)
        dataset = h5py.Group(header)["image"]
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiu":
            raise RalibError(f"image {number} of {self.path} has no pixels; the file is incomplete")
        _check_stored(dataset, number, self.path)
        return dataset

    def _image(self, number: int) -> np.ndarray:
        dataset = self._dataset(number)
        if _plane(self.path, dataset.shape) != (self.box, self.box):
            raise RalibError(f"image {number + 1} of {self.path} is {dataset.shape}, the first one {self.box} px")
        pixels = dataset[()].reshape(self.box, self.box)
        header = self._header(number)
        bits = _attribute(header, "stored_renderbits")
        if dataset.dtype.kind == "f" or not bits or not 0 < int(bits) <= 32:
            return in_single_precision(pixels)
        low, high = _attribute(header, "stored_rendermin"), _attribute(header, "stored_rendermax")
        if low is None or high is None:
            raise RalibError(f"image {number + 1} of {self.path} is compressed, but its rendermin or rendermax is gone")
        with np.errstate(invalid="ignore", over="ignore"):
            return in_single_precision(pixels * (float(high - low) / (2.0 ** int(bits) - 1)) + float(low))

    @cached_property
    def _present(self) -> frozenset[int]:
        return frozenset(self.numbers)


def images_group(file: h5py.File, path: Path) -> h5py.Group:
    """Return the group of a file that holds its images; links to other files are refused.

    Parameters
    ----------
    file : h5py.File
        The open file.
    path : Path
        Its path, for errors.

    Returns
    -------
    h5py.Group
        The group.
    """
    group: h5py.Group = file
    for name in IMAGES.strip("/").split("/"):
        if name not in group.keys():  # noqa: SIM118 - `in group` would follow links
            raise RalibError(f"{path} is no EMAN2 stack: it has no group {IMAGES}")
        _refuse_link(group.id, name, path)
        group = group[name]
        if not isinstance(group, h5py.Group):
            raise RalibError(f"{path} is no EMAN2 stack: {IMAGES} is no group")
    return group


def _refuse_link(group: h5py.h5g.GroupID, name: str, path: Path) -> None:
    """RalibError where `name` is a link: it may lead to any file, or to none and for ever."""
    if group.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise RalibError(f"{path}: {name} is a link to elsewhere, which is not followed; write the images themselves")


def _check_stored(dataset: h5py.Dataset, number: int, path: Path) -> None:
    """RalibError unless the pixels lie in this very file, completely, before any memory is taken for them."""
    layout = dataset.id.get_create_plist()
    if layout.get_external_count() or layout.get_layout() == h5py.h5d.VIRTUAL:
        raise RalibError(f"image {number + 1} of {path} lies in another file, which is not read; write it itself")
    stored, claimed = dataset.id.get_storage_size(), math.prod(dataset.shape) * dataset.dtype.itemsize
    if dataset.chunks is not None:
        cut = [-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
        chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
        complete = dataset.id.get_num_chunks() == math.prod(cut) and chunk_bytes <= 4 * claimed + (1 << 20)
    else:
        complete = stored >= claimed
    inflated = claimed > _MAX_INFLATED and claimed > 100 * stored
    if stored == 0 or not complete or inflated:
        raise RalibError(
            f"image {number + 1} of {path} claims {claimed} bytes of pixels and has {stored}: it was never written "
            "completely; the file is incomplete"
        )


def open_hdf(path: PathLike) -> ParticleSet:
    """Open an EMAN2 stack as particles, with what the headers say: pixel size, CTF, xform.align2d and assign."""
    stack = HdfStack(Path(path))
    headers = stack.attributes(_READ)
    sources = [h.get("ptcl_source_image") for h in headers]
    with _hdf_errors(stack.path):  # attributes of unexpected types
        group = np.unique(np.array(sources, dtype=str), return_inverse=True)[1] if all(sources) else None
    whole = len(stack.numbers) == stack.n_images
    images = stack if whole else FilesSource([stack.path], np.zeros(len(headers)), np.array(stack.numbers), HdfStack)
    particles = ParticleSet(
        images=images,
        group=None if group is None else group.reshape(-1).astype(np.int64),
        metadata=Metadata("eman2", str(path), {}),
    )
    with _hdf_errors(stack.path):
        return with_headers(particles, headers)


def headers_of_files(source: FilesSource) -> list[dict[str, Any]]:
    """Return pixel size and CTF attributes of each particle of a list from its HDF stack; {} for other files."""
    headers: list[dict[str, Any]] = [{} for _ in range(source.n_images)]
    for number, path in enumerate(source.paths):
        rows = np.flatnonzero(source.file_index == number)
        if len(rows) and path.suffix.lower() in SUFFIXES:
            found = HdfStack(path).attributes(_OPTICS, source.slice_index[rows])
            for row, header in zip(rows.tolist(), found, strict=True):
                headers[row] = header
    return headers


def kept_headers(particles: ParticleSet) -> list[dict[str, Any]]:
    """Return the EMAN2 attributes of each particle beyond poses and pixels, to be written again; {} for other files."""
    headers: list[dict[str, Any]] = [{} for _ in range(len(particles))]
    paths, file_index, slices = file_references(particles.images) or ([], np.zeros(0), np.zeros(0))
    for number, path in enumerate(paths):
        rows = np.flatnonzero(file_index == number)
        if len(rows) and path.suffix.lower() in SUFFIXES:
            for row, header in zip(rows.tolist(), HdfStack(path).all_attributes(slices[rows]), strict=True):
                headers[row] = header
    return headers


@contextlib.contextmanager
def _hdf_errors(path: Path) -> Iterator[None]:
    """libhdf5's and h5py's many errors as one line."""
    try:
        yield
    except RalibError:
        raise
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        text = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise RalibError(f"{path} is damaged or no EMAN2 HDF file: {text}; write it again") from error


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        raise RalibError(f"cannot read {path}: no such file")
    with path.open("rb") as file:
        if file.read(8) != b"\x89HDF\r\n\x1a\n":
            raise RalibError(f"{path} is no HDF5 file")
    return h5py.File(path, "r")


def _image_numbers(group: h5py.Group) -> list[int]:
    return sorted(int(name) for name in group if name.isascii() and name.isdigit() and len(name) < 10)


def _plane(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2:
        raise RalibError(f"{path} holds images of shape {shape}: particles must be two-dimensional")
    return int(shape[0]), int(shape[1])


def _attributes(group: h5py.h5g.GroupID, names: tuple[str, ...]) -> dict[str, Any]:
    values = {name: _attribute(group, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _attribute(group: h5py.h5g.GroupID, name: str) -> Any:
    """Return EMAN.<name>: a number, text, or the twelve floats of a transform; None where it is missing.

    Through h5py's low-level interface, which is ten times as fast: a stack has as many headers as images.
    """
    key = f"EMAN.{name}".encode()
    if not h5py.h5a.exists(group, key):
        return None
    attribute = h5py.h5a.open(group, key)
    if attribute.get_type().get_class() == h5py.h5t.COMPOUND:
        return _transform(attribute)
    claimed = math.prod(attribute.shape or ()) * attribute.dtype.itemsize
    if claimed > _MAX_ATTRIBUTE:
        raise RalibError(f"the attribute EMAN.{name} claims {claimed} bytes; the file is damaged")
    value = np.empty(attribute.shape or (), dtype=attribute.dtype)
    attribute.read(value)
    if value.dtype.kind in "SUO":
        first = value.reshape(-1)[0] if value.size else ""
        return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)
    return value.reshape(-1)[0].item() if value.size == 1 else value


def _transform(attribute: h5py.h5a.AttrID) -> np.ndarray | None:
    """The twelve floats of a transform, or None for any other compound."""
    if attribute.get_storage_size() != TRANSFORM.itemsize:
        return None
    value = np.full(1, np.nan, dtype=np.float32).repeat(12).view(TRANSFORM)
    attribute.read(value, TRANSFORM_TYPE)
    return value.view(np.float32).astype(np.float64)
