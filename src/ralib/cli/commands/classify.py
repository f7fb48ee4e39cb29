"""`ralib classify`: classes from scratch, and states within the classes of a finished run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ralib.cli.alignment_options import (
    Continue,
    Gpus,
    Outdir,
    Report,
    Stack,
)
from ralib.cli.classification_options import ClassificationSettings, classifier_of, given_references
from ralib.cli.parsing import length_px
from ralib.cli.settings import CLASSES, FILES, RUNNING, SEARCH, command
from ralib.types import ClassificationResult, Notice, ParticleSet, RalibError

if TYPE_CHECKING:
    import numpy as np

    from ralib.cli.session import RunSession


# fmt: off
@dataclass(frozen=True)
class ClassifySettings(ClassificationSettings):
    """Options of `ralib classify`."""

    essential = frozenset({"classes", "diameter", "resolution", "search", "ctf", "seed", "device", "pixel_size"})
    free_to_change = frozenset({"device", "gpu_devices", "stability"})
    reference_poses: Annotated[
        Path | None, typer.Option("--reference-poses", help="Poses for --skip-align to keep: .star, .cs, or a "
                                  "params.txt.", rich_help_panel=SEARCH)
    ] = None
    from_: Annotated[
        Path | None, typer.Option("--from", help="Only the particles of a selection (the report's selection.json) of "
                                  "the run STACK. Files by 'ralib select' are stacks by themselves.",
                                  rich_help_panel=FILES)
    ] = None
    split: Annotated[
        str | None, typer.Option("--split", help="Only members of these classes of the run STACK, e.g. 3 or 1,4-6: "
                                 "sorted into --classes new ones.", rich_help_panel=CLASSES)
    ] = None
    stability: Annotated[
        int, typer.Option("--stability", min=0, max=1000, help="Runs from other starts to compare with.",
                          rich_help_panel=RUNNING)
    ] = 0
    gpu_devices: Gpus = None

    def check(self) -> None:
        """Raise RalibError for options that contradict each other, or that do nothing here."""
        super().check()
        if self.reference_poses is not None and not self.skip_align:
            raise RalibError("--reference-poses is for --skip-align: otherwise every pose is searched")
        if self.split is not None and self.from_ is not None:
            raise RalibError("--split and --from both choose particles: give one of them")
# fmt: on


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "classify", classify)


def classify(
    context: typer.Context,
    stack: Stack,
    outdir: Outdir,
    settings: ClassifySettings,
    split_states: Annotated[
        str | None, typer.Option("--split-states", metavar="K|auto", help="Divide each class of the run STACK into "
                                 "structural states, where the data supports it.", rich_help_panel=CLASSES)
    ] = None,
    resume: Continue = False,
    report: Report = True,
) -> None:  # fmt: skip
    """Classes from scratch: particles in, class averages out, no references.

    Writes what mref writes, and particle_scores.txt with the scores of each particle; log.txt says of each class in
    words how good it is.
    """
    from ralib.cli.common import chosen_device
    from ralib.cli.session import RunSession
    from ralib.runtime.distributed import join, launched

    if split_states is not None:
        if launched() or settings.gpu_devices is not None:
            raise RalibError("--split-states runs as one process: leave torchrun and --gpu_devices out")
        split_states_of(stack, outdir, split_states, seed=settings.seed, device=settings.device)
        return
    settings.check()
    device, options = chosen_device(settings.device, settings.gpu_devices), settings.record()
    session = RunSession(
        "classify", stack, outdir, settings, device, options=options, resume=resume, report=report, began=context.obj,
        ranks=join(),
    )  # fmt: skip
    particles = chosen_particles(session, stack, settings)
    references = given_references(session, particles, settings)
    n_classes = options["classes"] = _class_count(session, settings, len(particles), references)
    expected = settings.plan.planned_iterations(n_classes)
    plan = f"{n_classes} classes in about {expected} iterations: start, thin, exchange, sharpen"
    if settings.search is not None:
        settings = replace(settings, search=length_px("--search", settings.search, particles.pixel_size_A))
    search_px = settings.search_range_px(particles.box)
    with session.running():
        begun = session.begin(particles, plan, ctf=settings.ctf_mode(), search_range_px=search_px, iterations=expected)
        classifier = classifier_of(session, settings, n_classes, settings.seed, references)
        result = classifier.fit(particles, observer=session, resume=begun).result_
        if settings.stability:
            result = _compared(session, settings, n_classes, references, result)
        session.write(result)


def chosen_particles(session: RunSession, stack: Path, o: ClassifySettings) -> ParticleSet:
    """Return the particles to classify: of the stack or of the run's folder, with the poses to keep, if any.

    Parameters
    ----------
    session : RunSession
        The session.
    stack : Path
        Stack or run.
    o : ClassifySettings
        Options.

    Returns
    -------
    ParticleSet
        The particles.
    """
    from ralib import io

    particles = session.opened(stack, datadir=o.datadir, pixel_size_A=o.pixel_size)
    if o.reference_poses is not None:
        particles = with_poses_of(particles, o.reference_poses)
    if o.split is not None or o.from_ is not None:
        particles = io.take(particles, _chosen_rows(particles, stack, o))
    session.accept(particles)
    return particles


def _class_count(session: RunSession, o: ClassifySettings, n_particles: int, references: dict[str, Any]) -> int:
    """--classes, or as many as there are references or the particles are enough for, and the line that says so."""
    from ralib.classification.schedule_settings import default_classes

    if references:
        n_classes = len(references["references"])
        session.say(f"classes: {n_classes}, as many as references")
        return n_classes
    if o.classes is not None:
        return o.classes
    n_classes = default_classes(n_particles)
    session.say(f"classes: {n_classes} for {n_particles} particles (--classes)")
    return n_classes


def _compared(
    session: RunSession,
    o: ClassifySettings,
    n_classes: int,
    references: dict[str, Any],
    result: ClassificationResult,
) -> ClassificationResult:
    """The result with what runs from other starts agree on."""
    from ralib.classification.validation import with_stability

    session.settle()
    others = []
    for i in range(1, o.stability + 1):
        session.say(f"stability: run {i} from another start")
        other = classifier_of(session, o, n_classes, o.seed + i, references)
        observer = session.other_run(f"stability {i} of {o.stability}")
        others.append(other.fit(session.particles, observer=observer).result_.poses)
    result = with_stability(result, others)
    share = 100 * result.stability["stable_particles"]
    session.say(f"stability: {share:.0f}% of the particles keep class mates and pose from other starts")
    return result


def _chosen_rows(particles: ParticleSet, stack: Path, o: ClassifySettings) -> np.ndarray:
    """Rows of the particles in the classes that --split or --from names."""
    from ralib.results.particle_scores import SCORES_FILE, read_particle_scores
    from ralib.results.run_record import read_record
    from ralib.results.selection import combine, selected_rows

    folder = stack if stack.is_dir() else stack.parent
    if particles.poses is None or not (folder / "run.json").is_file():
        raise RalibError(f"{stack} is no run: --split and --from choose from the folder of a finished run")
    figures = read_record(folder).get("classes") or []
    selection = combine(figures, file=o.from_, classes=o.split)
    scores = read_particle_scores(folder / SCORES_FILE, len(particles))
    rows = selected_rows(particles.poses, selection, scores)
    if len(rows) == 0:
        raise RalibError(f"{stack}: the classes chosen have no members")
    return rows


def with_poses_of(particles: ParticleSet, path: Path) -> ParticleSet:
    """Return particles with the poses of a particle file or a params.txt; those without a sound one are left out.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    path : Path
        The file.

    Returns
    -------
    ParticleSet
        The particles.
    """
    from ralib import io

    given = None if path.suffix == ".txt" else io.open_particles(path, require_images=False)
    poses = io.read_params(path) if given is None else given.poses
    if poses is None:
        raise RalibError(f"{path} holds no poses: give a file with rlnAnglePsi and rlnOriginX/YAngst, or a params.txt")
    if len(poses) != len(particles):
        raise RalibError(
            f"{path} has {len(poses)} poses for {len(particles)} particles: give the file that belongs to the stack"
        )
    particles = particles.replace(poses=poses)
    if given is None or given.usable is None:
        return particles
    what = f"{io.plausible.named(~given.usable)} left out: {path.name} has no pose for them that can be meant"
    return particles.leave_out(~given.usable, Notice(what=what, where="poses", remedy="correct them, if needed"))


def split_states_of(run: Path, out: Path, n_states: str, *, seed: int, device: str) -> None:
    """Divide the classes of a run, write the states, and print which classes were divided and why.

    Parameters
    ----------
    run : Path
        The run's folder.
    out : Path
        The new folder.
    n_states : str
        Number of states, or 'auto'.
    seed : int
        Of all random numbers.
    device : str
        Where to compute.
    """
    from ralib.analysis.states import MOST_STATES
    from ralib.analysis.states_of_run import split_run
    from ralib.cli.common import at_work, resolve_device, show_warnings

    if n_states != "auto" and not (n_states.isdecimal() and 2 <= int(n_states) <= MOST_STATES):
        raise RalibError(f"--split-states {n_states}: give 2 to {MOST_STATES}, or auto")
    asked = "auto" if n_states == "auto" else int(n_states)
    where = resolve_device(device)
    with at_work("looking for states"):
        record = split_run(run, out, asked, seed=seed, device=where, show=show_warnings)
    for figures in record["classes"]:
        count = len(figures["states"])
        why = f"{figures['components_above_noise']} components above the noise"
        if figures["tried"]:
            why += (
                f"; held-out gain {figures['gain']:.3f} +- {figures['gain_error']:.3f} a particle, over a line "
                f"{figures['gain_over_line']:.3f} +- {figures['gain_over_line_error']:.3f}, "
                f"{figures['separation']:.1f} sd apart"
            )
        shares = " and ".join(f"{share:.0%}" for share in figures["shares"])
        verdict = f"{count} states ({shares})" if count > 1 else "one state"
        typer.echo(f"class {figures['class']} ({figures['members']:,} members): {verdict}; {why}")
    typer.echo(f"wrote {out}")
