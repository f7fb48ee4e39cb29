"""run.json, written, read and checked: what kind of run it was, what it did to the CTF, how far it searched.

Whoever shows or continues a run asks here, and guesses nothing from the names of options. Records of earlier versions
and RELION's jobs, which do not say it, are understood from what their options meant then.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ralib._version import __version__
from ralib.results.input_fingerprint import input_fingerprint
from ralib.types import CtfCorrection, ParticleSet, RalibError, RunResult

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

    kind              'mref', 'reffree', 'classify', or 'relion'
    finished          whether the run came to its end
    ctf               what the run did about the CTF of its particles
    search_range_px   how far from the box centre (classify) or the last pose (mref, reffree) shifts were searched; None
                      where the record does not say
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
    """run.json as it stands before the first iteration."""
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
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
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
    """run.json of a finished run, all but the time its files will take; `began`: when, by `time.perf_counter`."""
    timings = {"read_s": 0.0, **record["timings"], **result.timings, "write_s": write_s}
    timings["total_s"] = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    memory = {"timings": timings, "peak_device_memory_bytes": peak}
    return record | {"state": "finished"} | result.record() | memory


def read_record(path: Path | str) -> dict[str, Any]:
    """run.json of a run's folder; RalibError in one line where it is missing or damaged."""
    file = Path(path) / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RalibError(f"{path} is not the folder of a ralib run: run.json: {error}") from error
    _check(record, file)
    assert isinstance(record, dict)
    return record


def particle_file(source: Path) -> Path:
    """The particles of a finished run's folder, or the file itself; RalibError where they are of a run that has not
    finished, whose files may be of two iterations."""
    folder, names = (source, PARTICLE_FILES) if source.is_dir() else (source.parent, (source.name,))
    if any(name in PARTICLE_FILES for name in names) and (folder / "run.json").is_file():
        check_finished(read_record(folder), folder)
    if not source.is_dir():
        return source
    for name in PARTICLE_FILES:
        if (source / name).is_file():
            return source / name
    raise RalibError(
        f"{source} holds no particles.star: give the folder of a finished run, or a particle or image file"
    )


def check_finished(record: Mapping[str, Any], folder: Path) -> None:
    """RalibError where a run was stopped or killed, or goes on."""
    if record.get("state", "finished") != "finished":
        raise RalibError(f"{folder}: the run has not finished; go on with `resume`")


def run_record(raw: Mapping[str, Any], *, has_ctf: bool = True) -> RunRecord:
    """The typed record of run.json as it was read; `has_ctf`: whether the particles have CTF parameters."""
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
    for name in _DICTS:
        if not isinstance(record.get(name) or {}, dict):
            raise _damaged(file, name, "must be a table of names and values")
    for name in _LISTS_OF_DICTS:
        rows = record.get(name) or []
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise _damaged(file, name, "must be a list of tables")
    for row in record.get("classes") or []:
        whole = all(type(row.get(key, 0)) is int for key in ("class", "members"))
        numbers = all(isinstance(row.get(k), int | float | None) for k in ("resolution_A", "resolution_px", "score"))
        if not whole or not numbers:
            raise _damaged(file, "classes", "holds a class whose numbers are none")
    size = (record.get("input") or {}).get("pixel_size_A")
    if size is not None and not (isinstance(size, int | float) and 1e-3 < size < 1e4):
        raise _damaged(file, "input.pixel_size_A", f"is {size!r} A")


def _damaged(file: Path, name: str, why: str) -> RalibError:
    return RalibError(f"{file} is damaged: {name!r} {why}; restore the file from a copy, or run again")
