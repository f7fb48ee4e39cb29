"""Rotate, shift, mirror and average images by EMAN2's parameters: a stack in one call, on any kind of array.

    turned = rotate_shift(images, alpha, sx, sy, mirror)                     # a loop over rot_shift2D
    averages = rotate_shift_average(images, alpha, sx, sy, mirror, classes)  # and Util.add_img, Util.mul_scalar

Parameters are those of EMAN2/SPARX's xform.align2d: a particle is rotated by alpha (degrees), shifted by (sx, sy)
pixels, then mirrored. Images of any kind that `ralib.images.array_interop` knows give results of the same kind, on the
same device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ralib.conventions import PoseTriple, eman2_to_pose
from ralib.images.array_interop import as_tensor, same_kind
from ralib.kernels import rotate_shift_images, rotate_shift_sum
from ralib.kernels.interpolation.reference import BOUNDARIES, METHODS, compute_dtype
from ralib.types import RalibError

# The wrapped and padded borders reach this far into the box.
SMALLEST_BOX_PX = 4
# Pixels sent to another device at a time.
_SENT_PIXELS = 1 << 27


def rotate_shift(
    images: Any,
    alpha: Any,
    sx: Any,
    sy: Any,
    mirror: Any = False,
    *,
    method: str = "cubic",
    boundary: str = "background",
    device: torch.device | str | None = None,
) -> Any:
    """Rotate images by alpha, shift them by (sx, sy), then mirror them: EMAN2's `rot_shift2D` for a stack.

    Parameters
    ----------
    images : array_like of shape (b, n, n) or (n, n)
        Images of any array library.
    alpha : array_like of shape (b,) or a number
        In-plane rotation, degrees.
    sx, sy : array_like of shape (b,) or a number
        Shift along x and y, pixels.
    mirror : array_like of shape (b,) or a number, default False
        True or 1 to mirror.
    method : str, default 'cubic'
        Interpolation: 'cubic' (o-Moms on prefiltered samples, the most accurate), 'quadratic' (EMAN2's own) or
        'linear'.
    boundary : str, default 'background'
        Value outside the box: 'background' (EMAN2's rule: the value the pixel had before), 'zero', 'mean' or 'cyclic'.
    device : torch.device or str, optional
        Where to compute; by default where the images are.

    Returns
    -------
    array
        Transformed images, of the input's shape and kind of array; float64 for float64 images, float32 otherwise.
        PyTorch tensors are differentiable in the images, alpha, sx and sy.

    Raises
    ------
    RalibError
        If shapes do not fit, a name is unknown, or a parameter is not finite.
    """
    stack = _image_stack(images)
    pose = _eman2_poses(stack, alpha, sx, sy, mirror)
    _check_names(method, boundary)
    turned = torch.empty(stack.shape, dtype=compute_dtype(stack), device=stack.device)
    for part, where in _parts(stack, device):
        chunk, chunk_pose = stack[part].to(where), _pose_part(pose, part, where)
        turned[part] = rotate_shift_images(chunk, *chunk_pose, method=method, boundary=boundary)
    return same_kind(turned if as_tensor(images).ndim == 3 else turned[0], images)


def rotate_shift_average(
    images: Any,
    alpha: Any,
    sx: Any,
    sy: Any,
    mirror: Any,
    classes: Any,
    n_classes: int | None = None,
    *,
    method: str = "cubic",
    boundary: str = "background",
    device: torch.device | str | None = None,
) -> Any:
    """Average the images of each class after rotating, shifting and mirroring them.

    Parameters
    ----------
    images : array_like of shape (b, n, n)
        Images of any array library.
    alpha : array_like of shape (b,) or a number
        In-plane rotation, degrees.
    sx, sy : array_like of shape (b,) or a number
        Shift along x and y, pixels.
    mirror : array_like of shape (b,) or a number
        True or 1 to mirror.
    classes : array_like of shape (b,)
        Class numbers from 0; -1 leaves an image out.
    n_classes : int, optional
        Number of classes k; by default the largest class number plus one.
    method : str, default 'cubic'
        Interpolation, as in `rotate_shift`.
    boundary : str, default 'background'
        Value outside the box, as in `rotate_shift`.
    device : torch.device or str, optional
        Where to compute; by default where the images are.

    Returns
    -------
    array of shape (k, n, n)
        Class averages, of the input's kind of array; zeros for an empty class.

    Raises
    ------
    RalibError
        As in `rotate_shift`, and if a class number is out of range or an image holds NaN or infinity.
    """
    stack = _image_stack(images)
    pose = _eman2_poses(stack, alpha, sx, sy, mirror)
    _check_names(method, boundary)
    index, k = _class_index(stack, classes, n_classes)
    sums = torch.zeros(())
    for part, where in _parts(stack, device):
        chunk, chunk_pose, chunk_index = stack[part].to(where), _pose_part(pose, part, where), index[part].to(where)
        more = rotate_shift_sum(chunk, *chunk_pose, chunk_index, k, method=method, boundary=boundary)
        sums = more if sums.ndim == 0 else sums + more
    _check_finite(sums, stack)
    members = torch.bincount(index[index >= 0], minlength=k).to(sums)
    return same_kind((sums / members.clamp(min=1)[:, None, None]).to(stack.device), images)


def _image_stack(images: Any) -> Tensor:
    stack = as_tensor(images, "images")
    if stack.ndim == 2:
        stack = stack[None]
    if stack.ndim != 3 or stack.shape[1] != stack.shape[2]:
        raise RalibError(f"images have shape {tuple(stack.shape)}: pass (n, n) or (number, n, n)")
    if stack.shape[1] < SMALLEST_BOX_PX:
        raise RalibError(f"images are {stack.shape[1]} px: at least {SMALLEST_BOX_PX} are needed to interpolate")
    if stack.is_complex():
        raise RalibError(f"images are {stack.dtype}: transform them to real space first")
    return stack


def _eman2_poses(stack: Tensor, alpha: Any, sx: Any, sy: Any, mirror: Any) -> PoseTriple:
    """The parameters as poses on the images' device, checked."""
    values = {}
    for name, value in (("alpha", alpha), ("sx", sx), ("sy", sy), ("mirror", mirror)):
        tensor = as_tensor(value, name).to(stack.device, torch.float64).reshape(-1)
        if len(tensor) not in (1, len(stack)):
            raise RalibError(
                f"{name} has {len(tensor)} values for {len(stack)} images: pass one number or one an image"
            )
        values[name] = tensor.expand(len(stack))
    finite = torch.stack([value.isfinite().all() for value in values.values()])
    if not bool(finite.all()):
        name = list(values)[finite.tolist().index(False)]
        row = int((~values[name].isfinite()).nonzero()[0])
        raise RalibError(
            f"{name} is {float(values[name][row])} for image {row}: every parameter must be a finite number"
        )
    shift = torch.stack([values["sx"], values["sy"]], dim=1)
    return eman2_to_pose(values["alpha"], shift, values["mirror"] != 0)


def _class_index(stack: Tensor, classes: Any, n_classes: int | None) -> tuple[Tensor, int]:
    index = as_tensor(classes, "classes").to(stack.device).reshape(-1)
    if len(index) != len(stack):
        raise RalibError(f"classes has {len(index)} values for {len(stack)} images: pass one an image")
    if index.is_floating_point() and not bool((index == index.round()).all()):
        raise RalibError("classes holds numbers that are not whole: pass class numbers from 0, or -1 for none")
    index = index.long()
    if not len(index):
        raise RalibError("there are no images to average: the stack is empty")
    lowest, highest = int(index.min()), int(index.max())
    k = highest + 1 if n_classes is None else n_classes
    if lowest < -1 or highest >= k or k < 1:
        raise RalibError(
            f"classes run from {lowest} to {highest} with {k} classes: they count from 0, or are -1 for none"
        )
    return index, k


def _check_names(method: str, boundary: str) -> None:
    if method not in METHODS:
        raise RalibError(f"method {method!r} is unknown: choose one of {', '.join(METHODS)}")
    if boundary not in BOUNDARIES:
        raise RalibError(f"boundary {boundary!r} is unknown: choose one of {', '.join(BOUNDARIES)}")


def _parts(stack: Tensor, device: torch.device | str | None) -> list[tuple[slice, torch.device]]:
    """The whole stack at once where it already is on the device, else pieces that fit there."""
    where = stack.device if device is None else torch.device(device)
    if where.type == stack.device.type and where.index in (None, stack.device.index):
        return [(slice(None), stack.device)]
    step = max(1, _SENT_PIXELS // stack[0].numel()) if len(stack) else 1
    return [(slice(start, start + step), where) for start in range(0, len(stack), step)]


def _pose_part(pose: PoseTriple, part: slice, device: torch.device) -> PoseTriple:
    psi_deg, origin_xy_px, mirror = (value[part].to(device) for value in pose)
    return psi_deg, origin_xy_px, mirror


def _check_finite(sums: Tensor, stack: Tensor) -> None:
    """Raise if an image holds NaN or infinity: only where the sums do are the images searched."""
    if bool(sums.isfinite().all()):
        return
    bad = [i for i in range(len(stack)) if not bool(stack[i].isfinite().all())]
    where = f"image {bad[0]} ({len(bad)} in all) holds" if bad else "the sums overflow: some images hold"
    raise RalibError(f"{where} NaN or infinity: leave it out with class -1, or normalise the stack first")
