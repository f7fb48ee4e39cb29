"""Checks of options that several estimators have."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from ralib.types.notices import RalibError


def check_whole_number(option: str, value: Any, least: int) -> None:
    """Check an option that counts something, or seeds random numbers.

    Parameters
    ----------
    option : str
        Name of the option, for errors.
    value : Any
        Its value.
    least : int
        The smallest value allowed.

    Raises
    ------
    RalibError
        If it is not a whole number of at least `least`.
    """
    if not isinstance(value, Integral) or int(value) < least:
        raise RalibError(f"{value!r} is out of range: give `{option}` {least} or more, as a whole number")
