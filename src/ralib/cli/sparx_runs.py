"""The parity mode of `mref` and `reffree`: the same options, SPARX's own loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ralib.alignment.iteration import Alignment
from ralib.alignment.multi_reference import random_averages, starting_poses
from ralib.alignment.options import AlignmentOptions
from ralib.cli.align import MrefSettings, ReffreeSettings
from ralib.cli.running import Reporter
from ralib.sparx.run import IterationResult, Listener
from ralib.types import ParticleSet, RalibError, RunResult


def fit_sparx(
    particles: ParticleSet,
    references: Any,
    mask: np.ndarray | None,
    function: Any,
    o: MrefSettings | ReffreeSettings,
    outer_radius: float,
    stages: Sequence[tuple[float, float, float]],
    device: torch.device,
    reporter: Reporter,
) -> RunResult:
    """Run SPARX's mref_ali2d or ali2d with the options of the command line."""
    if o.ctf_choice() == "flip":
        raise RalibError("--ctf flip is not SPARX's: use --CTF, or flip first with 'ralib prepare --phase-flip'")
    seen: list[dict[str, Any]] = []

    def told(result: IterationResult) -> None:
        seen.append(result.figures)
        reporter.note(list(seen), [], result.averages)
        reporter.flag.raise_if_set()

    common: dict[str, Any] = {
        "mask": mask,
        "ir": o.ir,
        "ou": int(outer_radius),
        "rs": o.rs,
        "center": o.center,
        "maxit": o.maxit,
        "CTF": o.ctf_choice() == "wiener",
        "snr": 1.0 if o.snr is None else o.snr,
        "user_function": function,
        "rand_seed": o.seed,
        "nomirror": o.nomirror,
        "device": device,
        "listener": Listener(on_iteration=told, on_batch=reporter.batch),
    }
    if o.batch is not None:
        common["batch_size"] = o.batch
    if isinstance(o, MrefSettings):
        from ralib.sparx.mref import mref_ali2d

        ((x_range, y_range, step),) = stages

        if isinstance(references, int):
            run = Alignment(particles, AlignmentOptions(outer_radius=outer_radius, device=device))
            start = starting_poses(particles)
            references = random_averages(run, start, references, o.seed, x_range)
        return mref_ali2d(
            particles,
            references,
            xr=x_range,
            yr=y_range,
            ts=step,
            EQ=o.equal,
            **common,
        )
    from ralib.sparx.ali2d import ali2d

    x_text, y_text, step_text = (" ".join(f"{v:g}" for v in column) for column in zip(*stages, strict=True))
    return ali2d(
        particles,
        xr=x_text,
        yr=y_text,
        ts=step_text,
        dst=o.dst,
        Fourvar=o.fourvar,
        mode=o.mode,
        randomize=o.randomize,
        random_method=o.random_method,
        **common,
    )
