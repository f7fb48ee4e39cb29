"""Compute kernels, each in a plain PyTorch reference and in compiled forms of the same signature (Numba, Triton).

`implementation` alone chooses the form. An error in a kernel is raised: no form silently replaces another. The
reference is the oracle of the tests. Images that are interpolated in every iteration are prefiltered once by
`interpolation_samples`, whose result is accepted in place of images.
"""

from __future__ import annotations

import functools
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ralib.compile_cache import choose_cache_folders
from ralib.kernels.interpolation.reference import Samples, compute_dtype

__all__ = ["Samples", "implementation", "interpolation_samples", "rotate_shift_images", "rotate_shift_sum"]


FUSED = "averages", "figures", "likelihood", "references"
"""Folders whose kernels do many small operations at once: on a GPU, which would wait for each to be launched."""

gpu_forms_only = False
"""Whether forms for a GPU are chosen on a CPU as well, as where they are only compiled."""

choose_cache_folders(os.environ, Path(__file__).parent)


def implementation(folder: str, data: Tensor | Samples, *pose: Tensor) -> Any:
    """Choose the module of a folder of kernels that computes on given data: the one dispatch rule.

    It is asked before every kernel, thousands of times in a second.

    Parameters
    ----------
    folder : str
        'interpolation', 'pose_search', 'classes', or one of FUSED.
    data : Tensor or Samples
        What the kernel is given.
    *pose : Tensor
        What else a gradient may be wanted for.

    Returns
    -------
    module
        `gpu_triton` on a GPU, `cpu_numba` for single precision on a CPU (none of FUSED), else `reference`;
        `reference`, which autograd sees through, wherever a gradient is wanted.
    """
    form = "reference"
    values = data.values if isinstance(data, Samples) else data
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (values, *pose)):
        pass
    elif in_gpu_form(values):
        form = "gpu_triton"
    elif values.is_cpu and _single(folder, data):
        form = "cpu_numba"
    return _module(folder, form)


@functools.cache
def _module(folder: str, form: str) -> ModuleType:
    return import_module(f"ralib.kernels.{folder}.{form}")


def in_gpu_form(values: Tensor) -> bool:
    """Whether kernels in their forms for a GPU compute on given values."""
    return gpu_forms_only or values.is_cuda


def _single(folder: str, data: Tensor | Samples) -> bool:
    """Whether single precision is what a kernel computes in; samples of the pose search are complex."""
    if folder in FUSED:
        return False
    if folder == "interpolation":
        return compute_dtype(data) == torch.float32
    return isinstance(data, Tensor) and data.dtype in (torch.float16, torch.float32, torch.complex64)


def interpolation_samples(images: Tensor, *, method: str = "cubic", boundary: str = "zero") -> Samples:
    """Prefilter images once that are interpolated many times.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.
    method : str, default 'cubic'
        Interpolation; see `rotate_shift_images`.
    boundary : str, default 'zero'
        Value outside the box; see `rotate_shift_images`.

    Returns
    -------
    Samples
        Samples, accepted in place of images by `rotate_shift_images` and `rotate_shift_sum`.
    """
    samples: Samples = implementation("interpolation", images).interpolation_samples(
        images, method=method, boundary=boundary
    )
    return samples


def rotate_shift_images(
    images: Tensor | Samples,
    psi_deg: Tensor,
    origin_xy_px: Tensor,
    mirror: Tensor,
    *,
    method: str = "cubic",
    boundary: str = "zero",
) -> Tensor:
    """Transform particles into the frame of their class average, p_ref = M(R(psi)(p + origin)).

    Parameters
    ----------
    images : Tensor or Samples of shape (b, n, n)
        Particle images, or their `interpolation_samples`.
    psi_deg : Tensor of shape (b,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (b, 2)
        Origin shift (x, y), pixels.
    mirror : Tensor of shape (b,)
        True for a mirrored particle.
    method : str, default 'cubic'
        'cubic' (o-Moms on prefiltered samples), 'quadratic' (EMAN2's) or 'linear'.
    boundary : str, default 'zero'
        Value outside the box: 'zero', 'mean', 'cyclic' or 'background' (EMAN2's rule).

    Returns
    -------
    Tensor of shape (b, n, n)
        Transformed images, float64 for float64 images and float32 otherwise.

    Raises
    ------
    ValueError
        If the method or boundary is unknown.
    """
    turned: Tensor = implementation("interpolation", images, psi_deg, origin_xy_px).rotate_shift_images(
        images, psi_deg, origin_xy_px, mirror, method=method, boundary=boundary
    )
    return turned


def rotate_shift_sum(
    images: Tensor | Samples,
    psi_deg: Tensor,
    origin_xy_px: Tensor,
    mirror: Tensor,
    class_index: Tensor,
    n_classes: int,
    *,
    weights: Tensor | None = None,
    half_index: Tensor | None = None,
    out: Tensor | None = None,
    method: str = "cubic",
    boundary: str = "zero",
    rounded: bool = False,
) -> Tensor:
    """Sum the images of each class in the frame of its class average.

    Particles are added in their order, so that the result does not depend on how they are divided into chunks.

    Parameters
    ----------
    images : Tensor or Samples of shape (b, n, n)
        Particle images, or their `interpolation_samples`.
    psi_deg : Tensor of shape (b,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (b, 2)
        Origin shift (x, y), pixels.
    mirror : Tensor of shape (b,)
        True for a mirrored particle.
    class_index : Tensor of shape (b,)
        Class from 0, or -1 for a particle of no class.
    n_classes : int
        Number of classes k.
    weights : Tensor of shape (b,), optional
        Factor of each particle.
    half_index : Tensor of shape (b,), optional
        Half data set of each particle, 0 or 1.
    out : Tensor of shape (k, n, n) or (2, k, n, n), optional
        Running sums to add to; may be float64 for float32 images.
    method : str, default 'cubic'
        Interpolation; see `rotate_shift_images`.
    boundary : str, default 'zero'
        Value outside the box; see `rotate_shift_images`.
    rounded : bool, default False
        Whether interpolation samples pass through half precision, which changes an average of noise by less than a
        thousandth of its standard deviation, and takes a GPU less time. Only for 'cubic'.

    Returns
    -------
    Tensor of shape (k, n, n), or (2, k, n, n) with `half_index`
        `out`, or new sums.
    """
    pose = (psi_deg, origin_xy_px, mirror, class_index)
    options = {"weights": weights, "half_index": half_index, "out": out, "method": method, "boundary": boundary}
    kernels = implementation("interpolation", images, psi_deg, origin_xy_px)
    sums: Tensor = kernels.rotate_shift_sum(images, *pose, n_classes, **options, rounded=rounded)
    return sums
