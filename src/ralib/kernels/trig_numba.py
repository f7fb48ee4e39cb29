"""Cosine and sine for compiled loops on a CPU, from polynomials that stay in vector registers."""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np


@numba.njit(fastmath=True, inline="always")
@no_type_check
def cos_sin(cycles: Any) -> Any:
    """Return cosine and sine of 2 pi times the argument, to 6e-7, from Chebyshev fits on [-1/2, 1/2]."""
    r = cycles - np.floor(cycles + np.float32(0.5))
    q = r * r
    co = np.float32(6.5286492)
    co = co * q - np.float32(25.967593)
    co = co * q + np.float32(60.167629)
    co = co * q - np.float32(85.450139)
    co = co * q + np.float32(64.939117)
    co = co * q - np.float32(19.739204)
    co = co * q + np.float32(1.0)
    si = np.float32(-12.471224)
    si = si * q + np.float32(41.342871)
    si = si * q - np.float32(76.61447)
    si = si * q + np.float32(81.599943)
    si = si * q - np.float32(41.341589)
    si = si * q + np.float32(6.2831849)
    return co, si * r
