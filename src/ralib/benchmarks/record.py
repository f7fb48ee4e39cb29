"""Results as files: what was measured, on which machine, with which versions, at which commit."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ralib._version import __version__


def device_name(device: torch.device) -> str:
    """The card's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """The commit these sources are at; RALIB_COMMIT says it where they are no checkout."""
    if "RALIB_COMMIT" in os.environ:
        return os.environ["RALIB_COMMIT"]
    here = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def record(bench: str, device: torch.device, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A result as the files hold it."""
    versions = {"ralib": __version__, "python": platform.python_version()}
    versions |= {"torch": torch.__version__, "numpy": np.__version__}
    threads = torch.get_num_threads() if device.type == "cpu" else None
    head = {"bench": bench, "device": device_name(device), "threads": threads, "commit": commit(), "versions": versions}
    return head | more | {"rows": rows}


def write_record(folder: Path, result: dict[str, Any]) -> Path:
    """Write bench/results-like <bench>-<device>.json into a folder; returns its path."""
    threads = f"-{result['threads']}t" if result["threads"] else ""
    name = re.sub(r"[^a-z0-9]+", "-", f"{result['bench']}-{result['device']}".lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{threads}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
