"""`ralib classify RUN OUT --split-states`: the states within the classes of a finished run."""

from __future__ import annotations

from pathlib import Path

import typer

from ralib.cli.common import resolve_device
from ralib.types import RalibError


def split_states_of(run: Path, out: Path, n_states: str, *, seed: int, device: str) -> None:
    """Divide the classes of a run, write the states, and say which classes were divided and why."""
    from ralib.analysis.states import MOST_STATES
    from ralib.analysis.states_of_run import split_run

    if n_states != "auto" and not (n_states.isdigit() and 2 <= int(n_states) <= MOST_STATES):
        raise RalibError(f"--split-states {n_states}: give 2 to {MOST_STATES}, or auto")
    asked = "auto" if n_states == "auto" else int(n_states)
    record = split_run(run, out, asked, seed=seed, device=resolve_device(device))
    for figures in record["classes"]:
        count = len(figures["states"])
        why = f"{figures['components_above_noise']} components above the noise"
        if figures["tried"]:
            why += (
                f"; held-out gain {figures['gain']:.3f} +- {figures['gain_error']:.3f} a particle, "
                f"{figures['separation']:.1f} sd apart"
            )
        shares = " and ".join(f"{share:.0%}" for share in figures["shares"])
        verdict = f"{count} states ({shares})" if count > 1 else "one state"
        typer.echo(f"class {figures['class']} ({figures['members']:,} members): {verdict}; {why}")
    typer.echo(f"wrote {out}")
