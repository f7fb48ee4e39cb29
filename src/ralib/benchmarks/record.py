"""Results as files: what was measured, on which machine, with which versions, at which commit."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from ralib.versions import __version__, recorded_versions


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """Return the commit of the sources; where they are no checkout, that of RALIB_COMMIT."""
    if "RALIB_COMMIT" in os.environ:
        return os.environ["RALIB_COMMIT"]
    here = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def record(bench: str, device: torch.device, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Return a result as the files hold it.

    Parameters
    ----------
    bench : str
        Name of the benchmark.
    device : torch.device
        Where it ran.
    rows : list of dict
        Its rows.
    **more : Any
        Further entries.

    Returns
    -------
    dict
        The result.
    """
    versions = {"ralib": __version__} | recorded_versions()
    threads = torch.get_num_threads() if device.type == "cpu" else None
    head = {"bench": bench, "device": device_name(device), "threads": threads, "commit": commit(), "versions": versions}
    return head | more | {"rows": rows}


def write_record(folder: Path, result: dict[str, Any]) -> Path:
    """Write a result into a folder as <bench>-<device>.json.

    Parameters
    ----------
    folder : Path
        The folder.
    result : dict
        The result.

    Returns
    -------
    Path
        Path of the file.
    """
    threads = f"-{result['threads']}t" if result["threads"] else ""
    name = re.sub(r"[^a-z0-9]+", "-", f"{result['bench']}-{result['device']}".lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{threads}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
