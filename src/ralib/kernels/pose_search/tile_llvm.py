"""Small matrix products inside compiled loops on a CPU, with their sums in registers.

A library's matrix product pays off for matrices that are worth packing; those of the pose search are too small and too
many.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numba
from llvmlite import binding, ir
from numba.extending import intrinsic

ROWS, LANES = 4, 16
"""Rows of the left factor, and numbers side by side on the right, of which there are two lots."""
TALL = 2 * ROWS if binding.get_host_cpu_features().get("avx512f") else ROWS
"""Rows of the left factor of `tall_tile`: what the processor's registers hold. Each sum is the same to the bit."""

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_FAST = ("fast",)


@intrinsic
@no_type_check
def tile(
    context: Any, left: Any, first: Any, right: Any, second: Any, step: Any, apart: Any, depth: Any, out: Any,
    third: Any, out_step: Any, out_apart: Any,
) -> Any:  # fmt: skip
    """Multiply a tile of two matrices.

    For r < ROWS, h < 2 and l < LANES, with the sum over k < depth,

        out[third + r out_step + h out_apart + l] = sum_k left[first + r depth + k] right[second + k step + h apart + l]

    Parameters
    ----------
    context : Any
        Numba's typing context.
    left, right : Any
        Factors, flat, float32.
    first, second : Any
        Offset of the factors, int64.
    step : Any
        Distance of the rows of `right`, int64.
    apart : Any
        Distance of the two blocks of columns of `right`, int64.
    depth : Any
        Terms of each sum, at least 1, int64.
    out : Any
        Product, flat, float32; changed in place.
    third : Any
        Offset of the product, int64.
    out_step : Any
        Distance of its rows, int64.
    out_apart : Any
        Distance of its two blocks of columns, int64.

    Returns
    -------
    tuple
        Signature and code generator for `numba.extending.intrinsic`.
    """
    return _product(left, right, out, ROWS)


@intrinsic
@no_type_check
def tall_tile(
    context: Any, left: Any, first: Any, right: Any, second: Any, step: Any, apart: Any, depth: Any, out: Any,
    third: Any, out_step: Any, out_apart: Any,
) -> Any:  # fmt: skip
    """Multiply a tile of TALL in place of ROWS rows; see `tile`.

    Parameters
    ----------
    context, left, first, right, second, step, apart, depth, out, third, out_step, out_apart : Any
        See `tile`.

    Returns
    -------
    tuple
        Signature and code generator for `numba.extending.intrinsic`.
    """
    return _product(left, right, out, TALL)


def _product(left: Any, right: Any, out: Any, rows: int) -> Any:
    """Signature and code generator of a tile with so many rows."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return _built(context, builder, signature, given, rows)

    whole = numba.int64
    types = (left, whole, right, whole, whole, whole, whole, out, whole, whole, whole)
    return numba.void(*types), build


def _built(context: Any, builder: Any, signature: Any, given: Any, rows: int) -> Any:
    """The loop over the terms of a tile's sums."""
    data = [context.make_array(signature.args[i])(context, builder, given[i]).data for i in (0, 2, 7)]
    left, first, right, second, step, apart, depth, _, third, out_step, out_apart = given
    left = [builder.gep(data[0], [_at(builder, first, r, depth)]) for r in range(rows)]
    right = [builder.gep(data[1], [_at(builder, second, h, apart)]) for h in range(2)]
    before, loop, after = builder.block, builder.append_basic_block("depth"), None
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(depth.type)
    k.add_incoming(ir.Constant(k.type, 0), before)
    sums = [builder.phi(_VECTOR) for _ in range(2 * rows)]
    lots = [_load(builder, builder.gep(p, [builder.mul(k, step)])) for p in right]
    more = []
    for r in range(rows):
        factor = _spread(builder, builder.load(builder.gep(left[r], [k])))
        more += [_fma(builder, factor, lots[h], sums[2 * r + h]) for h in range(2)]
    for total, next_total in zip(sums, more, strict=True):
        total.add_incoming(ir.Constant(_VECTOR, [0.0] * LANES), before)
        total.add_incoming(next_total, loop)
    next_k = builder.add(k, ir.Constant(k.type, 1))
    k.add_incoming(next_k, loop)
    after = builder.append_basic_block("stored")
    builder.cbranch(builder.icmp_signed("<", next_k, depth), loop, after)
    builder.position_at_end(after)
    for i, total in enumerate(more):
        row = builder.gep(data[2], [_at(builder, third, i // 2, out_step)])
        place = builder.gep(row, [builder.mul(out_apart, ir.Constant(out_apart.type, i % 2))])
        builder.store(total, builder.bitcast(place, _VECTOR.as_pointer())).align = 4
    return context.get_dummy_value()


def _at(builder: Any, first: Any, times: int, step: Any) -> Any:
    return builder.add(first, builder.mul(step, ir.Constant(step.type, times)))


def _load(builder: Any, place: Any) -> Any:
    vector = builder.load(builder.bitcast(place, _VECTOR.as_pointer()))
    vector.align = 4
    return vector


def _spread(builder: Any, number: Any) -> Any:
    """A number in all lanes."""
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=_FAST), c, flags=_FAST)
