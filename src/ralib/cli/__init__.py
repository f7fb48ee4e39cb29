"""The command `ralib`: one typer app; each module in this folder registers its commands."""

from __future__ import annotations

import os

# Before PyTorch loads OpenMP: idle threads sleep instead of spinning. With spinning, two threads on two cores that
# other programs use as well are ten times slower than one; asleep they cost nothing measurable.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from importlib import import_module

import typer

from ralib.cli.common import run
from ralib.cli.settings import with_short_help
from ralib.runtime.distributed import launched
from ralib.types import RalibError
from ralib.versions import __version__

COMMANDS = (
    *("mref", "reffree", "classify", "prepare", "transform", "average", "params", "simulate", "report", "view"),
    *("external", "select", "compare", "relion", "analyze", "denoise", "neighbours", "watch", "bench", "info"),
)
"""Each a module of that name in `commands`, in the order of --help."""
ESSENTIAL = {
    "simulate": frozenset(
        {"device", "particles", "box", "seed", "volume", "views", "snr", "pixel_size", "ctf", "defocus", "junk"}
    ),
    "analyze": frozenset(
        {"out", "method", "ctf", "components", "clusters", "clustering", "embedding", "truth", "seed", "device"}
    ),
    "select": frozenset(
        {"auto", "classes", "min_class_score", "max_junk", "where", "remove_duplicates", "out", "excluded", "averages"}
        | {"recenter", "split"}
    ),
    "prepare": frozenset(
        {"box", "to_pixel_size", "clip", "phase_flip", "invert", "normalise", "background_radius", "mask_radius"}
        | {"remove_duplicates", "input_pixel_size", "datadir"}
    ),
    "bench": frozenset({"cases", "repeats", "device", "out", "suite"}),
}
"""What --help shows of commands with many options; --help-all shows every one."""
SEVERAL_PROCESSES = ("classify", "mref", "reffree", "bench")

app = typer.Typer(
    name="ralib",
    help="2D alignment, classification and averaging of cryo-EM particle images, on GPUs and CPUs.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ralib {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and stop."
    ),
) -> None:
    """Options of `ralib` itself."""
    if launched() and context.invoked_subcommand not in SEVERAL_PROCESSES:
        raise RalibError(f"ralib {context.invoked_subcommand} runs as one process: start it without torchrun")


for _name in COMMANDS:
    import_module(f"{__name__}.commands.{_name}").register(app)
with_short_help(app, ESSENTIAL, without=frozenset({"relion", "external"}))


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : list[str] | None, optional
        Arguments; by default those of the process.

    Returns
    -------
    int
        Exit status: 0, or 2 for a mistake reported in one line.
    """
    return run(app, argv)
