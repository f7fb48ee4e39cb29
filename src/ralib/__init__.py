"""Cryo-RAlib: 2D alignment, classification and averaging of cryo-EM particle images on GPUs and CPUs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ralib.classify import Classifier
    from ralib.conventions import compose, eman2_to_pose, invert, pose_to_eman2
    from ralib.ctf import ctf_2d
    from ralib.io import open_images, open_particles, write_mrcs, write_params, write_particles_star
    from ralib.metrics import frc
    from ralib.multireference import MultiReferenceAligner
    from ralib.prepare import prepare_particles
    from ralib.referencefree import ReferenceFreeAligner
    from ralib.rotate import rotate_shift, rotate_shift_average
    from ralib.rundir import load_run
    from ralib.search import PoseSearch
    from ralib.simulate import simulate_particles
    from ralib.types import ClassAverages, CtfParameters, ParticleSet, Poses, RalibError, RunResult

# Where each public name lives; imported when first asked for, so that `import ralib` costs nothing.
_HOMES = {
    "classify": ["Classifier"],
    "conventions": ["compose", "eman2_to_pose", "invert", "pose_to_eman2"],
    "ctf": ["ctf_2d"],
    "io": ["open_images", "open_particles", "write_mrcs", "write_params", "write_particles_star"],
    "metrics": ["frc"],
    "multireference": ["MultiReferenceAligner"],
    "prepare": ["prepare_particles"],
    "referencefree": ["ReferenceFreeAligner"],
    "rotate": ["rotate_shift", "rotate_shift_average"],
    "rundir": ["load_run"],
    "search": ["PoseSearch"],
    "simulate": ["simulate_particles"],
    "types": ["ClassAverages", "CtfParameters", "ParticleSet", "Poses", "RalibError", "RunResult"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - by subject
    "open_particles",
    "open_images",
    "write_mrcs",
    "write_params",
    "write_particles_star",
    "MultiReferenceAligner",
    "ReferenceFreeAligner",
    "Classifier",
    "PoseSearch",
    "rotate_shift",
    "rotate_shift_average",
    "prepare_particles",
    "simulate_particles",
    "ctf_2d",
    "frc",
    "load_run",
    "compose",
    "invert",
    "eman2_to_pose",
    "pose_to_eman2",
    "ClassAverages",
    "CtfParameters",
    "ParticleSet",
    "Poses",
    "RalibError",
    "RunResult",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"ralib.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'ralib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
