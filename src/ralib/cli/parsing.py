"""Options of the alignment commands that are texts of their own: shift ranges, the kind of CTF, a user's function."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ralib.types import RalibError


def ctf_choice(ctf: bool, mode: str | None) -> str:
    """--CTF and --ctf MODE as one of off, wiener, flip."""
    if mode is None:
        return "wiener" if ctf else "off"
    if mode not in ("off", "wiener", "flip"):
        raise RalibError(f"--ctf {mode!r} is unknown: choose off, wiener or flip")
    if ctf and mode != "wiener":
        raise RalibError(f"--CTF and --ctf {mode} contradict each other: give one of them")
    return mode


def shift_ranges(xr: str, yr: str, ts: str) -> list[tuple[float, float, float]]:
    """(x range, y range, step) of each stage, from numbers separated by blanks or commas.

    As sxali2d: yr -1 stands for xr, and one number for yr or ts serves all stages.
    """
    x, y, step = (_numbers(name, text) for name, text in (("--xr", xr), ("--yr", yr), ("--ts", ts)))
    y = x if y == [-1.0] else y * len(x) if len(y) == 1 else y
    step = step * len(x) if len(step) == 1 else step
    if not len(x) == len(y) == len(step):
        raise RalibError(f"--xr has {len(x)} stages, --yr {len(y)}, --ts {len(step)}: give as many numbers for each")
    if min(*x, *y) < 0 or min(step) <= 0:
        raise RalibError(f"--xr {xr!r} and --yr {yr!r} must not be below 0, --ts {ts!r} must be above 0")
    return list(zip(x, y, step, strict=True))


def _numbers(name: str, text: str) -> list[float]:
    try:
        numbers = [float(t) for t in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if not numbers or not np.isfinite(numbers).all():
        raise RalibError(f"{name} {text!r} is no list of numbers: use e.g. {name} '2 1'")
    return numbers


def user_function(name: str) -> Any:
    """The callable of MODULE:CALLABLE, looked for in the current folder too; None for the built-in ref_ali2d."""
    if name == "ref_ali2d":
        return None
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise RalibError(f"--function {name!r}: use ref_ali2d, or MODULE:CALLABLE of a Python module")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise RalibError(f"--function {name!r} cannot be loaded: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(function):
        raise RalibError(f"--function {name!r} is not callable: name a function(average, mask, frc)")
    return function
