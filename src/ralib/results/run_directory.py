"""The folder of a run: one writer at a time, every file complete, readable again as the result.

class_averages.mrcs  class_averages_{half1,half2,filtered}.mrcs  frc.txt  classes.png  particles.star  params.txt
run.json  iterations/NNN/{averages.mrcs,frc.txt}  checkpoints/  relion_{data,model,optimiser,sampling}.star and, for
inputs of their kind, class_averages.hdf (EMAN2) and particles.cs (cryoSPARC)
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ralib import io
from ralib.io.text import read_numbers
from ralib.results.checkpoint import Checkpoint, newest, save
from ralib.results.contact_sheet import class_picture
from ralib.results.folder_lock import LOCK, is_file_of, lock_folder
from ralib.results.particle_scores import (
    SCORES_FILE,
    class_scores,
    read_particle_scores,
    relion_columns,
    star_columns,
    write_particle_scores,
)
from ralib.results.relion_files import write_relion_files
from ralib.results.run_record import check_finished, read_record
from ralib.types import ClassAverages, ClassificationResult, Notice, ParticleSet, Poses, RalibError, RunResult


class RunDirectory:
    """A run's folder, held by one process; a context manager.

    Parameters
    ----------
    path : Path or str
        The folder.
    resume : bool, default False
        Whether to continue the run in the folder rather than to make a new one.
    """

    def __init__(self, path: Path | str, *, resume: bool = False) -> None:
        """Make the folder, or open it to continue; raises RalibError where that is impossible.

        Parameters
        ----------
        path : Path or str
            The folder.
        resume : bool, default False
            Whether to continue the run in it.
        """
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise RalibError(f"{self.path} is a file: OUTDIR must be a new folder; choose another name")
        if resume and not self.path.is_dir():
            raise RalibError(f"`resume`: there is no run in {self.path}: leave `resume` out to begin one")
        self._made = not self.path.exists()
        self._begun = resume
        if not resume:
            self._refuse_full()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] | None = lock_folder(self.path)
        except OSError as error:
            raise RalibError(f"cannot write into {self.path}: {error.strerror}; choose another OUTDIR") from error
        if not resume:
            try:
                self._refuse_full()  # by one that began and ended in the meantime
            except RalibError:
                self.__exit__()
                raise
        if resume:
            for leftover in self.path.rglob(".tmp-*"):  # of a process that was killed while writing
                leftover.unlink(missing_ok=True)

    def _refuse_full(self) -> None:
        """RalibError where the folder holds anything; a lock that a killed process left is nothing."""
        if self.path.exists() and any(found.name != LOCK for found in self.path.iterdir()):
            hint = "go on with `resume`, or choose" if (self.path / "run.json").exists() else "choose"
            raise RalibError(f"{self.path} exists and is not empty: {hint} another OUTDIR")

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the folder; one in which nothing was ever written disappears again."""
        if self._lock is not None:
            (self.path / LOCK).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None
        if not self._begun:
            iterations = self.path / "iterations"
            for folder in (*iterations.glob("*"), iterations, self.path / "checkpoints"):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            if self._made:
                for name in ("run.yaml", "log.txt"):
                    (self.path / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.path.rmdir()

    def _check_there(self) -> None:
        """RalibError where the folder was taken away: made anew, it could be another run's by now."""
        if self._lock is not None and not is_file_of(self._lock, self.path / LOCK):
            raise RalibError(
                f"{self.path} has vanished, or {LOCK} in it, while the run was writing: bring it back and go on with "
                "`resume`, or start again"
            )

    # -- while it runs ----------------------------------------------------------------------------------------------

    def write_iteration(self, number: int, averages: ClassAverages) -> None:
        """Write iterations/NNN: the averages after an iteration and their FRC.

        Parameters
        ----------
        number : int
            Number of the iteration.
        averages : ClassAverages
            Class averages.
        """
        self._check_there()
        folder = self.path / "iterations" / f"{number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        io.write_mrcs(folder / "averages.mrcs", averages.images.cpu().numpy(), averages.pixel_size_A)
        write_frc(folder / "frc.txt", averages)
        self._begun = True

    def save_checkpoint(self, number: int, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Write a checkpoint.

        Parameters
        ----------
        number : int
            Number of the iteration.
        arrays : dict[str, ndarray]
            Arrays by name.
        meta : dict[str, Any]
            Plain values by name.
        """
        self._check_there()
        folder = self.path / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        save(folder, Checkpoint(number, arrays, meta))
        self._begun = True

    def newest_checkpoint(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None."""
        return newest(self.path / "checkpoints")

    def write_record(self, record: dict[str, Any]) -> None:
        """Write run.json; NaN becomes null."""
        io.write_json(self.path / "run.json", record)
        self._begun = True

    # -- at its end -------------------------------------------------------------------------------------------------

    def write_result(
        self, result: RunResult, particles: ParticleSet, record: dict[str, Any], *, hdf: bool = False
    ) -> None:
        """Write all files of a finished run, run.json last, so that 'finished' there means that all others are present.

        Parameters
        ----------
        result : RunResult
            The result.
        particles : ParticleSet
            The particles.
        record : dict[str, Any]
            The run's record.
        hdf : bool, default False
            Whether to write the averages for EMAN2 too.
        """
        self._check_there()
        self.write_record({**record, "state": "running"})  # it may say 'finished' of an earlier result
        averages, pixel = result.averages, result.averages.pixel_size_A
        io.write_mrcs(self.path / "class_averages.mrcs", averages.images.numpy(), pixel)
        if averages.half_images is not None:
            for half, images in enumerate(averages.half_images.numpy(), 1):
                io.write_mrcs(self.path / f"class_averages_half{half}.mrcs", images, pixel)
        if result.references is not None:
            filtered = result.references.numpy()
            io.write_mrcs(self.path / "class_averages_filtered.mrcs", filtered, pixel)
        write_frc(self.path / "frc.txt", averages)
        if result.particle_scores:
            index = result.poses.class_index.cpu().numpy()
            write_particle_scores(self.path / SCORES_FILE, index, result.particle_scores)
        n_classes = len(averages.images)
        scores = particle_scores(result, record)
        columns = star_columns(scores) | relion_columns(scores)
        io.write_particles_star(
            self.path / "particles.star", particles, result.poses, mirror_as_class=False, columns=columns
        )
        if particles.metadata.source_format == "cryosparc":
            io.write_particles_cs(
                self.path / "particles.cs", particles, result.poses, n_classes=n_classes, scores=scores
            )
        io.write_params(self.path / "params.txt", result.poses)
        self._write_relion(result, particles, record, scores.get("posterior"))
        if hdf:
            headers = io.class_headers(result.poses.class_index, n_classes)
            io.write_hdf(self.path / "class_averages.hdf", averages.images, headers, pixel_size_A=pixel)
        write_class_picture(self.path / "classes.png", averages)
        self.write_record(record)

    def _write_relion(
        self, result: RunResult, particles: ParticleSet, record: Mapping[str, Any], posterior: np.ndarray | None
    ) -> None:
        """relion_{data,model,optimiser,sampling}.star, by which RELION's own programs take the run up."""
        write_relion_files(
            self.path / "relion",
            result.averages,
            result.poses,
            particles,
            record,
            particle_file=self.path / "particles.star",
            average_file=self.path / "class_averages.mrcs",
            posterior=posterior,
        )


def particle_scores(result: RunResult, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the figures of each particle beside its pose; empty for runs that judge no particles.

    Parameters
    ----------
    result : RunResult
        The result.
    record : Mapping[str, Any]
        The run's record.

    Returns
    -------
    dict[str, ndarray] of shape (n,)
        Scores by name.
    """
    scores = {name: np.asarray(values, dtype=np.float64) for name, values in result.particle_scores.items()}
    by_class = class_scores(result.poses.class_index.cpu().numpy(), record.get("classes") or [])
    return scores if by_class is None else {**scores, "class_score": by_class}


def write_frc(path: Path, averages: ClassAverages) -> None:
    """Write FRC curves in columns: frequency (1/px), then class 1..K.

    Parameters
    ----------
    path : Path
        The file.
    averages : ClassAverages
        Class averages.
    """
    if averages.frc is None:
        return
    curves = averages.frc.double().cpu().numpy()
    frequency = np.arange(curves.shape[1]) / averages.images.shape[-1]
    header = "# frequency_per_px " + " ".join(f"class_{k + 1}" for k in range(len(curves)))
    rows = (" ".join(f"{v:.6f}" for v in row) for row in np.column_stack([frequency, curves.T]))
    io.write_text(path, "\n".join([header, *rows]) + "\n")


def read_frc(path: Path) -> np.ndarray:
    """Read the curves (k, rings) of a file by `write_frc`."""
    return read_numbers(path, "table of FRC curves")[:, 1:].T


def write_class_picture(path: Path, averages: ClassAverages) -> None:
    """Write the averages as one PNG, the largest class first, each with its number and members.

    Parameters
    ----------
    path : Path
        The file.
    averages : ClassAverages
        Class averages.
    """
    with io.atomic_path(path) as temporary:
        class_picture(averages).save(temporary, format="PNG", compress_level=3)


def load_run(path: Path | str, *, datadir: Path | str | None = None) -> RunResult:
    """Read a finished run.

    Parameters
    ----------
    path : Path or str
        The run's folder.
    datadir : Path or str, optional
        Folder of the image files, if they are not where the particle file says.

    Returns
    -------
    RunResult
        The result.

    Raises
    ------
    RalibError
        With the file that is missing or wrong.
    """
    path = Path(path)
    record = read_record(path)
    check_finished(record, path)
    pixel = record["input"].get("pixel_size_A")
    images = torch.from_numpy(io.open_images(path / "class_averages.mrcs"))
    poses = run_poses(path, len(images), datadir=datadir)
    halves = [path / f"class_averages_half{h}.mrcs" for h in (1, 2)]
    averages = ClassAverages(
        images=images,
        members=torch.bincount(poses.class_index[poses.class_index >= 0], minlength=len(images)),
        half_images=torch.stack([torch.from_numpy(io.open_images(h)) for h in halves])
        if all(h.is_file() for h in halves)
        else None,
        frc=torch.from_numpy(read_frc(path / "frc.txt")).float() if (path / "frc.txt").is_file() else None,
        pixel_size_A=pixel,
    )
    filtered = path / "class_averages_filtered.mrcs"
    given: dict[str, Any] = {
        "iterations": record["iterations"],
        "options": record["options"],
        "warnings": [Notice.of_record(item) for item in record["warnings"]],
        "classes": record.get("classes", []),
        "references": torch.from_numpy(io.open_images(filtered)) if filtered.is_file() else None,
        "bad_particles": [i - 1 for i in record.get("bad_particles", [])],
        "timings": record.get("timings", {}),
        "particle_scores": read_particle_scores(path / SCORES_FILE, len(poses)),
        "log": record.get("log", []),
    }
    if record["kind"] != "classify":
        return RunResult(record["kind"], poses, averages, **given)
    judged = {name: record[name] for name in ("stability", "diameter_A") if name in record}
    return ClassificationResult(record["kind"], poses, averages, **given, **judged)


def run_poses(path: Path, n_classes: int, *, datadir: Path | str | None = None) -> Poses:
    """Read the poses in a run's particles.star; the images may be missing.

    Parameters
    ----------
    path : Path
        The run's folder.
    n_classes : int
        Number of classes.
    datadir : Path or str, optional
        Folder of the image files.

    Returns
    -------
    Poses
        Poses.
    """
    particles = io.open_particles(path / "particles.star", datadir=datadir, require_images=False)
    if particles.poses is None:
        raise RalibError(f"{path / 'particles.star'} holds no poses: it is not the file ralib wrote")
    highest = int(particles.poses.class_index.max()) if len(particles) else 0
    if highest >= n_classes:
        raise RalibError(f"{path / 'particles.star'} names class {highest + 1} of {n_classes}: it was changed")
    return particles.poses
