"""Options of ali2d: stages of shift ranges, and options that SPARX accepts but ignores, refused with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ralib.types import RalibError

RANDOM_METHODS = ("", "SHC", "SCF")


@dataclass(frozen=True)
class Stage:
    """One stage of the search.

    Attributes
    ----------
    range_xy_px : tuple of float
        Range along x and y, pixels.
    step_px : float
        Step, pixels.
    """

    range_xy_px: tuple[float, float]
    step_px: float


def stages_of(
    xr: str | float | Sequence[float], yr: str | float | Sequence[float], ts: str | float | Sequence[float]
) -> list[Stage]:
    """Return the stages of --xr, --yr and --ts.

    Parameters
    ----------
    xr, yr, ts : str, float or sequence of float
        Range along x and y and step of each stage: a text of numbers, a number or a sequence, pixels.

    Returns
    -------
    list of Stage
        The stages.

    Raises
    ------
    RalibError
        If they are not numbers, or differ in length.
    """
    x, y, step = _numbers("`xr`", xr), _numbers("`yr`", yr), _numbers("`ts`", ts)
    y = x if y == [-1.0] else y
    if not len(x) == len(y) == len(step):
        raise RalibError(f"`xr`, `yr`, `ts` have {len(x)}, {len(y)}, {len(step)} numbers: give one a stage to each")
    if min(x) < 0 or min(y) < 0 or min(step) <= 0:
        raise RalibError("`xr` and `yr` are not below 0 px, `ts` above 0 px")
    return [Stage((a, b), s) for a, b, s in zip(x, y, step, strict=True)]


def _numbers(option: str, given: str | float | Sequence[float]) -> list[float]:
    parts = given.replace(",", " ").split() if isinstance(given, str) else given
    try:
        numbers = [float(p) for p in parts] if not isinstance(parts, int | float) else [float(parts)]
    except ValueError:
        raise RalibError(f"{option} {given!r} is not a list of numbers: write it as '4 2 1'") from None
    if not numbers:
        raise RalibError(f"{option} has no number: give one a stage, as '4 2 1'")
    return numbers


def refuse_unused(nomirror: bool, dst: float, snr: float, mode: str, randomize: bool, random_method: str) -> None:
    """Refuse options that SPARX's ali2d accepts and ignores.

    Parameters
    ----------
    nomirror, dst, snr, mode, randomize, random_method : bool, float or str
        SPARX's options; see `ralib.sparx.ali2d.ali2d`.

    Raises
    ------
    RalibError
        With the reason.
    """
    if random_method not in RANDOM_METHODS:
        raise RalibError(f"`random_method` {random_method!r} is unknown: use SHC, SCF, or leave it out")
    if mode not in ("F", "H") or (mode == "H" and random_method != "SCF"):
        raise RalibError(
            f"`mode` {mode}: SPARX reads it in sxali2d --rotational only (half rings see no difference between "
            "0 and 180 degrees); use F, or `random_method` SCF, which takes half rings itself"
        )
    if randomize:
        raise RalibError(
            "`randomize`: SPARX reads it in sxali2d --rotational only, which it no longer has: leave it out"
        )
    if snr != 1.0:
        raise RalibError("`snr`: SPARX's ali2d only flips phases and reads no `snr`: leave it out")
    if dst < 0:
        raise RalibError(f"`dst` {dst:g} degrees cannot be below 0")
    if dst and (nomirror or random_method):
        raise RalibError("`dst`: SPARX drops it with `nomirror` and with `random_method`: leave one of them out")
    if nomirror and random_method:
        raise RalibError(f"`nomirror`: SPARX's {random_method} search always tries mirrors: leave one of them out")
