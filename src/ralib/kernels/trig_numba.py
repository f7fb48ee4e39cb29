"""Cosine and sine for compiled loops on a CPU, from polynomials that stay in vector registers."""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np

COSINE = tuple(map(np.float32, (6.5286492, -25.967593, 60.167629, -85.450139, 64.939117, -19.739204, 1.0)))
SINE = tuple(map(np.float32, (-12.471224, 41.342871, -76.61447, 81.599943, -41.341589, 6.2831849)))
"""Coefficients of powers of the squared argument, the highest first; the sine's is multiplied by the argument."""


@numba.njit(fastmath=True, inline="always")
@no_type_check
def cos_sin(cycles: Any) -> Any:
    """Return cosine and sine of 2 pi times the argument, to 6e-7, from Chebyshev fits on [-1/2, 1/2]."""
    r = cycles - np.floor(cycles + np.float32(0.5))
    q = r * r
    co = COSINE[0]
    co = co * q + COSINE[1]
    co = co * q + COSINE[2]
    co = co * q + COSINE[3]
    co = co * q + COSINE[4]
    co = co * q + COSINE[5]
    co = co * q + COSINE[6]
    si = SINE[0]
    si = si * q + SINE[1]
    si = si * q + SINE[2]
    si = si * q + SINE[3]
    si = si * q + SINE[4]
    si = si * q + SINE[5]
    return co, si * r
