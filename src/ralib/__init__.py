"""Cryo-RAlib: 2D alignment, classification and averaging of cryo-EM particle images on GPUs and CPUs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ralib.versions import __version__ as __version__

if TYPE_CHECKING:
    from ralib.alignment.multi_reference import MultiReferenceAligner
    from ralib.alignment.reference_free import ReferenceFreeAligner
    from ralib.alignment.search import PoseSearch
    from ralib.classification.classifier import Classifier
    from ralib.conventions import compose, eman2_to_pose, invert, pose_to_eman2
    from ralib.images.ctf import ctf_2d
    from ralib.images.frc import frc
    from ralib.images.transform import rotate_shift, rotate_shift_average
    from ralib.io import open_images, open_particles, write_mrcs, write_params, write_particles_star
    from ralib.particles.preparation import prepare_particles
    from ralib.results.run_directory import load_run
    from ralib.simulation.simulator import simulate_particles
    from ralib.types import (
        ClassAverages,
        ClassificationResult,
        CtfParameters,
        Notice,
        ParticleSet,
        Poses,
        RalibError,
        RunResult,
    )

# Where each public name lives; imported when first asked for, so that `import ralib` costs nothing.
_MODULES = {
    "alignment.multi_reference": ["MultiReferenceAligner"],
    "alignment.reference_free": ["ReferenceFreeAligner"],
    "alignment.search": ["PoseSearch"],
    "classification.classifier": ["Classifier"],
    "conventions": ["compose", "eman2_to_pose", "invert", "pose_to_eman2"],
    "images.ctf": ["ctf_2d"],
    "images.frc": ["frc"],
    "images.transform": ["rotate_shift", "rotate_shift_average"],
    "io": ["open_images", "open_particles", "write_mrcs", "write_params", "write_particles_star"],
    "particles.preparation": ["prepare_particles"],
    "results.run_directory": ["load_run"],
    "simulation.simulator": ["simulate_particles"],
    "types": [
        *("ClassAverages", "ClassificationResult", "CtfParameters", "Notice"),
        *("ParticleSet", "Poses", "RalibError", "RunResult"),
    ],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

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
    "ClassificationResult",
    "Notice",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"ralib.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'ralib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
