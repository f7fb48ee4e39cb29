"""Other programs, timed on the same particles with one thread each.

Each is run twice, on few and on more particles, and the difference of its processor times is reported, without the time
to start and to read references. The poses that it searches are its own choice; the command is in the row.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ralib import io
from ralib.benchmarks.engine import Case
from ralib.images.normalise import normalise_background
from ralib.io.relion_model import mirrored
from ralib.simulation.simulator import simulate_particles
from ralib.types import RalibError

SNR = 0.1
TIMEOUT_S = 900


@dataclass(frozen=True)
class Peer:
    """Another program.

    Attributes
    ----------
    name : str
        Its name.
    program : str
        Its executable.
    options : callable
        Options that give it a case.
    classes : callable or None
        Reads the classes (n,) it found.
    searches : str
        What it searches, in words.
    """

    name: str
    program: str
    options: Callable[[Case, str, str], list[str]]
    classes: Callable[[Path, Case], np.ndarray] | None
    searches: str


def _relion_options(case: Case, stack: str, out: str) -> list[str]:
    words = f"--i {stack}.star --o {out}/run --ref references.star --iter 1 --firstiter_cc --ini_high 4 "
    words += f"--particle_diameter {2 * case.outer_radius} --zero_mask --flatten_solvent --psi_step 12 "
    words += f"--offset_range {case.shift_range_px:g} --offset_step 2 --oversampling 1 --pad 1 --no_norm --no_scale "
    return [*words.split(), "--dont_check_norm", "--random_seed", "1", "--j", "1", "--verb", "0"]


def _relion_classes(out: Path, case: Case) -> np.ndarray:
    table: Any = io.read_star(out / "run_it001_data.star")["particles"]
    return (table["rlnClassNumber"].to_numpy(int) - 1) % case.references


def _sparx_options(case: Case, stack: str, out: str) -> list[str]:
    radius, reach = case.outer_radius, f"{case.shift_range_px:g}"
    return [f"{stack}.hdf", "references.hdf", out, f"--ou={radius}", f"--xr={reach}", f"--yr={reach}", "--ts=1",
            "--center=0", "--maxit=1"]  # fmt: skip


PEERS = (
    Peer("RELION", "relion_refine", _relion_options, _relion_classes,
         "one iteration by cross-correlation; mirrored references stand for mirrored particles; resolution 4 px; "
         "12 degrees and 2 px, then half of each around the best"),
    Peer("EMAN2/SPARX", "sxmref_ali2d.py", _sparx_options, None, "every angle of its rings, shifts 1 px"),
)  # fmt: skip


def installed_peers() -> list[Peer]:
    """Return the programs that are on the PATH."""
    return [peer for peer in PEERS if shutil.which(peer.program)]


def peer_row(peer: Peer, case: Case, folder: Path) -> dict[str, Any]:
    """Time a program on a case.

    Parameters
    ----------
    peer : Peer
        The program.
    case : Case
        The case.
    folder : Path
        Folder for its files.

    Returns
    -------
    dict
        A row: `other` in us a particle of the difference between two runs, or None with the reason where it failed.
    """
    few, many = particles = peer_sizes(case)
    truth = write_inputs(case, folder, particles)
    row: dict[str, Any] = {
        "case": f"{case.name}: {peer.name}",
        "ours": None,
        "other": None,
        "unit": "us a particle and iteration",
        "peer": peer.program,
        "command": [peer.program, *peer.options(case, str(many), "out")],
        "searches": peer.searches,
        "particles": many - few,
    }
    try:
        seconds = [run_peer(peer, case, folder, n) for n in particles]
    except RalibError as error:
        return row | {"parity": str(error)}
    row["other"] = 1e6 * (seconds[1] - seconds[0]) / (many - few)
    if peer.classes is None:
        return row | {"parity": "its classes were not read"}
    right = float(np.mean(peer.classes(folder / f"out{many}", case) == truth[:many]))
    return row | {"parity": f"{100 * right:.0f} % in their true class"}


def peer_sizes(case: Case) -> tuple[int, int]:
    """Return two numbers of particles with which slow programs end within a minute."""
    more = max(24, min(200, 4000 // case.references))
    return more // 4, more


def write_inputs(case: Case, folder: Path, particles: tuple[int, int]) -> np.ndarray:
    """Write the case's particles and references as MRC, STAR and HDF files of 1 A/px.

    Parameters
    ----------
    case : Case
        The case.
    folder : Path
        Folder of the files.
    particles : tuple of int
        Few and more particles.

    Returns
    -------
    ndarray of shape (n,)
        The true classes.
    """
    images, truth, references = simulate_particles(
        max(particles), case.box, n_views=case.references, n_references=case.references,
        shift_sd_px=case.shift_range_px / 2, snr=SNR, seed=3, ctf=False,
    )  # fmt: skip
    images = normalise_background(images, case.outer_radius)
    for n in particles:
        stack = folder / f"{n}.mrcs"
        io.write_mrcs(stack, images[:n], 1.0)
        io.write_particles_star(folder / f"{n}.star", io.open_particles(stack), project=folder)
        io.write_hdf(folder / f"{n}.hdf", images[:n], pixel_size_A=1.0)
    io.write_mrcs(folder / "references.mrcs", torch.cat([references, mirrored(references)]), 1.0)
    rows = "".join(f"{i + 1:06d}@references.mrcs\n" for i in range(2 * case.references))
    (folder / "references.star").write_text(f"data_\nloop_\n_rlnReferenceImage\n{rows}")
    io.write_hdf(folder / "references.hdf", references, pixel_size_A=1.0)
    return truth.poses.class_index.numpy()


def run_peer(peer: Peer, case: Case, folder: Path, n: int) -> float:
    """Run a program and return its processor time, s.

    Parameters
    ----------
    peer : Peer
        The program.
    case : Case
        The case.
    folder : Path
        Folder of its files.
    n : int
        Number of particles.

    Returns
    -------
    float
        Seconds.
    """
    out = folder / f"out{n}"
    if peer.program == "relion_refine":
        out.mkdir()  # SPARX makes its folder itself
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    before = _children_s()
    done = subprocess.run(
        [peer.program, *peer.options(case, str(n), out.name)],
        cwd=folder, env=os.environ | threads, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise RalibError(f"{peer.program} failed: {reason[-1] if reason else done.returncode}")
    return _children_s() - before


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
