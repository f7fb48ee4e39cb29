"""Arrays of other libraries: the same memory in, the same kind out."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ralib.images.array_interop import as_tensor, same_kind
from ralib.types import RalibError


class Foreign:
    """An array of an imaginary library that speaks DLPack and the array API standard."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.data.__dlpack_device__()

    def __array_namespace__(self) -> Any:
        return types.SimpleNamespace(from_dlpack=lambda tensor: Foreign(np.from_dlpack(tensor)))


def test_as_tensor_numpy_shares_memory_both_ways() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensor = as_tensor(array)
    assert tensor.data_ptr() == array.ctypes.data
    back = same_kind(tensor, array)
    assert isinstance(back, np.ndarray)
    assert back.ctypes.data == array.ctypes.data


def test_as_tensor_torch_tensor_is_returned_itself() -> None:
    tensor = torch.rand(3, requires_grad=True)
    assert as_tensor(tensor).data_ptr() == tensor.data_ptr()
    assert as_tensor(tensor) is tensor  # gradients flow through
    assert isinstance(same_kind(as_tensor(tensor), tensor), torch.Tensor)


def test_as_tensor_dlpack_array_is_not_copied() -> None:
    array = Foreign(np.arange(6, dtype=np.float32))
    tensor = as_tensor(array)
    assert tensor.data_ptr() == array.data.ctypes.data
    back = same_kind(tensor, array)
    assert isinstance(back, Foreign)
    assert back.data.ctypes.data == array.data.ctypes.data


def test_as_tensor_foreign_memory_layout_is_copied() -> None:
    big_endian = np.arange(5, dtype=">f4")
    assert as_tensor(big_endian).tolist() == [0, 1, 2, 3, 4]
    assert as_tensor(np.arange(5)[::-1]).tolist() == [4, 3, 2, 1, 0]
    assert as_tensor([True, False]).tolist() == [True, False]
    assert as_tensor(2.5).shape == ()


def test_as_tensor_read_only_memory_map_is_neither_copied_nor_warned_of(tmp_path: Path) -> None:
    np.save(tmp_path / "stack.npy", np.ones((2, 8, 8), np.float32))
    mapped = np.load(tmp_path / "stack.npy", mmap_mode="r")
    tensor = as_tensor(mapped)
    assert tensor.data_ptr() == mapped.ctypes.data
    assert type(same_kind(tensor, mapped)) is np.ndarray


def test_as_tensor_object_with_array_method_is_converted() -> None:
    """Like a pandas column: NumPy comes out."""

    class Column:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.array([1.0, 2.0])

    column = Column()
    Column.__module__ = "numpy"
    assert as_tensor(column).tolist() == [1, 2]


@pytest.mark.parametrize("value", [{"a": 1}, "text", object()])
def test_as_tensor_no_array_is_refused(value: object) -> None:
    with pytest.raises(RalibError, match=r"images is a .*: pass a NumPy"):
        as_tensor(value, "images")


def test_as_tensor_array_of_text_is_refused() -> None:
    with pytest.raises(RalibError, match="alpha holds <U1: numbers or booleans"):
        as_tensor(["a", "b"], "alpha")


def test_as_tensor_cuda_array_interface_is_taken_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba's device arrays have no DLPack; torch reads their interface."""
    seen = {}

    def fake_as_tensor(value: object, device: str) -> torch.Tensor:
        seen["device"] = device
        return torch.zeros(2)

    monkeypatch.setattr(torch, "as_tensor", fake_as_tensor)
    as_tensor(types.SimpleNamespace(__cuda_array_interface__={}))
    assert seen["device"] == "cuda"
    numba = types.SimpleNamespace(as_cuda_array=lambda tensor: ("numba", tensor))
    monkeypatch.setitem(sys.modules, "numba.cuda", numba)

    class DeviceArray:
        __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012

    DeviceArray.__module__ = "numba.cuda.cudadrv"
    assert same_kind(torch.zeros(2), DeviceArray())[0] == "numba"


def test_as_tensor_jax_array_is_not_copied() -> None:
    jnp = pytest.importorskip("jax.numpy", reason="jax is not installed")
    array = jnp.arange(6, dtype=jnp.float32)
    tensor = as_tensor(array)
    assert tensor.data_ptr() == array.unsafe_buffer_pointer()
    back = same_kind(tensor * 2, array)
    assert isinstance(back, jnp.ndarray)
    assert back.tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CuPy needs a GPU")
def test_as_tensor_cupy_array_is_not_copied() -> None:
    cupy = pytest.importorskip("cupy", reason="cupy is not installed")
    array = cupy.arange(6, dtype=cupy.float32)
    tensor = as_tensor(array)
    assert tensor.is_cuda
    assert tensor.data_ptr() == array.data.ptr
    back = same_kind(tensor, array)
    assert isinstance(back, cupy.ndarray)
    assert back.data.ptr == array.data.ptr
