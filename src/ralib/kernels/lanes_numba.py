"""Vectors of sixteen numbers as one value of compiled loops on a CPU, where automatic vectorisation is not certain.

The compiler turns a loop over an array's sixteen columns into vector instructions only where it can prove that no two
arrays overlap; a value of this type is one register (or two, or four) by construction. Sums and products are rounded
one by one, in the order written; `multiply_add` may be one rounding.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, no_type_check

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

from ralib.kernels.pose_search.tile_llvm import LANES
from ralib.kernels.trig_numba import COSINE, SINE

__all__ = [
    "LANES",
    "corners",
    "cos_sin_lanes",
    "load",
    "load_pairs",
    "multiply_add",
    "pick_greater_equal",
    "spread",
    "store",
    "sum_lanes",
    "truncate",
    "turn_round",
]

_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


_lanes = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _VECTOR)


@intrinsic
@no_type_check
def spread(context: Any, number: Any) -> Any:
    """Return a number (float32) in all lanes.

    Parameters
    ----------
    context : Any
        Numba's typing context.
    number : Any
        The number.

    Returns
    -------
    tuple
        Signature and code generator for `numba.extending.intrinsic`.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return _in_all_lanes(builder, given[0])

    return _lanes(numba.float32), build


@intrinsic
@no_type_check
def load(context: Any, data: Any, first: Any) -> Any:
    """Return data[first : first + LANES] of a flat float32 array.

    Parameters
    ----------
    context : Any
        Numba's typing context.
    data : Any
        Flat float32 array.
    first : Any
        Lane 0 in it, int64.

    Returns
    -------
    tuple
        Signature and code generator for `numba.extending.intrinsic`.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pointer = context.make_array(signature.args[0])(context, builder, given[0]).data
        return _loaded(builder, builder.gep(pointer, [given[1]]), _VECTOR)

    return _lanes(data, numba.int64), build


@intrinsic
@no_type_check
def store(context: Any, data: Any, first: Any, value: Any) -> Any:
    """Set data[first : first + LANES] of a flat float32 array.

    Parameters
    ----------
    context : Any
        Numba's typing context.
    data : Any
        Flat float32 array.
    first : Any
        Lane 0 in it, int64.
    value : Any
        Lanes.

    Returns
    -------
    tuple
        Signature and code generator for `numba.extending.intrinsic`.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pointer = context.make_array(signature.args[0])(context, builder, given[0]).data
        place = builder.bitcast(builder.gep(pointer, [given[1]]), _VECTOR.as_pointer())
        builder.store(given[2], place).align = 4
        return context.get_dummy_value()

    return numba.void(data, numba.int64, _lanes), build


