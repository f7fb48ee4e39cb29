"""`ralib relion`: the command line of relion_refine's 2D classification, and the files of its Class2D job."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from ralib.cli.external_job import aborted_by, external_job
from ralib.types import RalibError

RUN_FOLDER = "ralib"
"""Where the run itself lies in the job's folder."""


@dataclass
class Job:
    """What the options ask for: ralib's own ones, and lines on those that were not needed."""

    stack: str | None = None
    root: str | None = None
    iteration: int = 25
    ctf: str = "off"
    threads: int | None = None
    control: Path | None = None
    optimiser: Path | None = None
    arguments: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _set(name: str, kind: Callable[[str], Any] = str) -> Callable[[Job, str, str], None]:
    def take(job: Job, option: str, value: str) -> None:
        try:
            setattr(job, name, kind(value))
        except ValueError as error:
            raise RalibError(f"{option} {value}: a number is needed") from error

    return take


def _count(name: str, least: int, most: int) -> Callable[[Job, str, str], None]:
    """A whole number between two."""

    def take(job: Job, option: str, value: str) -> None:
        if re.fullmatch(r"\+?[0-9]{1,9}", value) is None or not least <= int(value) <= most:
            raise RalibError(f"{option} {value}: give a whole number from {least} to {most}")
        setattr(job, name, int(value))

    return take


def _unless_default(ours: str) -> Callable[[Job, str, str], None]:
    """An option for which RELION's own default -1 stands for none."""

    def take(job: Job, option: str, value: str) -> None:
        if value in ("-1", "-1.0"):
            job.notes.append(f"{option} {value}: RELION's default, left to ralib")
        else:
            job.arguments += [ours, value]

    return take


def _as(ours: str) -> Callable[[Job, str, str], None]:
    def take(job: Job, option: str, value: str) -> None:
        job.arguments += [ours, value]

    return take


def _flag(*ours: str) -> Callable[[Job, str, str], None]:
    def take(job: Job, option: str, value: str) -> None:
        job.arguments += ours

    return take


def _unneeded(why: str) -> Callable[[Job, str, str], None]:
    def take(job: Job, option: str, value: str) -> None:
        job.notes.append(f"{option} {value}".strip() + f": not needed, {why}")

    return take


def _refused(why: str) -> Callable[[Job, str, str], None]:
    def take(job: Job, option: str, value: str) -> None:
        raise RalibError(f"{option}: {why}")

    return take


def _gpu(job: Job, option: str, value: str) -> None:
    """RELION's '0,1:2' lists GPUs of its processes; one process runs here, on the first of them."""
    numbers = re.findall(r"\d+", value)
    job.arguments += ["--device", f"cuda:{numbers[0]}" if numbers else "cuda"]
    if len(numbers) > 1:
        job.notes.append(f"{option} {value}: the run takes one GPU, cuda:{numbers[0]}")


def _references(job: Job, option: str, value: str) -> None:
    if value != "None":  # RELION's word for none
        job.arguments += ["--references", value]


def _continue(job: Job, option: str, value: str) -> None:
    """The run in the job's folder is what goes on; RELION's window names it by the job's optimiser file."""
    job.optimiser = Path(value) if value else None
    job.arguments.append("--continue")


def _phases(job: Job, option: str, value: str) -> None:
    job.ctf = "flipped"


def _ctf(job: Job, option: str, value: str) -> None:
    job.ctf = "on" if job.ctf == "off" else job.ctf


_THREE_D = _refused("this is 3D refinement; ralib relion does what relion_refine does in 2D classification")
_HELIX = _refused("helical segments are not classified here: extract them as single particles")
_DISC = _unneeded("images are read ahead in the background and kept in memory where they fit")
_OWN_STEPS = _unneeded("the schedule sets its own search steps")
_ALWAYS = _unneeded("this is always done")
_NEVER_OFF = _refused("this belongs to the model, which has no form without; leave it out")
_WHOLE_CIRCLE = _refused("angles are searched over the whole circle; --skip_align keeps them")
_ESTIMATED = _unneeded("it is estimated from the particles")
_TOMOGRAPHY = _refused("subtomograms are three-dimensional; ralib classifies 2D particles")

