"""run.json, written, read and checked: the kind of a run, its CTF correction, its search range.

Everything that shows or continues a run uses this module rather than the names of options. Records of earlier versions
and RELION's jobs, which lack some entries, are interpreted by what their options meant then.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ralib.io.class_averages import relion_iterations
from ralib.results.input_fingerprint import input_fingerprint
from ralib.types import CtfCorrection, ParticleSet, RalibError, RunResult
from ralib.versions import __version__, recorded_versions

_CTF_OF_OPTIONS = {
    "wiener": CtfCorrection.WIENER,
    "on": CtfCorrection.WIENER,
    "auto": CtfCorrection.WIENER,
    "flipped": CtfCorrection.WIENER,
    "flip": CtfCorrection.FLIP,
    True: CtfCorrection.WIENER,
}
"""What the options --CTF, --ctf-mode and --ctf meant in version 0.1, where the particles had a CTF."""

PARTICLE_FILES = ("particles.star", "particles.cs", "particles.hdf")
_LISTS_OF_DICTS = ("iterations", "classes", "warnings")
_DICTS = ("options", "input", "timings", "stability", "versions")


@dataclass(frozen=True)
class RunRecord:
    """What later steps need of a run.json.

    Attributes
    ----------
    kind : str
        'mref', 'reffree', 'classify', or 'relion'.
    finished : bool
        Whether the run came to its end.
    ctf : CtfCorrection
        What the run did about the CTF of its particles.
    search_range_px : float or None
        Range of the shifts from the box centre (classify) or the last pose (mref, reffree), pixels; None where unknown.
    """

    kind: str
    finished: bool
    ctf: CtfCorrection
    search_range_px: float | None


def new_record(
    kind: str,
    options: dict[str, Any],
    particles: ParticleSet,
    source: Path,
    *,
    command: list[str],
    device: str,
    ctf: CtfCorrection,
    search_range_px: float | None,
) -> dict[str, Any]:
    """Return the record of a run before the first iteration.

    Parameters
    ----------
    kind : str
        Name of the command.
    options : dict[str, Any]
        Its options.
    particles : ParticleSet
        The particles.
    source : Path
        The particle file.
    command : list[str]
        The command line.
    device : str
        Where it runs.
    ctf : CtfCorrection
        CTF correction.
    search_range_px : float or None
        Range of the shifts, pixels.

    Returns
    -------
    dict[str, Any]
        The record.
    """
    return {
        "program": "ralib",
        "version": __version__,
        "kind": kind,
        "state": "running",
        "command": command,
        "options": options,
        "ctf_correction": ctf.value,
        "search_range_px": search_range_px,
        "seed": options.get("seed"),
        "versions": recorded_versions(),
        "device": device,
        "input": {
            "path": str(source),
            "particles": len(particles),
            "box": particles.box,
            "pixel_size_A": particles.pixel_size_A,
            "fingerprint": input_fingerprint(particles),
        },
        "iterations": [],
        "classes": [],
        "warnings": [],
        "timings": {},
    }


def finished_record(
    record: dict[str, Any], result: RunResult, *, device: torch.device, began: float, write_s: float
) -> dict[str, Any]:
    """Return the record of a finished run, without the time its files will take.

    Parameters
    ----------
    record : dict[str, Any]
        The record before the first iteration.
    result : RunResult
        The result.
    device : torch.device
        Where it ran.
    began : float
        Time of its start by `time.perf_counter`, s.
    write_s : float
        Time spent on writing so far, s.

    Returns
    -------
    dict[str, Any]
        The record.
    """
    timings = {"read_s": 0.0, **record["timings"], **result.timings, "write_s": write_s}
    timings["total_s"] = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    memory = {"timings": timings, "peak_device_memory_bytes": peak}
    return record | {"state": "finished"} | result.record() | memory


def read_record(path: Path | str) -> dict[str, Any]:
    """Read run.json of a run's folder; raises RalibError in one line where it is missing or damaged."""
    file = Path(path) / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RalibError(f"{path} is not the folder of a ralib run: run.json: {error}") from error
    _check(record, file)
    assert isinstance(record, dict)
    return record


def particle_file(source: Path) -> Path:
    """Return the particles of a finished run's folder, or the file itself.

    Parameters
    ----------
    source : Path
        Folder or file.

    Returns
    -------
    Path
        The particle file.

    Raises
    ------
    RalibError
        If the run has not finished, as its files may be of two iterations.
    """
    folder, names = (source, PARTICLE_FILES) if source.is_dir() else (source.parent, (source.name,))
    if any(name in PARTICLE_FILES for name in names) and (folder / "run.json").is_file():
        check_finished(read_record(folder), folder)
    if not source.is_dir():
        return source
    for name in PARTICLE_FILES:
        if (source / name).is_file():
            return source / name
    others = relion_iterations(source)[-1:] or sorted(source.glob("*particles*.cs"))
    if others:
        raise RalibError(
            f"{source} is a job's folder without particles.star: name the particle file that is meant, such as "
            f"{others[-1]}"
        )
    raise RalibError(
        f"{source} holds no particles.star: give the folder of a finished run, or a particle or image file"
    )


