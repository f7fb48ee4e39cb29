"""Parsing of options that are texts: shift ranges, the CTF correction, a user's function."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ralib.types import RalibError

CTF_WORDS = {"on": "wiener", "none": "off"}
"""Older words for --ctf, whatever the command."""
CTF_HELP = "off; wiener: weigh by the CTF and divide by its power; flip: turn its phases only"


def ctf_word(mode: str, known: tuple[str, ...]) -> str:
    """A value of --ctf as one of the `known` words; the words that other commands or versions use are understood."""
    word = CTF_WORDS.get(mode, mode)
    if word not in known:
        raise RalibError(f"--ctf {mode!r} is unknown: choose {', '.join(known[:-1])} or {known[-1]}")
    return word


def ctf_choice(ctf: bool, mode: str | None) -> str:
    """Return --CTF and --ctf MODE as one of off, wiener, flip.

    Parameters
    ----------
    ctf : bool
        Whether --CTF is given.
    mode : str or None
        Value of --ctf, or None.

    Returns
    -------
    str
        The correction.
    """
    mode = None if mode is None else ctf_word(mode, ("off", "wiener", "flip"))
    if mode is None:
        return "wiener" if ctf else "off"
    if ctf and mode != "wiener":
        raise RalibError(f"--CTF and --ctf {mode} contradict each other: give one of them")
    return mode


SPARX_STAGES = "4 2 1 1", "2 1 0.5 0.25"
"""sxali2d's shift ranges and steps."""


def one_shift_range_px(box: int) -> int:
    """Return the shift range of multi-reference alignment around a particle's last centre: a twentieth of the box."""
    return max(2, round(box / 20))


def falling_shift_ranges_px(box: int) -> tuple[str, str]:
    """Return shift ranges and steps of reference-free alignment: sxali2d's for 64 px, wider for larger boxes."""
    reach = max(4, round(box / 16))
    ranges = (reach, reach / 2, max(1, reach / 4), 1)
    return " ".join(f"{x:g}" for x in ranges), " ".join(f"{min(2, x / 2):g}" for x in ranges[:3]) + " 0.25"


def default_classes(n_particles: int) -> int:
    """Return the number of classes for so many particles: one for each 100 up to 50, then for each 400 up to 100."""
    return max(1, min(n_particles // 100, 50), min(n_particles // 400, 100))


def shift_ranges(xr: str, yr: str | None, ts: str | None) -> list[tuple[float, float, float]]:
    """Parse the stages of a search from numbers separated by blanks or commas.

    As in sxali2d yr -1 stands for xr, and one number for yr or ts is used in all stages.

    Parameters
    ----------
    xr : str
        Ranges along x, pixels.
    yr : str or None
        Ranges along y, pixels; None is xr.
    ts : str or None
        Steps, pixels; None is half the range, between 0.25 and 2.

    Returns
    -------
    list[tuple[float, float, float]]
        (x range, y range, step) of each stage.

    Raises
    ------
    RalibError
        If they are not numbers, or differ in length.
    """
    x = _numbers("--xr", xr)
    y = [-1.0] if yr is None else _numbers("--yr", yr)
    step = [min(2.0, max(0.25, reach / 2)) for reach in x] if ts is None else _numbers("--ts", ts)
    y = x if y == [-1.0] else y * len(x) if len(y) == 1 else y
    step = step * len(x) if len(step) == 1 else step
    if not len(x) == len(y) == len(step):
        raise RalibError(f"--xr has {len(x)} stages, --yr {len(y)}, --ts {len(step)}: give as many numbers for each")
    if min(*x, *y) < 0 or min(step) <= 0:
        raise RalibError(f"--xr {xr!r} and --yr {yr or xr!r} must not be below 0, --ts {ts!r} must be above 0")
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
    """Return the callable of MODULE:CALLABLE, searched in the current folder too; None for the built-in ref_ali2d."""
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
