"""Tables of text by the column: numbers become digits for all rows at once, as a matrix of bytes.

Of a million particles, Python's own formatting of two dozen columns takes as long as their classification on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ralib.io.text import ERRORS

LARGEST = 1e9
"""Numbers below it have six decimals exactly in double precision."""
_BLANK, _POINT, _ZERO, _MINUS = b" .0-"
_MICRO = 1e6


def integers(values: np.ndarray, width: int = 12) -> np.ndarray:
    """Format whole numbers as `%12d` does.

    Parameters
    ----------
    values : ndarray of shape (n,)
        Whole numbers.
    width : int, default 12
        Least width.

    Returns
    -------
    ndarray of shape (n, w)
        Bytes.
    """
    values = values.astype(np.int64)
    return _signed(_digits(np.abs(values)), values < 0, 1, width)


def has_six_decimals(values: np.ndarray) -> bool:
    """Return whether six decimals say all of numbers (n,), float64, so that `decimals` can format them."""
    return bool((np.abs(values) < LARGEST).all() and (np.round(values, 6) == values).all())


def decimals(values: np.ndarray, width: int = 12) -> np.ndarray:
    """Format numbers as `%12.6f` does.

    Parameters
    ----------
    values : ndarray of shape (n,)
        Numbers, float64, nearer to 0 than LARGEST.
    width : int, default 12
        Least width.

    Returns
    -------
    ndarray of shape (n, w)
        Bytes.
    """
    digits = _digits(np.rint(np.abs(values) * _MICRO).astype(np.int64), least=7)
    point = np.full((len(values), 1), _POINT, np.uint8)
    return _signed(np.concatenate([digits[:, :-6], point, digits[:, -6:]], axis=1), np.signbit(values), 8, width)


def rounded(values: np.ndarray) -> np.ndarray:
    """Format numbers (n,), float64, with six decimals, whatever they are: bytes (n, w)."""
    near = np.round(values, 6)
    if has_six_decimals(near):
        return decimals(near, width=1)
    return texts([f"{value:.6f}" for value in values.tolist()])


def texts(values: Sequence[str]) -> np.ndarray:
    """Format text as it is, with blanks at its end.

    Parameters
    ----------
    values : sequence of str
        One text for each of n rows, without NUL.

    Returns
    -------
    ndarray of shape (n, w)
        Bytes, UTF-8.
    """
    if all(map(str.isascii, values)):
        packed = np.array(values, dtype="S")
    else:
        packed = np.array([value.encode(errors=ERRORS) for value in values])
    matrix = packed.view(np.uint8).reshape(len(values), packed.itemsize)
    return np.where(matrix == 0, _BLANK, matrix).astype(np.uint8)


def rows(columns: Sequence[np.ndarray]) -> str:
    """Return rows of text, a blank between columns (n, w) and a line's end after each row."""
    if not columns or not len(columns[0]):
        return ""
    between = np.full((len(columns[0]), 1), _BLANK, np.uint8)
    parts = [part for column in columns for part in (column, between)]
    parts[-1] = np.full_like(between, ord("\n"))
    return np.concatenate(parts, axis=1).tobytes().decode(errors=ERRORS)


def _digits(numbers: np.ndarray, least: int = 1) -> np.ndarray:
    """Decimal digits (n, w) of whole numbers (n,) from 0 on, blanks before them; at least some."""
    width = max(least, len(str(numbers.max(initial=0))))
    out = np.empty((width, len(numbers)), np.uint8)
    rest = numbers
    for place in range(width):
        above = rest // 10
        out[-1 - place] = rest - 10 * above + _ZERO
        if place >= least:
            out[-1 - place, rest == 0] = _BLANK
        rest = above
    return out.T


def _signed(digits: np.ndarray, negative: np.ndarray, least: int, width: int) -> np.ndarray:
    """Digits (n, w) with blanks before them up to a width, and a minus next to those of negative numbers.

    The last `least` bytes of a row are never blank.
    """
    n, taken = digits.shape
    out = np.full((n, max(width, taken + bool(negative.any()))), _BLANK, np.uint8)
    out[:, -taken:] = digits
    which = np.flatnonzero(negative)
    before = out.shape[1] - least - 1 - (out[which, :-least] != _BLANK).sum(1)
    out[which, before] = _MINUS
    return out
