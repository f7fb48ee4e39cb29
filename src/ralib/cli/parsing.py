"""Parsing of options that are texts: lengths with a unit, shift ranges, the CTF correction, a user's function."""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ralib.types import RalibError

LENGTH_UNITS = "px, or with a unit: 12px, 30A"
"""For the help of options that `length` parses."""

CTF_SYNONYMS = {"on": "wiener", "none": "off"}
"""Older values of --ctf, of all commands."""


def completed(*words: str) -> Callable[[str], list[str]]:
    """Return what the shell's completion asks for the values of an option: those of `words` that begin as typed."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def known_ctf_mode(mode: str, known: tuple[str, ...]) -> str:
    """Return a value of --ctf as one of the `known` modes; values of other commands and versions are accepted."""
    chosen = CTF_SYNONYMS.get(mode, mode)
    if chosen not in known:
        raise RalibError(f"--ctf {mode!r} is unknown: choose {', '.join(known[:-1])} or {known[-1]}")
    return chosen


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
    mode = None if mode is None else known_ctf_mode(mode, ("off", "wiener", "flip"))
    if mode is None:
        return "wiener" if ctf else "off"
    if ctf and mode != "wiener":
        raise RalibError(f"--CTF and --ctf {mode} contradict each other: give one of them")
    return mode


def length(text: Any) -> float | str:
    """Parse a length of the command line: pixels as a number, Angstrom as text that `length_px` turns into pixels.

    Parameters
    ----------
    text : str or float
        '12', '12px' or '30A'.

    Returns
    -------
    float or str
        12.0, 12.0 or '30A'.

    Raises
    ------
    ValueError
        If it is no length.
    """
    number, unit = _number_and_unit(str(text))
    return f"{number:g}A" if unit == "A" else int(number) if number.is_integer() else number


def length_px(option: str, given: float | str, pixel_size_A: float | None, *, source: str = "--pixel-size") -> float:
    """Return a length in pixels.

    Parameters
    ----------
    option : str
        Name of the option, for messages.
    given : float or str
        Its value; a number is in pixels, text may have the unit px or A.
    pixel_size_A : float or None
        Pixel size, Angstrom.
    source : str, default '--pixel-size'
        Option that gives the pixel size where no file does, for messages.

    Returns
    -------
    float
        Pixels.

    Raises
    ------
    RalibError
        If it is no length, or one in Angstrom without a pixel size.
    """
    try:
        number, unit = _number_and_unit(str(given))
    except ValueError as error:
        raise RalibError(
            f"{option} {given!r} is no length: give pixels ({option} 12) or Angstrom ({option} 30A)"
        ) from error
    if unit != "A":
        return number
    if pixel_size_A is None:
        raise RalibError(f"{option} {given} is in A, and no file says the pixel size: give it with {source}")
    return number / pixel_size_A


def _number_and_unit(text: str) -> tuple[float, str]:
    """A number and its unit, 'px' or 'A'."""
    found = re.fullmatch(r"(?P<number>[-+\d.eE]+)\s*(?P<unit>px|A|Å|)", text.strip())
    number = float(found["number"]) if found else math.nan
    if found is None or not math.isfinite(number):
        raise ValueError(f"{text!r} is no length: give pixels, or a number and px or A")
    return number, "A" if found["unit"] in ("A", "Å") else "px"


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


def shift_ranges(
    xr: str, yr: str | None, ts: str | None, pixel_size_A: float | None = None
) -> list[tuple[float, float, float]]:
    """Parse the stages of a search from numbers separated by blanks or commas.

    As in sxali2d yr -1 stands for xr, and one number for yr or ts is used in all stages.

    Parameters
    ----------
    xr : str
        Ranges along x, each in pixels, or with a unit ('4', '4px', '10A').
    yr : str or None
        Ranges along y; None is xr.
    ts : str or None
        Steps; None is half the range, between 0.25 and 2 px.
    pixel_size_A : float or None, optional
        Pixel size, Angstrom.

    Returns
    -------
    list[tuple[float, float, float]]
        (x range, y range, step) of each stage, pixels.

    Raises
    ------
    RalibError
        If they are not numbers, or differ in length.
    """
    x = _lengths_px("--xr", xr, pixel_size_A)
    y = [-1.0] if yr is None else _lengths_px("--yr", yr, pixel_size_A)
    step = [min(2.0, max(0.25, reach / 2)) for reach in x] if ts is None else _lengths_px("--ts", ts, pixel_size_A)
    y = x if y == [-1.0] else y * len(x) if len(y) == 1 else y
    step = step * len(x) if len(step) == 1 else step
    if not len(x) == len(y) == len(step):
        raise RalibError(f"--xr has {len(x)} stages, --yr {len(y)}, --ts {len(step)}: give as many numbers for each")
    if min(*x, *y) < 0 or min(step) <= 0:
        raise RalibError(f"--xr {xr!r} and --yr {yr or xr!r} must not be below 0, --ts {ts!r} must be above 0")
    return list(zip(x, y, step, strict=True))


def _lengths_px(option: str, text: str, pixel_size_A: float | None) -> list[float]:
    words = re.sub(r"\s+(?=(?:px|A|Å)\b)", "", text.replace(",", " ")).split()
    if not words:
        raise RalibError(f"{option} {text!r} holds no number: use e.g. {option} '2 1'")
    return [length_px(option, word, pixel_size_A) for word in words]


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