def check_finished(record: Mapping[str, Any], folder: Path) -> None:
    """Raise RalibError if a run was stopped or killed, or still continues.

    Parameters
    ----------
    record : Mapping[str, Any]
        The run's record.
    folder : Path
        Its folder.
    """
    if record.get("state", "finished") != "finished":
        raise RalibError(f"{folder}: the run has not finished; go on with `resume`")


def run_record(raw: Mapping[str, Any], *, has_ctf: bool = True) -> RunRecord:
    """Return the typed record of a run.json.

    Parameters
    ----------
    raw : Mapping[str, Any]
        The record as read.
    has_ctf : bool, default True
        Whether the particles have CTF parameters.

    Returns
    -------
    RunRecord
        The record.
    """
    options = raw.get("options") or {}
    kind = "relion" if raw.get("program") == "RELION" else str(raw.get("kind", ""))
    return RunRecord(kind, raw.get("state") == "finished", _ctf(raw, options, has_ctf), _range_px(raw, options))


def _ctf(raw: Mapping[str, Any], options: Mapping[str, Any], has_ctf: bool) -> CtfCorrection:
    if not has_ctf:
        return CtfCorrection.NONE
    if (recorded := raw.get("ctf_correction")) in {c.value for c in CtfCorrection}:
        return CtfCorrection(recorded)
    if raw.get("program") == "RELION":
        return CtfCorrection.WIENER
    modes = (options.get(name) for name in ("ctf_mode", "ctf"))
    known = [_CTF_OF_OPTIONS[mode] for mode in modes if isinstance(mode, str | bool) and mode in _CTF_OF_OPTIONS]
    return known[0] if known else CtfCorrection.NONE


def _range_px(raw: Mapping[str, Any], options: Mapping[str, Any]) -> float | None:
    """The widest searched shift: as recorded, or the options' numbers, texts such as '4 2 1', or lists."""
    names = ("search_range_px", "shift_range_xy_px", "shift_range_px", "xr", "x_range", "search")
    for value in (raw.get("search_range_px"), *(options.get(name) for name in names)):
        if value is None:
            continue
        try:
            words = value.split() if isinstance(value, str) else np.ravel(value).tolist()
            reach = max(float(word) for word in words)
        except (TypeError, ValueError):
            continue
        return reach if 0 < reach < math.inf else None
    return None


def _check(record: Any, file: Path) -> None:
    """RalibError where a part of the record is not of the kind that ralib writes."""
    if not isinstance(record, dict):
        raise RalibError(f"{file} does not describe a ralib run")
    if too_large := _too_large(record):
        raise _damaged(file, too_large, "is larger than any number of a run")
    for name in _DICTS:
        if not isinstance(record.get(name) or {}, dict):
            raise _damaged(file, name, "must be a table of names and values")
    for name in _LISTS_OF_DICTS:
        rows = record.get(name) or []
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise _damaged(file, name, "must be a list of tables")
    rows = record.get("classes") or []
    for row in rows:
        whole = type(row.get("class")) is int and 1 <= row["class"] <= len(rows) and type(row.get("members", 0)) is int
        numbers = all(isinstance(row.get(k), int | float | None) for k in ("resolution_A", "resolution_px", "score"))
        if not whole or not numbers:
            raise _damaged(file, "classes", "holds a class whose numbers are none")
    size = (record.get("input") or {}).get("pixel_size_A")
    if size is not None and not (isinstance(size, int | float) and 1e-3 < size < 1e4):
        raise _damaged(file, "input.pixel_size_A", f"is {size!r} A")


def _too_large(value: Any, name: str = "") -> str:
    """Name of a whole number in the record that no computer's word holds; '' where there is none."""
    if isinstance(value, dict):
        return next((found for key, part in value.items() if (found := _too_large(part, str(key)))), "")
    if isinstance(value, list):
        return next((found for part in value if (found := _too_large(part, name))), "")
    return name or "a value" if isinstance(value, int) and abs(value) >= 1 << 63 else ""


def _damaged(file: Path, name: str, why: str) -> RalibError:
    return RalibError(f"{file} is damaged: {name!r} {why}; restore the file from a copy, or run again")


def ctf_correction(mode: str, particles: ParticleSet) -> CtfCorrection:
    """Return the CTF correction that an option's value ('auto', 'on', 'wiener', 'flip', 'flipped', 'off') means.

    Parameters
    ----------
    mode : str
        Value of the option.
    particles : ParticleSet
        The particles.

    Returns
    -------
    CtfCorrection
        The correction.
    """
    if mode == "off" or particles.ctf is None or particles.pixel_size_A is None:
        return CtfCorrection.NONE
    return CtfCorrection.FLIP if mode == "flip" else CtfCorrection.WIENER