# Every option: how many values it takes (None: any that follow), and what becomes of it.
OPTIONS: dict[str, tuple[int | None, Callable[[Job, str, str], None]]] = {
    "--i": (1, _set("stack")),
    "--o": (1, _set("root")),
    "--iter": (1, _count("iteration", 0, 999)),
    "--K": (1, _as("--classes")),
    "--particle_diameter": (1, _unless_default("--diameter")),
    "--offset_range": (1, _as("--search")),
    "--strict_highres_exp": (1, _unless_default("--resolution")),
    "--strict_lowres_exp": (1, _unless_default("--low-limit")),
    "--random_seed": (1, _unless_default("--seed")),
    "--angpix": (1, _unless_default("--pixel-size")),
    "--skip_align": (0, _flag("--skip-align")),
    "--ctf": (0, _ctf),
    "--ctf_phase_flipped": (0, _phases),
    "--gpu": (None, _gpu),
    "--j": (1, _count("threads", 1, 100_000)),
    "--cpu": (0, _flag("--device", "cpu")),
    "--pipeline_control": (1, _set("control", Path)),
    "--tau2_fudge": (1, _unneeded("the regularisation follows from the measured signal to noise of each class")),
    "--tau2_fudge_scheme": (1, _unneeded("the regularisation follows from the measured signal to noise of each class")),
    "--norm": (0, _ALWAYS),
    "--scale": (0, _ALWAYS),
    "--flatten_solvent": (0, _ALWAYS),
    "--zero_mask": (0, _ALWAYS),
    "--center_classes": (0, _ALWAYS),
    "--grad": (0, _unneeded("the schedule begins with parts of the data by itself")),
    "--grad_em_iters": (1, _OWN_STEPS),
    "--grad_ini_frac": (1, _OWN_STEPS),
    "--grad_fin_frac": (1, _OWN_STEPS),
    "--grad_ini_resol": (1, _OWN_STEPS),
    "--grad_fin_resol": (1, _OWN_STEPS),
    "--grad_stepsize": (1, _OWN_STEPS),
    "--grad_stepsize_scheme": (1, _OWN_STEPS),
    "--grad_ini_subset": (1, _OWN_STEPS),
    "--grad_fin_subset": (1, _OWN_STEPS),
    "--mu": (1, _OWN_STEPS),
    "--auto_sampling": (0, _OWN_STEPS),
    "--adaptive_fraction": (1, _OWN_STEPS),
    "--coarse_size": (1, _OWN_STEPS),
    "--incr_size": (1, _OWN_STEPS),
    "--fast_subsets": (0, _OWN_STEPS),
    "--always_cc": (0, _refused("classes are compared by their likelihood alone; leave it out")),
    "--grad_write_iter": (1, _unneeded("the averages of every step are kept in iterations/")),
    "--write_every_grad_iter": (1, _unneeded("the averages of every step are kept in iterations/")),
    "--class_inactivity_threshold": (1, _unneeded("classes that run empty are split off others")),
    "--oversampling": (1, _OWN_STEPS),
    "--psi_step": (1, _OWN_STEPS),
    "--offset_step": (1, _OWN_STEPS),
    "--allow_coarser_sampling": (0, _OWN_STEPS),
    "--perturb": (1, _OWN_STEPS),
    "--maxsig": (1, _OWN_STEPS),
    "--pad": (1, _unneeded("interpolation is as exact without")),
    "--ctf_corrected_ref": (0, _unneeded("there are no references")),
    "--dont_check_norm": (0, _unneeded("images are normalised as they are read")),
    "--onthefly_shifts": (0, _DISC),
    "--firstiter_cc": (0, _unneeded("there are no references to compare grey values with")),
    "--pool": (1, _DISC),
    "--preread_images": (0, _DISC),
    "--scratch_dir": (1, _DISC),
    "--keep_scratch": (0, _DISC),
    "--reuse_scratch": (0, _DISC),
    "--no_parallel_disc_io": (0, _DISC),
    "--dont_combine_weights_via_disc": (0, _DISC),
    "--verb": (1, _unneeded("the log has one line an iteration")),
    "--maximum_angular_sampling": (1, _OWN_STEPS),
    "--minimum_angular_sampling": (1, _OWN_STEPS),
    "--keep_free_scratch": (1, _DISC),
    "--skip_gridding": (0, _unneeded("interpolation is as exact without")),
    "--dont_skip_gridding": (0, _unneeded("interpolation is as exact without")),
    "--failsafe_threshold": (1, _unneeded("particles that cannot be used are left out and named")),
    "--sigma": (1, _ESTIMATED),
    "--sigma_off": (1, _ESTIMATED),
    "--min_sigma2_offset": (1, _ESTIMATED),
    "--maskedge": (1, _unneeded("the mask's edge follows from the box")),
    "--no_norm": (0, _NEVER_OFF),
    "--no_scale": (0, _NEVER_OFF),
    "--no_map": (0, _NEVER_OFF),
    "--fix_sigma_noise": (0, _NEVER_OFF),
    "--fix_sigma_offset": (0, _NEVER_OFF),
    "--skip_maximize": (0, _refused("particles are assigned to classes of a run by Classifier.predict in Python")),
    "--sigma_ang": (1, _WHOLE_CIRCLE),
    "--tau": (1, _refused("the signal's spectrum is estimated for each class; leave it out")),
    "--free_gpu_memory": (1, _unneeded("only what is needed is taken")),
    "--continue": (None, _continue),
    "--ref": (1, _references),
    "--ini_high": (1, _unneeded("the detail of references counts as far as it is measured")),
    "--trust_ref_size": (0, _unneeded("references of another box or pixel size are resampled")),
    "--skip_rotate": (0, _refused("angles cannot be kept alone; --skip_align keeps angles and shifts")),
    "--ctf_intact_first_peak": (0, _refused("the CTF is corrected from zero frequency on; leave it out")),
    "--only_flip_phases": (0, _refused("amplitudes are corrected too; flip phases first: ralib prepare --phase-flip")),
    "--bimodal_psi": (0, _HELIX),
    "--sigma_psi": (1, _HELIX),
    "--helix": (0, _HELIX),
    "--helical_outer_diameter": (1, _HELIX),
    "--helical_rise_initial": (1, _HELIX),
    "--auto_refine": (0, _THREE_D),
    "--split_random_halves": (0, _THREE_D),
    "--sym": (1, _THREE_D),
    "--healpix_order": (1, _THREE_D),
    "--auto_local_healpix_order": (1, _THREE_D),
    "--denovo_3dref": (0, _THREE_D),
    "--solvent_mask": (1, _THREE_D),
    "--solvent_mask2": (1, _THREE_D),
    "--solvent_correct_fsc": (0, _THREE_D),
    "--low_resol_join_halves": (1, _THREE_D),
    "--join_random_halves": (0, _THREE_D),
    "--sigma_rot": (1, _THREE_D),
    "--sigma_tilt": (1, _THREE_D),
    "--limit_tilt": (1, _THREE_D),
    "--som": (0, _THREE_D),
    "--helical_inner_diameter": (1, _HELIX),
    "--helical_nr_asu": (1, _HELIX),
    "--helical_twist_initial": (1, _HELIX),
    "--ios": (1, _TOMOGRAPHY),
    "--tomograms": (1, _TOMOGRAPHY),
    "--trajectories": (1, _TOMOGRAPHY),
    "--blush": (0, _THREE_D),
    "--multibody_masks": (1, _THREE_D),
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("relion", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(relion)


def relion(
    ctx: typer.Context,
    run_now: bool = typer.Option(True, "--run/--dry-run", help="--dry-run: only say what would become of the options."),
) -> None:
    """Classify with relion_refine's own command line (2D), and leave what RELION's Class2D job leaves.

    For example: ralib relion --i particles.star --o Class2D/job007/run --K 50 --particle_diameter 200 --ctf --gpu 0
    --iter 25. Every option is used, named as not needed, or refused. The files run_it025_{data,model,optimiser,
    sampling}.star and _classes.mrcs open in RELION's Subset selection; the run itself is in the job's folder ralib/.
    """
    job = parse(ctx.args)
    if job.optimiser is not None:
        _go_on(job, job.optimiser)
    if not job.stack or not job.root:
        raise RalibError("ralib relion needs --i PARTICLES.star and --o ROOT, such as Class2D/job007/run")
    for note in job.notes:
        typer.echo(f"relion: {note}")
    root = Path(job.root + "run" if job.root.endswith("/") else job.root)
    run = (job.optimiser or root).parent / RUN_FOLDER
    command = ["classify", job.stack, str(run), *job.arguments]
    if job.optimiser is None:
        command += ["--ctf", job.ctf]
    typer.echo(f"relion: ralib {' '.join(command)}")
    if not run_now:
        return
    _classify(job, root, run, command)


def _go_on(job: Job, optimiser: Path) -> None:
    """Let the job go on with the run that wrote an optimiser file, by the options and the particles of that run."""
    from ralib.cli.settings import CONFIG_FILE
    from ralib.results.run_record import read_record

    if not optimiser.is_file():
        raise RalibError(f"--continue {optimiser}: no such file")
    run = optimiser.parent / RUN_FOLDER
    data = str(optimiser).replace("_optimiser.star", "_data.star")
    if not (run / CONFIG_FILE).is_file():
        raise RalibError(
            f"--continue {optimiser} is a run of RELION, inside whose iterations ralib cannot go on: begin a run with "
            f"its classes, by --i {data} --ref {optimiser} in place of it"
        )
    words = job.arguments
    device = words[words.index("--device") :][:2] if "--device" in words else []
    job.stack = str((read_record(run).get("input") or {}).get("path"))
    job.root = job.root or re.sub(r"_it\d+_optimiser\.star$", "", str(optimiser))
    job.arguments = ["--continue", "--config", str(run / CONFIG_FILE), *device]
    job.notes.append(f"--continue {optimiser}: the run {run} goes on with its own options, whatever else is given here")


def _classify(job: Job, root: Path, run: Path, command: list[str]) -> None:
    import torch

    from ralib.cli import main

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    root.parent.mkdir(parents=True, exist_ok=True)
    nodes: dict[str, str] = {}
    with external_job(job.control, nodes), aborted_by(job.control or root.parent):
        status = main(command)
        if status:
            raise typer.Exit(status)
        files = write_job_files(run, root, job.iteration)
        nodes[str(files["data"])] = "ParticlesData.star.relion.class2d"
        nodes[str(files["optimiser"])] = "ProcessData.star.relion.optimiser.class2d"
    typer.echo(f"wrote {root}_it{job.iteration:03d}_" + "{data,model,optimiser,sampling}.star and _classes.mrcs")


def write_job_files(run: Path, root: Path, iteration: int) -> dict[str, Path]:
    """Write the files of a Class2D job for a finished run.

    Parameters
    ----------
    run : Path
        The run's folder.
    root : Path
        Beginning of the job's file names.
    iteration : int
        Number of its last iteration.

    Returns
    -------
    dict[str, Path]
        Files by kind.
    """
    from ralib import io
    from ralib.results.particle_scores import SCORES_FILE, read_particle_scores
    from ralib.results.relion_files import write_relion_files
    from ralib.results.run_directory import load_run
    from ralib.results.run_record import read_record

    result = load_run(run)
    particles = io.open_particles(run / "particles.star")
    stem = Path(f"{root}_it{iteration:03d}")
    classes = Path(f"{stem}_classes.mrcs")
    io.link_or_copy(run / "class_averages.mrcs", classes)
    data, model, optimiser, sampling = write_relion_files(
        stem,
        result.averages,
        result.poses,
        particles,
        read_record(run),
        particle_file=run / "particles.star",
        average_file=classes,
        posterior=read_particle_scores(run / SCORES_FILE, len(particles)).get("posterior"),
        iteration=iteration,
    )
    return {"data": data, "model": model, "optimiser": optimiser, "sampling": sampling, "classes": classes}


def parse(words: list[str]) -> Job:
    """Return the job that relion_refine's options describe; raises RalibError naming the first that cannot be met."""
    job, i = Job(), int(bool(words) and Path(words[0]).name.startswith("relion_refine"))
    while i < len(words):
        option = words[i]
        if option not in OPTIONS:
            if not option.startswith("-"):
                raise RalibError(f"{option!r} belongs to no option: leave it out, or name its option before it")
            raise RalibError(
                f"{option} is no option of relion_refine's 2D classification that ralib knows: leave it out"
            )
        n, take = OPTIONS[option]
        rest = words[i + 1 :]
        if n is None:  # RELION's own --gpu "" too
            n = int(bool(rest) and not rest[0].startswith("--"))
        if len(rest) < n or (n and rest[0].startswith("--")):
            raise RalibError(f"{option} needs a value")
        take(job, option, " ".join(rest[:n]))
        i += 1 + n
    return job
