"""Writer of EMAN2 HDF stacks as EMAN2 writes them, and of the headers of an existing stack on request."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from ralib import conventions
from ralib.io.atomic import PathLike, atomic_path
from ralib.io.eman_ctf import ctf_to_strings, state_header
from ralib.io.eman_hdf import (
    IMAGES,
    TRANSFORM,
    TRANSFORM_TYPE,
    _hdf_errors,
    _image_numbers,
    _open,
    images_group,
)
from ralib.io.eman_headers import align2d_to_matrix
from ralib.io.stack_file import check_pixel_size, image_array
from ralib.types import CtfParameters, Poses, RalibError

_HEADER_ROOM = 16_384  # bytes that new headers of one image may take
_EM_FLOAT = 7  # EMAN2's number for float32 pixels


def write_hdf(
    path: PathLike,
    images: Any,
    headers: Sequence[Mapping[str, Any]] | None = None,
    *,
    pixel_size_A: float | None = None,
) -> None:
    """Write an EMAN2 HDF stack, complete or not at all.

    The file is built in memory: HDF5 crashes the process when a disk becomes full.

    Parameters
    ----------
    path : PathLike
        The file.
    images : array_like of shape (k, n, n)
        Images.
    headers : sequence of mapping, optional
        For each image EMAN2 attributes (without EMAN.): int, float, text, lists of these, and (12,) float32 arrays for
        names beginning with xform.
    pixel_size_A : float | None, optional
        Pixel size, Angstrom.
    """
    images = image_array(images)
    check_pixel_size(pixel_size_A)
    if images.ndim != 3:
        raise RalibError(f"images of shape {images.shape} cannot go into a stack: (k, n, n) is needed")
    if headers is not None and len(headers) != len(images):
        raise RalibError(f"{len(headers)} headers for {len(images)} images")
    with h5py.File(str(path), "w", driver="core", backing_store=False, block_size=1 << 22, libver="earliest") as file:
        group = file.create_group(IMAGES)
        group.attrs["imageid_max"] = np.array([len(images) - 1], dtype=np.int32)
        for i, image in enumerate(images):
            pixels = np.ascontiguousarray(image, dtype=np.float32)
            one = group.create_group(str(i))
            one.create_dataset("image", data=pixels)
            header = {**_statistics(pixels), **_sizes(pixels, pixel_size_A), **(headers[i] if headers else {})}
            for name, value in header.items():
                _set(one, name, value)
        file.flush()
        whole = file.id.get_file_image()
    with atomic_path(path) as temporary:
        temporary.write_bytes(whole)


def pose_headers(
    poses: Poses | None, ctf: CtfParameters | None = None, pixel_size_A: float | None = None
) -> list[dict[str, Any]]:
    """Return xform.align2d, assign, ID (as SPARX's mref_ali2d leaves them), ctf and ctf_applied of each particle.

    Parameters
    ----------
    poses : Poses or None
        Poses, or None.
    ctf : CtfParameters | None, optional
        CTF parameters.
    pixel_size_A : float | None, optional
        Pixel size, Angstrom.

    Returns
    -------
    list of dict
        Attributes of each particle.
    """
    headers: list[dict[str, Any]] = [{"ID": i} for i in range(len(poses or ctf or ()))]
    if poses is not None:
        poses = poses.to("cpu")
        alpha, shift, mirror = conventions.pose_to_eman2(
            poses.psi_deg.double(), poses.origin_xy_px.double(), poses.mirror
        )
        matrices = align2d_to_matrix(alpha.numpy(), shift.numpy(), mirror.numpy())
        for header, matrix, index in zip(headers, matrices, poses.class_index.tolist(), strict=True):
            header |= {"xform.align2d": matrix, "assign": index}
    if ctf is not None:
        texts = ctf_to_strings(ctf, pixel_size_A or 1.0)
        for header, text, state in zip(headers, texts, ctf.state.tolist(), strict=True):
            header |= {"ctf": text, **state_header(state)} if text else state_header(state)
    return headers


def class_headers(class_index: torch.Tensor, n_classes: int) -> list[dict[str, Any]]:
    """Return headers of class averages for EMAN2 and SPARX: ave_n and ptcl_repr (number of members), and members.

    Parameters
    ----------
    class_index : torch.Tensor of shape (n,)
        Class of each particle.
    n_classes : int
        Number of classes.

    Returns
    -------
    list of dict
        Attributes of each class average.
    """
    assigned = class_index.cpu().numpy()
    members = [np.flatnonzero(assigned == k) for k in range(n_classes)]
    return [
        {"ave_n": len(m), "ptcl_repr": len(m), "ID": k, **({"members": m.tolist()} if len(m) else {})}
        for k, m in enumerate(members)
    ]


def write_headers(path: PathLike, poses: Poses) -> None:
    """Set xform.align2d, assign and ID in an existing EMAN2 stack: the one function that changes an input file.

    The pixels are copied into a second file that replaces the first when complete, so that a crash leaves either the
    old or the new headers.

    Parameters
    ----------
    path : PathLike
        The stack.
    poses : Poses
        Pose of each image.
    """
    path = Path(path)
    with _hdf_errors(path), _open(path) as file:
        numbers = _image_numbers(images_group(file, path))
    if len(numbers) != len(poses):
        raise RalibError(f"{len(poses)} poses for the {len(numbers)} images of {path}")
    if not os.access(path, os.W_OK):
        raise RalibError(f"{path} is read-only: its headers cannot be written")
    with atomic_path(path) as temporary:
        shutil.copyfile(path, temporary)
        if shutil.disk_usage(temporary).free < (needed := _HEADER_ROOM * (len(numbers) + 1)):  # HDF5 would crash
            raise OSError(errno.ENOSPC, f"{needed} bytes are needed for the headers")
        with _hdf_errors(path), h5py.File(temporary, "r+") as file:
            for number, header in zip(numbers, pose_headers(poses), strict=True):
                for name, value in header.items():
                    _set(file[f"{IMAGES}/{number}"], name, value)


def _set(group: h5py.Group, name: str, value: Any) -> None:
    """One attribute, in the type EMAN2 gives it; h5py's lower interface, for stacks of many images."""
    if name.startswith("xform"):
        array = np.array([tuple(np.asarray(value, dtype=np.float32))], dtype=TRANSFORM)
    elif isinstance(value, str):
        array = np.array(value.encode("utf-8") or b" ")
    elif name.startswith("apix"):
        array = np.array([value], dtype=np.float64)
    else:
        array = np.atleast_1d(np.asarray(value))
        array = array.astype(np.int32 if array.dtype.kind in "iub" else np.float32)
    key = f"EMAN.{name}".encode()
    if h5py.h5a.exists(group.id, key):
        h5py.h5a.delete(group.id, key)
    space = h5py.h5s.create_simple(array.shape) if array.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    kind = TRANSFORM_TYPE if array.dtype == TRANSFORM else h5py.h5t.py_create(array.dtype, logical=True)
    h5py.h5a.create(group.id, key, kind, space).write(array, kind)


def _statistics(pixels: np.ndarray) -> dict[str, Any]:
    values = pixels.astype(np.float64)
    nonzero = values[values != 0]
    sigma = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return {
        "minimum": float(values.min()), "maximum": float(values.max()), "mean": float(values.mean()), "sigma": sigma,
        "square_sum": float((values**2).sum()), "mean_nonzero": float(nonzero.mean()) if nonzero.size else 0.0,
        "sigma_nonzero": float(nonzero.std(ddof=1)) if nonzero.size > 1 else 0.0,
    }  # fmt: skip


def _sizes(pixels: np.ndarray, pixel_size_A: float | None) -> dict[str, Any]:
    size = pixel_size_A or 1.0
    return {
        "nx": pixels.shape[1], "ny": pixels.shape[0], "nz": 1, "apix_x": size, "apix_y": size, "apix_z": size,
        "datatype": _EM_FLOAT, "is_complex": 0, "is_complex_ri": 0, "changecount": 1, "all_int": 0,
    }  # fmt: skip
