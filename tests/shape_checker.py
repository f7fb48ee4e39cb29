"""What jaxtyping's import hook calls on every function of ralib while tests run.

Functions whose signature names a shape, Float[Tensor, "b n n"], are checked by beartype: shapes and types, arguments
and results, one meaning for each letter within a call. Others stay as they are: at the public door they take
whatever they can convert, and say so themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_typed = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float
_SHAPE = re.compile(r"\b(Float|Float32|Float64|Int|Bool|Complex|Real|Num|Shaped)\[")


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its shapes checked at every call."""
    annotations = getattr(function, "__annotations__", {})
    return _typed(function) if any(_SHAPE.search(str(a)) for a in annotations.values()) else function
