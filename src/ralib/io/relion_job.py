"""The files of a RELION Class2D job beside particles and model: the optimiser and the sampling.

RELION's Subset selection and relion_class_ranker start from the optimiser file, which names the three others. Its many
other fields describe the state of RELION's own algorithm; those with a meaning here are filled, the rest have the
values of a finished 2D classification of RELION 3.1, 4 and 5, all of which read the file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from ralib.io.atomic import PathLike, atomic_path
from ralib.io.paths import name_for_project
from ralib.io.star import write_star

_NEVER = -1.0
_NO_ACCURACY = 999.0


def write_optimiser_star(
    path: PathLike,
    *,
    root: PathLike,
    model: PathLike,
    data: PathLike,
    sampling: PathLike,
    iteration: int,
    particle_diameter_A: float,
    ctf: bool,
    phase_flipped: bool = False,
    seed: int = 0,
    skip_align: bool = False,
    class_changes: float = 0.0,
    shift_changes_A: float = 0.0,
    project: Path | None = None,
) -> None:
    """Write data_optimiser_general of a finished 2D classification.

    Parameters
    ----------
    path : PathLike
        The file.
    root : PathLike
        Beginning of the job's file names, e.g. Class2D/job007/run.
    model : PathLike
        The model file.
    data : PathLike
        The particle file.
    sampling : PathLike
        The sampling file.
    iteration : int
        Number of the last iteration.
    particle_diameter_A : float
        Diameter of the mask, Angstrom.
    ctf : bool
        Whether the CTF was corrected.
    phase_flipped : bool, default False
        Whether phases were flipped before.
    seed : int, default 0
        Of all random numbers.
    skip_align : bool, default False
        Whether poses were kept.
    class_changes : float, default 0.0
        Fraction of the particles that changed their class in the last iteration.
    shift_changes_A : float, default 0.0
        Change of their origins in the last iteration, Angstrom.
    project : Path | None, optional
        Folder in which RELION runs, by default the current one; names inside it become relative.
    """

    def named(file: PathLike) -> str:
        return name_for_project(Path(file), project)

    values: dict[str, Any] = {
        "rlnOutputRootName": named(root), "rlnModelStarFile": named(model), "rlnExperimentalDataStarFile": named(data),
        "rlnOrientSamplingStarFile": named(sampling), "rlnCurrentIteration": iteration,
        "rlnNumberOfIterations": iteration, "rlnDoSplitRandomHalves": 0, "rlnJoinHalvesUntilThisResolution": _NEVER,
        "rlnAdaptiveOversampleOrder": 1, "rlnAdaptiveOversampleFraction": 0.999, "rlnRandomSeed": seed,
        "rlnParticleDiameter": float(particle_diameter_A), "rlnWidthMaskEdge": 5, "rlnDoZeroMask": 1,
        "rlnDoSolventFlattening": 1, "rlnDoSolventFscCorrection": 0, "rlnSolventMaskName": "None",
        "rlnSolventMask2Name": "None", "rlnBodyStarFile": "None", "rlnTauSpectrumName": "None",
        "rlnMaximumCoarseImageSize": -1, "rlnHighresLimitExpectation": _NEVER, "rlnLowresLimitExpectation": _NEVER,
        "rlnIncrementImageSize": 10, "rlnDoMapEstimation": 1, "rlnDoFastSubsetOptimisation": 0,
        "rlnDoExternalReconstruct": 0, "rlnDoGradientRefine": 0, "rlnDoStochasticGradientDescent": 0,
        "rlnDoStochasticEM": 0, "rlnSgdInitialIterations": 50, "rlnSgdFinalIterations": 50,
        "rlnSgdInBetweenIterations": 200, "rlnSgdInitialIterationsFraction": 0.3, "rlnSgdFinalIterationsFraction": 0.2,
        "rlnSgdInitialResolution": 35.0, "rlnSgdFinalResolution": 15.0, "rlnSgdInitialSubsetSize": 100,
        "rlnSgdFinalSubsetSize": 500, "rlnSgdMuFactor": 0.0, "rlnSgdSigma2FudgeInitial": 8.0,
        "rlnSgdSigma2FudgeHalflife": -1, "rlnSgdSkipAnneal": 0, "rlnSgdSubsetSize": -1, "rlnSgdWriteEverySubset": 1,
        "rlnSgdStepsize": 0.5, "rlnDoAutoRefine": 0, "rlnAutoLocalSearchesHealpixOrder": 4,
        "rlnNumberOfIterWithoutResolutionGain": 0, "rlnBestResolutionThusFar": 0.01,
        "rlnNumberOfIterWithoutChangingAssignments": 0, "rlnDoSkipAlign": int(skip_align), "rlnDoSkipRotate": 0,
        "rlnOverallAccuracyRotations": _NO_ACCURACY, "rlnOverallAccuracyTranslationsAngst": _NO_ACCURACY,
        "rlnChangesOptimalOrientations": 0.0, "rlnChangesOptimalOffsets": shift_changes_A,
        "rlnChangesOptimalClasses": class_changes, "rlnSmallestChangesOrientations": 0.0,
        "rlnSmallestChangesOffsets": shift_changes_A, "rlnSmallestChangesClasses": int(100 * class_changes),
        "rlnLocalSymmetryFile": "None", "rlnDoHelicalRefine": 0, "rlnIgnoreHelicalSymmetry": 0,
        "rlnFourierMask": "None", "rlnHelicalTwistInitial": 0.0, "rlnHelicalRiseInitial": 0.0,
        "rlnHelicalCentralProportion": 0.3, "rlnNrHelicalNStart": 1, "rlnHelicalMaskTubeInnerDiameter": _NEVER,
        "rlnHelicalMaskTubeOuterDiameter": _NEVER, "rlnHelicalSymmetryLocalRefinement": 0,
        "rlnHelicalSigmaDistance": _NEVER, "rlnHelicalKeepTiltPriorFixed": 0, "rlnHasConverged": 1,
        "rlnHasHighFscAtResolLimit": 0, "rlnHasLargeSizeIncreaseIterationsAgo": 0, "rlnDoCorrectNorm": 1,
        "rlnDoCorrectScale": 1, "rlnDoCorrectCtf": int(ctf), "rlnDoIgnoreCtfUntilFirstPeak": 0,
        "rlnCtfDataArePhaseFlipped": int(phase_flipped), "rlnDoOnlyFlipCtfPhases": 0,
        "rlnRefsAreCtfCorrected": int(ctf), "rlnFixSigmaNoiseEstimates": 0, "rlnFixSigmaOffsetEstimates": 0,
        "rlnMaxNumberOfPooledParticles": 30,
    }  # fmt: skip
    write_star(path, {"optimiser_general": _texts(values)})


def write_sampling_star(path: PathLike, *, psi_step_deg: float, offset_range_A: float, offset_step_A: float) -> None:
    """Write data_sampling_general: in-plane angles and shifts, as RELION would search them if it continues.

    Parameters
    ----------
    path : PathLike
        The file.
    psi_step_deg : float
        Step of psi, degrees.
    offset_range_A : float
        Range of the shifts, Angstrom.
    offset_step_A : float
        Step of the shifts, Angstrom.
    """
    values = {
        "rlnIs3DSampling": 0, "rlnIs3DTranslationalSampling": 0, "rlnHealpixOrder": 2, "rlnSymmetryGroup": "C1",
        "rlnTiltAngleLimit": -91.0, "rlnPsiStep": psi_step_deg, "rlnOffsetRange": offset_range_A,
        "rlnOffsetStep": offset_step_A, "rlnHelicalOffsetStep": _NEVER, "rlnSamplingPerturbInstance": 0.0,
        "rlnSamplingPerturbFactor": 0.5, "rlnHealpixOrderOriginal": 2, "rlnPsiStepOriginal": psi_step_deg,
        "rlnOffsetRangeOriginal": offset_range_A, "rlnOffsetStepOriginal": offset_step_A,
    }  # fmt: skip
    write_star(path, {"sampling_general": _texts(values)})


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {name: f"{v:.6f}" if isinstance(v, float) else str(v) for name, v in values.items()}


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name: a relative link, or a copy where the file system has no links.

    Parameters
    ----------
    source : Path
        The file.
    target : Path
        Its second name.
    """
    with contextlib.suppress(FileNotFoundError):
        target.unlink()
    try:
        target.symlink_to(os.path.relpath(source, target.parent))
    except OSError:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