@intrinsic
@no_type_check
def multiply_add(context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a b + c, in one rounding where the processor can.

    Parameters
    ----------
    context : Any
        Numba's typing context.
    a, b, c : Any
        Lanes.

    Returns
    -------
    tuple
        Signature and code generator for `numba.extending.intrinsic`.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        product = builder.fmul(given[0], given[1], flags=("contract",))
        return builder.fadd(product, given[2], flags=("contract",))

    return _lanes(_lanes, _lanes, _lanes), build


@intrinsic
@no_type_check
def pick_greater_equal(context: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    """Return x in the lanes where a >= b, y in the others.

    Parameters
    ----------
    context : Any
        Numba's typing context.
    a, b, x, y : Any
        Lanes.

    Returns
    -------
    tuple
        Signature and code generator for `numba.extending.intrinsic`.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">=", given[0], given[1]), given[2], given[3])

    return _lanes(_lanes, _lanes, _lanes, _lanes), build


@intrinsic
@no_type_check
def truncate(context: Any, a: Any) -> Any:
    """Return a without its fraction, for numbers below 2^31.

    Parameters
    ----------
    context : Any
        Numba's typing context.
    a : Any
        Lanes.

    Returns
    -------
    tuple
        Signature and code generator for `numba.extending.intrinsic`.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.sitofp(builder.fptosi(given[0], ir.VectorType(_INT, LANES)), _VECTOR)

    return _lanes(_lanes), build


@intrinsic
@no_type_check
def corners(context: Any, pixels: Any, base: Any, first: Any, column: Any, row: Any, width: Any) -> Any:
    """Return pixels of each lane's image: at (column, row), one to the right, one below, and to the right of that.

    Parameters
    ----------
    context : Any
        Numba's typing context.
    pixels : Any
        Images, flat, float32.
    base : Any
        Where each lane's image begins, int64 array.
    first : Any
        Lane 0 in `base`, int64.
    column, row : Any
        Whole numbers, lanes.
    width : Any
        Pixels of a line, int64.

    Returns
    -------
    tuple
        Signature and code generator for `numba.extending.intrinsic`.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pixels, base = (context.make_array(signature.args[i])(context, builder, given[i]).data for i in (0, 1))
        whole, longs, width = ir.VectorType(_INT, LANES), ir.VectorType(_LONG, LANES), given[5]
        column, row = (builder.fptosi(given[i], whole) for i in (3, 4))
        at = builder.add(builder.mul(row, _in_all_lanes(builder, builder.trunc(width, _INT))), column)
        at = builder.add(builder.sext(at, longs), _loaded(builder, builder.gep(base, [given[2]]), longs))
        pairs: list[list[Any]] = [[], []]
        for lane in range(LANES):
            place = builder.gep(pixels, [builder.extract_element(at, ir.Constant(_INT, lane))])
            for line in pairs:
                line.append(_loaded(builder, place, ir.VectorType(_FLOAT, 2)))
                place = builder.gep(place, [width])
        values = [_every_second(builder, _joined(builder, line), odd) for line in pairs for odd in (0, 1)]
        return context.make_tuple(builder, signature.return_type, values)

    four = types.UniTuple(_lanes, 4)
    return four(pixels, base, numba.int64, _lanes, _lanes, numba.int64), build


@intrinsic
@no_type_check
def load_pairs(context: Any, data: Any, first: Any) -> Any:
    """Return the even and the odd ones of data[first : first + 2 LANES] of a flat float32 array.

    Parameters
    ----------
    context : Any
        Numba's typing context.
    data : Any
        Flat float32 array.
    first : Any
        Lane 0 in it, int64.

    Returns
    -------
    tuple
        Signature and code generator for `numba.extending.intrinsic`.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pointer = context.make_array(signature.args[0])(context, builder, given[0]).data
        both = _loaded(builder, builder.gep(pointer, [given[1]]), ir.VectorType(_FLOAT, 2 * LANES))
        return context.make_tuple(builder, signature.return_type, [_every_second(builder, both, odd) for odd in (0, 1)])

    return types.UniTuple(_lanes, 2)(data, numba.int64), build


@intrinsic
@no_type_check
def turn_round(context: Any, a: Any) -> Any:
    """Return a with its last lane first.

    Parameters
    ----------
    context : Any
        Numba's typing context.
    a : Any
        Lanes.

    Returns
    -------
    tuple
        Signature and code generator for `numba.extending.intrinsic`.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        order = ir.Constant(ir.VectorType(_INT, LANES), list(range(LANES - 1, -1, -1)))
        return builder.shuffle_vector(given[0], ir.Constant(_VECTOR, ir.Undefined), order)

    return _lanes(_lanes), build


@intrinsic
@no_type_check
def sum_lanes(context: Any, a: Any) -> Any:
    """Return the sum of all lanes: of halves, of halves of them, and so on.

    Parameters
    ----------
    context : Any
        Numba's typing context.
    a : Any
        Lanes.

    Returns
    -------
    tuple
        Signature and code generator for `numba.extending.intrinsic`.
    """

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        total, n = given[0], LANES
        while n > 1:
            n //= 2
            kind = ir.VectorType(_INT, n)
            near, far = (ir.Constant(kind, list(range(first, first + n))) for first in (0, n))
            nothing = ir.Constant(total.type, ir.Undefined)
            total = builder.fadd(*(builder.shuffle_vector(total, nothing, half) for half in (near, far)))
        return builder.extract_element(total, ir.Constant(_INT, 0))

    return numba.float32(_lanes), build


def _in_all_lanes(builder: Any, number: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
    one = builder.insert_element(undefined, number, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES))


def _loaded(builder: Any, place: Any, kind: Any) -> Any:
    value = builder.load(builder.bitcast(place, kind.as_pointer()))
    value.align = 4
    return value


def _joined(builder: Any, vectors: list[Any]) -> Any:
    """Vectors one after the other in one."""
    while len(vectors) > 1:
        n = 2 * vectors[0].type.count
        lanes = ir.Constant(ir.VectorType(_INT, n), list(range(n)))
        vectors = [builder.shuffle_vector(a, b, lanes) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def _every_second(builder: Any, vector: Any, first: int) -> Any:
    lanes = ir.Constant(ir.VectorType(_INT, LANES), list(range(first, 2 * LANES, 2)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


def _let_operator(symbol: Callable[..., Any], operands: int, instruction: str) -> None:
    """Let one of Python's operators on lanes be an instruction."""

    @no_type_check
    def kind(context: Any) -> Any:
        if operands == 1:
            return lambda a: _lanes if a is _lanes else None
        return lambda a, b: _lanes if a is _lanes and b is _lanes else None

    @no_type_check
    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return getattr(builder, instruction)(*given)

    type_callable(symbol)(kind)
    lower_builtin(symbol, *[_Lanes] * operands)(build)


for _symbol, _operands, _instruction in (
    (operator.add, 2, "fadd"),
    (operator.sub, 2, "fsub"),
    (operator.mul, 2, "fmul"),
    (operator.neg, 1, "fneg"),
):
    _let_operator(_symbol, _operands, _instruction)


@numba.njit
@no_type_check
def cos_sin_lanes(cycles: Any) -> Any:
    """Return cosine and sine of 2 pi times lanes, to 6e-7; see `trig_numba`.

    Parameters
    ----------
    cycles : Any
        Lanes, below 2^21.

    Returns
    -------
    tuple
        Cosine and sine, lanes.
    """
    whole = spread(np.float32(12582912.0))  # 1.5 * 2^23: next to it there are no bits for a fraction
    r = cycles - ((cycles + whole) - whole)
    q = r * r
    co, si = spread(COSINE[0]), spread(SINE[0])
    for i in range(1, len(COSINE)):
        co = multiply_add(co, q, spread(COSINE[i]))
    for i in range(1, len(SINE)):
        si = multiply_add(si, q, spread(SINE[i]))
    return co, si * r
