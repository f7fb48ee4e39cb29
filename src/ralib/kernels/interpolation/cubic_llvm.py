"""Cubic o-Moms interpolation for compiled loops on a CPU: four points at once, the four taps of a line side by side.

The compiler by itself vectorises over sixteen points and gathers their taps one by one, which takes more than twice as
long. This module generates the LLVM instructions directly.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from ralib.kernels.interpolation.reference import OMOMS_CENTRE

POINTS, TAPS = 4, 4
LINE = 16
"""Numbers of a cache line, in single precision."""

_BEFORE = (-1 / 6, 1 / 2, -1 / 2 - 1 / 42, 1 / 6 + 1 / 42)
_HERE = (1 / 2, -1.0, 1 / 14, OMOMS_CENTRE)
_LAST = (1 / 6, 0.0, 1 / 42, 0.0)
_NEXT = tuple((1.0 if i == 3 else 0.0) - _BEFORE[i] - _HERE[i] - _LAST[i] for i in range(4))
WEIGHTS = np.array([_BEFORE, _HERE, _NEXT, _LAST], dtype=np.float32).T
"""(4, 4): coefficients of t^3, t^2, t and 1 of the weights at distances 1 + t, t, 1 - t and 2 - t."""

_FLOAT, _LANE = ir.FloatType(), ir.IntType(32)
_LANES = range(POINTS * TAPS)
_FAST = ("fast",)


@intrinsic
@no_type_check
def cubic_points(context: Any, samples: Any, first: Any, width: Any, t: Any, u: Any, value: Any, x: Any) -> Any:
    """Interpolate POINTS points and store them in value[x : x + POINTS].

    Parameters
    ----------
    context : Any
        Numba's typing context.
    samples : array_like of shape (p,)
        Padded samples as in `reference.Samples`, flat, float32.
    first : array_like of shape (n,)
        Address of the sample from which each point's distance counts, uint32.
    width : Any
        Samples in a line, int64.
    t, u : array_like of shape (n,)
        Distance of each point from that sample along x and y, 0 to 1.
    value : array_like of shape (n,)
        Results, changed in place.
    x : Any
        First point, int64.

    Returns
    -------
    tuple
        Signature and code generator for `numba.extending.intrinsic`.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        data = [context.make_array(signature.args[i])(context, builder, given[i]).data for i in (0, 1, 3, 4, 5)]
        samples, first, t, u, value = data
        width, x = given[2], given[6]
        at = []
        for point in range(POINTS):
            address = builder.load(builder.gep(first, [builder.add(x, ir.Constant(x.type, point))]))
            before = builder.sub(builder.zext(address, width.type), ir.Constant(width.type, 1))
            at.append(builder.sub(before, width))
        weight_x, weight_y = (_weights(builder, _loaded(builder, offset, x, POINTS)) for offset in (t, u))
        total = ir.Constant(weight_x.type, [0.0] * len(_LANES))
        for line in range(TAPS):
            taps = _joined(builder, [_loaded(builder, samples, a, TAPS) for a in at])
            total = _fma(
                builder, taps, _picked(builder, weight_y, [lane // TAPS * TAPS + line for lane in _LANES]), total
            )
            at = [builder.add(a, width) for a in at]
        total = builder.fmul(total, weight_x, flags=_FAST)
        for apart in (2, 1):
            total = builder.fadd(total, _picked(builder, total, [lane ^ apart for lane in _LANES]), flags=_FAST)
        sums = _picked(builder, total, [point * TAPS for point in range(POINTS)])
        place = builder.bitcast(builder.gep(value, [x]), sums.type.as_pointer())
        builder.store(sums, place).align = 4
        return context.get_dummy_value()

    return numba.void(samples, first, width, t, u, value, x), build


@intrinsic
@no_type_check
def fetch_soon(context: Any, samples: Any, at: Any) -> Any:
    """Prefetch the cache line of samples[at].

    Parameters
    ----------
    context : Any
        Numba's typing context.
    samples : array_like of shape (p,)
        Contiguous samples.
    at : Any
        Index, int64.

    Returns
    -------
    tuple
        Signature and code generator for `numba.extending.intrinsic`.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, given[0]).data
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _LANE, _LANE, _LANE])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        # To be read; kept in all caches; data.
        how = [ir.Constant(_LANE, number) for number in (0, 3, 1)]
        builder.call(fetch, [builder.bitcast(builder.gep(data, [given[1]]), byte), *how])
        return context.get_dummy_value()

    return numba.void(samples, at), build


def _weights(builder: Any, t: Any) -> Any:
    """The weights of all taps of all points, by Horner's rule."""
    t = _picked(builder, t, [lane // TAPS for lane in _LANES])
    rows = [ir.Constant(t.type, [float(c) for c in row] * POINTS) for row in WEIGHTS]
    total = rows[0]
    for row in rows[1:]:
        total = _fma(builder, total, t, row)
    return total


def _loaded(builder: Any, data: Any, at: Any, n: int) -> Any:
    """N numbers from memory."""
    vector = builder.load(builder.bitcast(builder.gep(data, [at]), ir.VectorType(_FLOAT, n).as_pointer()))
    vector.align = 4
    return vector


def _joined(builder: Any, vectors: list[Any]) -> Any:
    """Vectors one after the other in one."""
    while len(vectors) > 1:
        lanes = ir.Constant(ir.VectorType(_LANE, 2 * vectors[0].type.count), list(range(2 * vectors[0].type.count)))
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [builder.shuffle_vector(a, b, lanes) for a, b in pairs]
    return vectors[0]


def _picked(builder: Any, vector: Any, lanes: list[int]) -> Any:
    """The lanes named, in this order."""
    mask = ir.Constant(ir.VectorType(_LANE, len(lanes)), lanes)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=_FAST), c, flags=_FAST)
