"""The data types that all folders share: poses, CTF parameters, particle sets, class averages, results, errors."""

from ralib.types.checks import check_whole_number
from ralib.types.ctf import (
    CtfCorrection,
    CtfParameters,
    CtfState,
)
from ralib.types.notices import (
    Notice,
    RalibError,
)
from ralib.types.particle_set import (
    ArraySource,
    ChosenImages,
    ImageSource,
    Metadata,
    ParticleSet,
    as_particles,
    chosen_rows,
)
from ralib.types.poses import (
    Poses,
)
from ralib.types.results import (
    ClassAverages,
    ClassificationResult,
    RunResult,
)

__all__ = [
    "ArraySource",
    "ChosenImages",
    "ClassAverages",
    "ClassificationResult",
    "CtfCorrection",
    "CtfParameters",
    "CtfState",
    "ImageSource",
    "Metadata",
    "Notice",
    "ParticleSet",
    "Poses",
    "RalibError",
    "RunResult",
    "as_particles",
    "check_whole_number",
    "chosen_rows",
]
