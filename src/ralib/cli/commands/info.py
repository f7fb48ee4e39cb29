"""`ralib info`: what is installed, what hardware there is, what will be used."""

from __future__ import annotations

import json
import os
import platform
from typing import Annotated, Any

import psutil
import torch
import typer

from ralib.cli.common import describe_device
from ralib.cli.terminal import on_screen
from ralib.versions import MISSING, __version__, library_versions

_LIBRARIES = (
    "torch",
    "triton",
    "numba",
    "numpy",
    "scipy",
    "pandas",
    "mrcfile",
    "starfile",
    "h5py",
    "scikit-learn",
    "typer",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("info")(info)


def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, devices, and what `--device auto` will use."""
    facts = gather()
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        shown = "; ".join(value) or "none" if isinstance(value, list) else shown
        typer.echo(on_screen(f"{name + ':':18}{shown}", 18))


def gather() -> dict[str, Any]:
    """Return versions, hardware and choices as plain values."""
    n_gpus = torch.cuda.device_count()
    gpus = [describe_device(torch.device("cuda", k)) for k in range(n_gpus)]
    memory = psutil.virtual_memory()
    versions = library_versions(_LIBRARIES)
    triton_used = n_gpus > 0 and versions["triton"] != MISSING
    return {
        "ralib": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "libraries": versions,
        "CUDA of PyTorch": torch.version.cuda or "none (a CPU build)",
        "GPUs": gpus,
        "CPU": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used",
        "memory": f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f} GiB",
        "--device auto": "cuda:0" if n_gpus else "cpu",
        "kernels": "Triton on the GPU, Numba on the CPU" if triton_used else "Numba on the CPU",
        "several GPUs": "NCCL" if n_gpus > 1 else "not here",
    }
