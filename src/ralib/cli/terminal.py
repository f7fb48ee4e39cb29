"""Output of a run: its header, a line for each iteration, a table of classes; log.txt, and one progress bar."""

from __future__ import annotations

import math
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ralib import io
from ralib.types import CtfCorrection, Notice, ParticleSet

LOG_FILE = "log.txt"
COLUMNS = 100
SHOWN_CLASSES = 6
"""Of the best and of the worst; the classes between them are counted."""

VERDICT_AT = 37
"""Column of the verdict in the table of classes."""


class Terminal:
    """Lines on the screen and in OUTDIR/log.txt, and a progress bar over the whole run on a terminal.

    Parameters
    ----------
    quiet : bool, default False
        Whether nothing is printed: on all ranks but the first.

    Attributes
    ----------
    total
        Number of iterations expected, None where unknown.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.total: int | None = None
        self.lines: list[str] = []
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._done = 0
        self._before: str | None = None

    def say(self, line: str, *, indent: int = 2, brief: Callable[[int], str] | None = None) -> None:
        """Print a line: on the screen folded between words, or brief, in log.txt whole.

        Parameters
        ----------
        line : str
            The line.
        indent : int, default 2
            Columns by which its continuation is indented.
        brief : Callable[[int], str] | None, optional
            Returns the line in at most so many columns, where the screen is narrow.
        """
        if self.quiet:
            return
        self.lines.append(line)
        shown = on_screen(line if brief is None or not sys.stdout.isatty() else brief(_columns()), indent)
        if self._bar is not None and sys.stdout.isatty():
            self._bar.console.print(shown, highlight=False, markup=False, soft_wrap=True)
        else:
            typer.echo(shown)

    def detail(self, line: str, *, brief: Callable[[int], str] | None = None) -> None:
        """Write a line to log.txt, and print it, or its brief form, on a terminal only."""
        if sys.stdout.isatty():
            self.say(line, brief=brief)
        elif not self.quiet:
            self.lines.append(line)

    def warn(self, warnings: Iterable[Notice]) -> None:
        """Print warnings, each with advice; many reseeded classes in one line."""
        warnings = list(warnings)
        reseeded = [w for w in warnings if "was reseeded" in w.what]
        if len(reseeded) > 3:
            warnings = [w for w in warnings if w not in reseeded]
            what = f"{len(reseeded)} classes had too few members and were reseeded (run.json names them)"
            warnings.append(Notice(what, remedy=reseeded[0].remedy))
        for warning in warnings:
            self.say(f"warning: {warning}")

    def show(self, done: int = 0) -> None:
        """Show the bar on a terminal; `done` iterations were done before."""
        if self.quiet or not sys.stderr.isatty():
            return
        self.close()
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar, self._done = Progress(*columns, console=Console(stderr=True), transient=True), done
        self._task = self._bar.add_task("reading", total=self.total, completed=done)
        self._bar.start()

    def wait(self, text: str) -> None:
        """Show on a terminal what is waited for, and how long already."""
        if self.quiet or not sys.stderr.isatty() or (self._bar is not None and self._task is None):
            return
        self.close()
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        self._bar, self._task = Progress(*columns, console=Console(stderr=True), transient=True), None
        self._bar.add_task(text, total=None)
        self._bar.start()

    def part(self, share: float) -> None:
        """Advance the bar: `share` of the present iteration is done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done + share)

    def step(self, done: int, stage: str) -> None:
        """Advance the bar after an iteration.

        Parameters
        ----------
        done : int
            Iterations done.
        stage : str
            Name of the present stage.
        """
        self._done = done
        if self._bar is not None and self._task is not None:
            total = None if self.total is None else max(self.total, done + 1)
            self._bar.update(self._task, completed=done, total=total, description=stage)

    def busy(self, name: str) -> None:
        """Show that the iterations are over and something else is done."""
        if self._bar is not None and self._task is not None:
            task = self._bar.tasks[0]
            self._bar.update(self._task, completed=task.total or self._done, description=name)

    def close(self) -> None:
        """Remove the bar, so that later lines are clean."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    def save(self, folder: Path) -> None:
        """Write log.txt of all lines so far, after those of the run that is continued."""
        path = folder / LOG_FILE
        if self._before is None:
            self._before = path.read_text(encoding="utf-8") if path.is_file() else ""
        io.write_text(path, self._before + "\n".join(self.lines) + "\n")


def on_screen(line: str, indent: int = 2) -> str:
    """Return a line as it is printed: on a terminal folded between words, elsewhere whole.

    Parameters
    ----------
    line : str
        The line.
    indent : int, default 2
        Columns by which its continuation is indented.

    Returns
    -------
    str
        The text.
    """
    if not line or not sys.stdout.isatty():
        return line
    return textwrap.fill(line, _columns(), subsequent_indent=" " * indent, break_long_words=False)


def _columns() -> int:
    """Columns of a line on the screen; after a full line some terminals begin another."""
    return min(COLUMNS, shutil.get_terminal_size().columns) - 1


def header(particles: ParticleSet, ctf: CtfCorrection, plan: str) -> list[str]:
    """Return the header of a run: particles, box, pixel size, groups, CTF correction, and the plan.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    ctf : CtfCorrection
        CTF correction.
    plan : str
        What will be done, in words.

    Returns
    -------
    list[str]
        Lines.
    """
    pixel = particles.pixel_size_A
    size = f"{particles.box} px" + (f" ({particles.box * pixel:.0f} A, {pixel:.4g} A/px)" if pixel else "")
    groups = 0 if particles.group is None else len(np.unique(particles.group))
    parts = [f"particles: {len(particles)}", f"box {size}"]
    parts += [f"{groups} groups"] if groups > 1 else []
    return [", ".join([*parts, f"CTF: {ctf.value}"]), f"plan: {plan}"]


def resolution_text(row: dict[str, Any], box: int) -> str:
    """Return '12 A', or '3.1 px' without a pixel size; '-' where the halves agree on nothing finer than half the box.

    Parameters
    ----------
    row : dict[str, Any]
        Figures of a class or iteration.
    box : int
        Image size, pixels.

    Returns
    -------
    str
        The text.
    """
    in_px, in_A = row.get("resolution_px", math.nan), row.get("resolution_A", math.nan)
    if not isinstance(in_px, int | float) or not math.isfinite(in_px) or in_px > box / 2:
        return "-"
    return f"{in_A:.1f} A" if math.isfinite(in_A) else f"{in_px:.1f} px"


def iteration_line(row: dict[str, Any], box: int, total: int | None = None, columns: int = COLUMNS - 1) -> str:
    """Return an iteration of alignment or classification as one line; unknown figures are left out.

    Figures are left out, too, where the line would be longer than the columns there are.

    Parameters
    ----------
    row : dict[str, Any]
        Figures of the iteration.
    box : int
        Image size, pixels.
    total : int | None, optional
        Number of iterations expected.
    columns : int, default 99
        Most columns of the line.

    Returns
    -------
    str
        The line.
    """
    stage = f" {row['stage']}" if isinstance(row.get("stage"), str) else ""
    empty = f" ({row['empty']} empty)" if row["empty"] else ""
    begins = f"iteration {row['iteration']}{f'/{total}' if total else ''}{stage}: fit {row['criterion']:.4g}"
    single = len(row["class_sizes"]) == 1
    parts = {"classes": f"{len(row['class_sizes'])} classes of {row['smallest']}..{row['largest']}{empty}"}
    if single:
        parts["classes"] = f"{row['largest']} particles"
    middle = {"resolution_px": row["median_resolution_px"], "resolution_A": row["median_resolution_A"]}
    if (resolution := resolution_text(middle, box)) != "-":
        # What alignment makes of noise is taken off the final FRC of classes only: each iteration would cost another.
        parts["frc"] = f"{'uncorrected ' if stage else ''}FRC {resolution}"
    if math.isfinite(row["pixel_error_px"]):
        parts["moved"] = f"moved {row['pixel_error_px']:.2f} px"
    if math.isfinite(row["class_changes"]) and not single:
        parts["changed"] = f"changed {100 * row['class_changes']:.0f}%"
    parts["seconds"] = f"{row['seconds']:.1f} s"
    for least in ("moved", "seconds", "frc", "changed"):
        if len(", ".join([begins, *parts.values()])) <= columns:
            break
        parts.pop(least, None)
    return ", ".join([begins, *parts.values()])


def class_table(rows: Sequence[dict[str, Any]], box: int) -> list[str]:
    """Return the best and the worst classes, a line each, and the number of others.

    Parameters
    ----------
    rows : Sequence[dict[str, Any]]
        Figures of the classes, ranked by score, or by members where there is none.
    box : int
        Image size, pixels.

    Returns
    -------
    list[str]
        Lines.
    """
    judged = all(math.isfinite(row.get("score", math.nan)) for row in rows)
    ranked = sorted(rows, key=lambda row: -row["score"] if judged else -row["members"])
    cut = len(ranked) > 2 * SHOWN_CLASSES + 1
    first = ranked[:SHOWN_CLASSES] if cut else ranked
    lines = ["class  particles  resolution" + ("  score  verdict" if judged else "")]
    lines += [_class_line(row, box, judged) for row in first]
    if cut:
        lines.append(f"  ... {len(ranked) - 2 * SHOWN_CLASSES} classes between these ...")
        lines += [_class_line(row, box, judged) for row in ranked[-SHOWN_CLASSES:]]
    return lines


def classes_line(rows: Sequence[dict[str, Any]]) -> str:
    """Return how many classes there are, and which of them are selected, in words.

    Parameters
    ----------
    rows : Sequence[dict[str, Any]]
        Figures of the classes.

    Returns
    -------
    str
        The text.
    """
    members = sum(row["members"] for row in rows)
    line = f"{len(rows)} classes of {members} particles" if len(rows) != 1 else f"1 class of {members} particles"
    if not any("selected" in row for row in rows):
        return line
    chosen = [row for row in rows if row.get("selected")]
    return f"{line}, {len(chosen)} selected with {sum(row['members'] for row in chosen)}"


def _class_line(row: dict[str, Any], box: int, judged: bool) -> str:
    line = f"{row['class']:5d}  {row['members']:9d}  {resolution_text(row, box):>10}"
    return line + (f"  {row['score']:5.2f}  {row.get('verdict', '')}" if judged else "")
