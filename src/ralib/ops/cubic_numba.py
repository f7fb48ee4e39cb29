"""Cubic o-Moms interpolation at one point, for compiled loops on a CPU: four taps of a line in one vector register.

Left to itself the compiler takes sixteen points at a time and gathers their taps one by one, which takes twice as long.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from ralib.ops.resample_plain import OMOMS_CENTRE

_BEFORE = (-1 / 6, 1 / 2, -1 / 2 - 1 / 42, 1 / 6 + 1 / 42)
_HERE = (1 / 2, -1.0, 1 / 14, OMOMS_CENTRE)
_LAST = (1 / 6, 0.0, 1 / 42, 0.0)
_NEXT = tuple((1.0 if i == 3 else 0.0) - _BEFORE[i] - _HERE[i] - _LAST[i] for i in range(4))
WEIGHTS = np.array([_BEFORE, _HERE, _NEXT, _LAST], dtype=np.float32).T
"""(4, 4): coefficients of t^3, t^2, t and 1 of the weights at distances 1 + t, t, 1 - t and 2 - t."""

_FLOAT, _LANE = ir.FloatType(), ir.IntType(32)
_FOUR = ir.VectorType(_FLOAT, 4)
_FAST = ("fast",)


@intrinsic
@no_type_check
def cubic_at(context: Any, samples: Any, first: Any, width: Any, t: Any, u: Any) -> Any:
    """The value t right of and u below the sample `first` of flat float32 samples, `width` to a line; int64 addresses.

    Samples that are padded as `resample_plain.Samples` have all the taps in memory.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        array, first, width, t, u = given
        data = context.make_array(signature.args[0])(context, builder, array).data
        weight_x, weight_y = _weights(builder, t), _weights(builder, u)
        at = builder.sub(builder.sub(first, width), ir.Constant(first.type, 1))
        total = ir.Constant(_FOUR, [0.0] * 4)
        for line in range(4):
            taps = builder.load(builder.bitcast(builder.gep(data, [at]), _FOUR.as_pointer()))
            taps.align = 4
            total = _fma(builder, taps, _shuffled(builder, weight_y, [line] * 4), total)
            at = builder.add(at, width)
        total = builder.fmul(total, weight_x, flags=_FAST)
        total = builder.fadd(total, _shuffled(builder, total, [2, 3, 2, 3]), flags=_FAST)
        total = builder.fadd(total, _shuffled(builder, total, [1, 1, 1, 1]), flags=_FAST)
        return builder.extract_element(total, ir.Constant(_LANE, 0))

    return numba.float32(samples, first, width, t, u), build


def _weights(builder: Any, t: Any) -> Any:
    """The weights of four taps, by Horner's rule."""
    undefined = ir.Constant(_FOUR, ir.Undefined)
    t = _shuffled(builder, builder.insert_element(undefined, t, ir.Constant(_LANE, 0)), [0] * 4)
    rows = [ir.Constant(_FOUR, [float(c) for c in row]) for row in WEIGHTS]
    total = rows[0]
    for row in rows[1:]:
        total = _fma(builder, total, t, row)
    return total


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=_FAST), c, flags=_FAST)


def _shuffled(builder: Any, vector: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(vector, ir.Constant(_FOUR, ir.Undefined), ir.Constant(ir.VectorType(_LANE, 4), lanes))
