"""CuPy arrays in, CuPy arrays out, on the GPU and without a copy; the same with JAX.

    python examples/cupy_dropin.py

Needs CuPy and a GPU for the first part and JAX for the second; says what is missing and goes on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ralib.images.array_interop import as_tensor
from ralib.images.transform import rotate_shift, rotate_shift_average


def show(library: str, images: Any, address: int) -> None:
    """Rotates and averages `images` and prints what came back and whether their memory was shared."""
    b = len(images)
    alpha = np.linspace(0, 360, b, endpoint=False)
    turned = rotate_shift(images, alpha, 1.5, -0.5, 0)
    averages = rotate_shift_average(images, alpha, 1.5, -0.5, 0, np.arange(b) % 4)
    shared = as_tensor(images).data_ptr() == address
    print(f"{library}: {type(turned).__module__}.{type(turned).__name__} {turned.shape}, averages {averages.shape}")
    print(f"{library}: same memory seen by ralib: {shared}; results on {as_tensor(averages).device}")
    expected = rotate_shift_average(np.asarray(as_tensor(images).cpu()), alpha, 1.5, -0.5, 0, np.arange(b) % 4)
    difference = float(np.abs(as_tensor(averages).cpu().numpy() - expected).max())
    print(f"{library}: largest difference from NumPy on the CPU {difference:.1e}")
    if not shared or difference > 1e-4 or type(turned) is not type(images):
        raise SystemExit(f"{library}: not a drop-in here")


def main() -> None:
    """CuPy, then JAX."""
    stack = np.random.default_rng(0).standard_normal((64, 90, 90)).astype(np.float32)
    try:
        import cupy

        on_gpu = cupy.asarray(stack)
    except Exception as problem:  # CuPy without a driver fails with errors of its own
        print(f"CuPy and a GPU are needed for this part: {problem}")
    else:
        show("CuPy", on_gpu, on_gpu.data.ptr)
    try:
        import jax
    except ImportError as problem:
        print(f"JAX is needed for this part: {problem}")
        return
    in_jax = jax.numpy.asarray(stack)
    show("JAX", in_jax, in_jax.unsafe_buffer_pointer())


if __name__ == "__main__":
    main()
