"""EMAN2/SPARX CTF headers, the text E<defocus> <dfdiff> <dfang> <bfactor> <ampcont> <voltage> <cs> <apix> ...

Defocus and its difference are in micrometres, amplitude contrast in per cent. As in SPARX's ctf_img, defocus along the
direction a is defocus + dfdiff / 2 cos(2 (a - (135 - dfang))), so that defocus_u_A lies at 135 - dfang degrees. A phase
plate is encoded as an amplitude contrast beyond 100 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ralib.types import CtfParameters, CtfState

_PHASE_PLATE_CONTRAST = 0.1
STATE_ATTRIBUTE = "ralib_ctf_state"


def ctf_of_headers(headers: Sequence[Mapping[str, Any]]) -> CtfParameters | None:
    """Return the CTF of each particle from its header's attributes `ctf` and `ctf_applied`; None where none has one.

    Where only some have none, theirs is NaN, and the commands leave these out and name them. SPARX sets `ctf_applied`
    where it has multiplied an image by its CTF.
    """
    ctf = ctf_of_strings([h.get("ctf") for h in headers])
    return ctf if ctf is None else ctf.with_state(np.array([_state(h) for h in headers]))


def _state(header: Mapping[str, Any]) -> CtfState:
    own = header.get(STATE_ATTRIBUTE)
    if isinstance(own, int) and own in tuple(CtfState):
        return CtfState(own)
    applied = header.get("ctf_applied", 0)
    return CtfState.PREMULTIPLIED if isinstance(applied, int | float) and applied > 0 else CtfState.NONE


def state_header(state: int) -> dict[str, int]:
    """Return the attributes that record a `CtfState`: SPARX's, and ours, which distinguishes flipped phases.

    SPARX has no attribute for flipped phases; with `ctf_applied` it refuses to apply the CTF a second time.
    """
    return {"ctf_applied": int(state != CtfState.NONE)} | ({STATE_ATTRIBUTE: int(state)} if state else {})


def ctf_of_strings(headers: Sequence[Any]) -> CtfParameters | None:
    """Return the CTF of each particle from its header text, NaN where it has none; None where no particle has one."""
    parsed = [_numbers(h) for h in headers]
    if all(p is None for p in parsed):
        return None
    rows = [[np.nan] * 8 if p is None else p for p in parsed]
    defocus, difference, angle, bfactor, contrast, voltage, cs, _ = np.array(rows, dtype=np.float64).T
    amplitude, phase = zip(*(_contrast_and_phase(c) for c in contrast), strict=True)
    return CtfParameters(
        defocus_u_A=1e4 * (defocus + difference / 2),
        defocus_v_A=1e4 * (defocus - difference / 2),
        astigmatism_angle_deg=np.mod(135.0 - angle, 180.0),
        voltage_kV=voltage,
        spherical_aberration_mm=cs,
        amplitude_contrast=np.array(amplitude),
        phase_shift_deg=np.array(phase),
        bfactor_A2=bfactor,
    )


def ctf_pixel_sizes_A(headers: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the pixel size (n,) at which the CTF of each header was fitted, Angstrom; NaN where it is not there."""
    sizes = np.array([(_numbers(h.get("ctf")) or [0.0])[-1] for h in headers], dtype=np.float64)
    return np.where((sizes > 0) & (sizes < 1e3), sizes, np.nan)


def ctf_to_strings(ctf: CtfParameters, pixel_size_A: float) -> list[str]:
    """Return the header text of each particle, '' where it has no finite CTF.

    The phase shift is part of the amplitude contrast, as in EMAN2.

    Parameters
    ----------
    ctf : CtfParameters
        CTF parameters.
    pixel_size_A : float
        Pixel size, Angstrom.

    Returns
    -------
    list of str
        Header texts.
    """
    mean, difference = (ctf.defocus_u_A + ctf.defocus_v_A) / 2e4, (ctf.defocus_u_A - ctf.defocus_v_A) / 1e4
    angle = np.mod(135.0 - ctf.astigmatism_angle_deg, 180.0)
    finite = np.isfinite(ctf.amplitude_contrast) & np.isfinite(ctf.phase_shift_deg)
    both = zip(ctf.amplitude_contrast, ctf.phase_shift_deg, finite, strict=True)
    contrast = [_percent(a, p) if good else math.nan for a, p, good in both]
    columns = (mean, difference, angle, ctf.bfactor_A2, contrast, ctf.voltage_kV, ctf.spherical_aberration_mm)
    return [
        "E" + " ".join(f"{v:.10g}" for v in (*row, pixel_size_A)) + " 0 0 0" if np.isfinite(row).all() else ""
        for row in zip(*columns, strict=True)
    ]


def _numbers(header: Any) -> list[float] | None:
    """The first eight numbers of an EMAN2 CTF text, or None."""
    if not isinstance(header, str) or not header.startswith("E"):
        return None
    try:
        values = [float(v) for v in header[1:].split()[:8]]
    except ValueError:
        return None
    return values if len(values) == 8 and all(math.isfinite(v) for v in values) else None


def _contrast_and_phase(percent: float) -> tuple[float, float]:
    """(amplitude contrast as a fraction, phase shift in degrees)."""
    if not percent < 0 and percent <= 100:
        return percent / 100, 0.0
    if -100 <= percent < 0:  # a fraction is not negative: all of it is phase
        return 0.0, math.degrees(math.asin(percent / 100))
    if math.isnan(percent) or abs(percent) > 200:  # 2 - sin of a phase between 90 and 180 degrees is 2 at most
        return math.nan, 0.0
    folded = 2 - abs(percent) / 100
    phase = math.copysign(math.pi - math.asin(folded), percent)
    return _PHASE_PLATE_CONTRAST, math.degrees(phase - math.asin(_PHASE_PLATE_CONTRAST))


def _percent(amplitude_contrast: float, phase_shift_deg: float) -> float:
    """EMAN2's per cent for a total phase asin(amplitude contrast) + phase shift."""
    if phase_shift_deg == 0:
        return 100 * amplitude_contrast
    total = math.asin(max(-1.0, min(1.0, amplitude_contrast))) + math.radians(phase_shift_deg)
    total = math.remainder(total, 2 * math.pi)
    if abs(total) <= math.pi / 2:
        return 100 * math.sin(total)
    return math.copysign(100 * (2 - math.sin(abs(total))), total)
