"""Conversion of arrays of any library to PyTorch tensors and back, without a copy.

NumPy, PyTorch, CuPy, JAX and other arrays that support DLPack or `__cuda_array_interface__` (Numba) become tensors over
the same memory. Results are returned through the library's own `from_dlpack`.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ralib.types import RalibError


def as_tensor(array: Any, what: str = "array") -> Tensor:
    """Return a PyTorch tensor over the memory of an array, on its device.

    The tensor must not be written to. Only what PyTorch cannot hold is copied: NumPy arrays of foreign byte order or
    negative strides, lists, numbers.

    Parameters
    ----------
    array : Any
        NumPy, PyTorch, CuPy, JAX or other array, or a list or number.
    what : str, default 'array'
        What the array is called in an error message.

    Returns
    -------
    Tensor
        The tensor; a PyTorch tensor stays what it is, so that gradients flow through.

    Raises
    ------
    RalibError
        If `array` is not an array of numbers.
    """
    if isinstance(array, Tensor):
        return array
    if isinstance(array, np.ndarray | np.generic | list | tuple | int | float):
        return _from_numpy(np.asarray(array), what)
    if hasattr(array, "__dlpack__"):
        return from_dlpack(array).detach()
    if hasattr(array, "__cuda_array_interface__"):
        return torch.as_tensor(array, device="cuda")
    if hasattr(array, "__array__"):
        return _from_numpy(np.asarray(array), what)
    raise RalibError(
        f"{what} is a {type(array).__name__}: pass a NumPy, PyTorch, CuPy or JAX array, or one that has "
        "__dlpack__ or __cuda_array_interface__"
    )


def same_kind(tensor: Tensor, example: Any) -> Any:
    """Return a tensor as an array of the library that an example came from.

    Parameters
    ----------
    tensor : Tensor
        The result to convert.
    example : Any
        Array whose library and kind of device are wanted.

    Returns
    -------
    Any
        The converted array. A list, a number, or an array whose library cannot import tensors gives a NumPy array, or
        the tensor itself.
    """
    if isinstance(example, Tensor):
        return tensor.to(example.device)
    if isinstance(example, np.ndarray | np.generic | list | tuple | int | float):
        return tensor.detach().cpu().numpy()
    library = type(example).__module__.partition(".")[0]
    if library == "numba":
        return import_module("numba.cuda").as_cuda_array(tensor)
    take = getattr(_namespace(example), "from_dlpack", None)
    if take is None:
        return tensor if hasattr(example, "__dlpack__") else tensor.detach().cpu().numpy()
    return take(tensor.detach().to(as_tensor(example).device))


def _from_numpy(array: np.ndarray, what: str) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise RalibError(f"{what} holds {array.dtype}: numbers or booleans are needed")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        # A read-only array (a memory map) is as good as any: tensors made here are only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(array)


def _namespace(array: Any) -> Any:
    """The module with the array's functions, by the array API standard or by the name of its package."""
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    return import_module(type(array).__module__.partition(".")[0])
