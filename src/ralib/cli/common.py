"""Parts common to all commands: the device line, errors in one line, the exit status."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track

from ralib.cli.flags import with_flags
from ralib.cli.interrupts import answered, noted_signals
from ralib.cli.timing import began
from ralib.compile_cache import cache_error_message
from ralib.runtime.distributed import RankLost, first_to_fail, launch, launched, launcher_number, rank_to_show
from ralib.runtime.memory import memory_left, out_of_memory
from ralib.runtime.memory_guard import MemoryGuard
from ralib.types import Notice, ParticleSet, RalibError

T = TypeVar("T")

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
SMALLER = (
    "give more memory, or take fewer particles, a smaller box ('ralib prepare --to-pixel-size') or a smaller --batch"
)
SOON_S = 0.3
"""A signal is answered after so long where the command has not ended by then."""
REPLACED_OPTIONS = {
    "--MPI": "Several GPUs of this machine: --gpu_devices 0,1; several machines: torchrun, see 'Several GPUs'.",
    "--gpu_info": "'ralib info' shows the devices.",
}
"""Options of the earlier GPU version and of SPARX that other options or commands replace."""
DEVICE_HELP = "Where to compute: auto (a GPU where there is one), cpu, cuda or cuda:K."


def resolve_device(text: str = "auto") -> torch.device:
    """Return the device named by `auto`, `cpu`, `cuda` or `cuda:K`, and print which one is used.

    Under torchrun, `auto` and `cuda` mean the GPU of the local rank.
    """
    device = _parse_device(text.strip().lower(), torch.cuda.device_count())
    if device.type == "cuda":
        torch.cuda.set_device(device)  # kernels of Triton run on the current one
    if rank_to_show() == 0:
        typer.echo(f"device: {describe_device(device)}")
    return device


def chosen_device(text: str, gpu_devices: str | None) -> torch.device:
    """Return the device of --device, or of the original's --gpu_devices; several of those start as many processes.

    Parameters
    ----------
    text : str
        --device.
    gpu_devices : str or None
        --gpu_devices.

    Returns
    -------
    torch.device
        The device.
    """
    if gpu_devices is None:
        return resolve_device(text)
    numbers = gpu_devices.replace(",", " ").split()
    if not numbers or not all(n.isdecimal() for n in numbers):
        raise RalibError(f"--gpu_devices {gpu_devices!r} is no list of GPU numbers: use '0' or '0,1'")
    if text not in ("auto", "cuda"):
        raise RalibError(f"--gpu_devices {gpu_devices} and --device {text} contradict each other: give one")
    if len(numbers) == 1 or launched():
        local = launcher_number("LOCAL_RANK", 0)
        return resolve_device(f"cuda:{numbers[local % len(numbers)]}")
    check_devices(numbers)
    raise typer.Exit(launch(len(numbers), sys.argv[1:]))


def check_devices(numbers: Iterable[str]) -> None:
    """Raise RalibError unless there is a GPU of each number."""
    for number in numbers:
        _parse_device(f"cuda:{number}", torch.cuda.device_count())


def _parse_device(text: str, n_gpus: int) -> torch.device:
    if text == "auto":
        text = "cuda" if n_gpus > 0 else "cpu"
    if text == "cpu":
        return torch.device("cpu")
    name, _, number = text.partition(":")
    if name != "cuda" or not (number.isdecimal() or text == "cuda"):
        raise RalibError(f"--device {text!r} is not a device: use auto, cpu, cuda or cuda:K")
    if n_gpus == 0:
        raise RalibError("--device cuda: PyTorch finds no GPU here: use --device cpu, or see 'ralib info'")
    index = int(number) if number else launcher_number("LOCAL_RANK", 0) % n_gpus
    if index >= n_gpus:
        raise RalibError(f"--device {text}: there are {n_gpus} GPUs, numbered from 0: use a smaller number")
    return torch.device("cuda", index)


def describe_device(device: torch.device) -> str:
    """Return a description such as `cuda:0 (name, 80 GiB)` or `cpu (2 threads)`."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{device} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' * (threads != 1)})"


def progress(items: Sequence[T], label: str) -> Iterable[T]:
    """Iterate over items, with a progress bar on a terminal.

    Parameters
    ----------
    items : Sequence[T]
        Items.
    label : str
        Label of the bar.

    Yields
    ------
    T
        The items.
    """
    return track(items, description=label, console=Console(stderr=True)) if sys.stderr.isatty() else items


@contextlib.contextmanager
def at_work(what: str) -> Iterator[None]:
    """Say on a terminal what is being done, with a sign of life, until it is done; the line is removed then."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(f"{what} ..."):
        yield


def show_warnings(warnings: Iterable[Notice]) -> None:
    """Print warnings about the input before work begins."""
    from ralib.cli.terminal import on_screen

    if rank_to_show() == 0:
        for warning in warnings:
            typer.echo(on_screen(f"warning: {with_flags(str(warning))}"))


def with_pixel_size(particles: ParticleSet, pixel_size_A: float | None, option: str) -> ParticleSet:
    """Return the particles with the pixel size that an option gives, where it is given.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    pixel_size_A : float or None
        Value of the option, Angstrom.
    option : str
        Its name, for errors.

    Returns
    -------
    ParticleSet
        The particles.
    """
    if pixel_size_A is None:
        return particles
    if not 0.01 <= pixel_size_A <= 1000:
        raise RalibError(f"{option} {pixel_size_A:g} A must be above 0: give the pixel size in Angstrom")
    if particles.pixel_sizes_A is not None:
        from ralib.io.plausible import mixed_pixel_sizes

        raise RalibError(f"{option} says one pixel size, but {mixed_pixel_sizes(particles.pixel_sizes_A)}")
    return particles.replace(pixel_size_A=pixel_size_A)


def in_batches(n: int, box: int, label: str, *, batch_bytes: int = 1 << 26) -> Iterator[np.ndarray]:
    """Iterate over consecutive indices of images in batches, with a progress bar.

    Parameters
    ----------
    n : int
        Number of images.
    box : int
        Image size, pixels.
    label : str
        Label of the bar.
    batch_bytes : int, default 1 << 26
        Size of a batch, about.

    Yields
    ------
    ndarray
        Indices.
    """
    size = max(1, batch_bytes // (4 * box * box))
    for start in progress(range(0, n, size), label):
        yield np.arange(start, min(start + size, n))


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` on success and is removed on failure."""
    from ralib.io.atomic import atomic_folder

    if path.exists():
        raise RalibError(f"{path} exists already: choose another folder, or remove it")
    with atomic_folder(path) as folder:
        yield folder


def run(app: Callable[..., Any], argv: list[str] | None = None) -> int:
    """Call a typer app; every error becomes one line on stderr and a status, never a traceback.

    Mistakes in the input, the options or the file system give 2, an interruption 130. Anything else is a bug in the
    package: status 1. RALIB_DEBUG=1 shows the traceback as well.

    Parameters
    ----------
    app : Callable[..., Any]
        The app.
    argv : list[str] | None, optional
        Arguments; by default those of the process.

    Returns
    -------
    int
        Exit status.
    """
    status = _run(app, argv)
    if status != 0:
        first_to_fail()  # what other processes there are stop waiting for this one
    return status


class Terminated(BaseException):
    """SIGTERM or SIGHUP as an exception, so that cleaning up after Ctrl-C happens here, too.

    Parameters
    ----------
    number : int
        Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextlib.contextmanager
def _ending_cleanly() -> Iterator[set[int]]:
    """Ctrl-C, SIGTERM and SIGHUP end the command as exceptions, and are answered meanwhile; yields what has come.

    Only the main thread can be interrupted.
    """
    came: set[int] = set()

    def end(number: int, frame: object) -> None:
        came.add(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, end) for number in noted_signals()}
    try:
        with answered("ralib: ending when what is computed now is done", after_s=SOON_S):
            yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(app: Callable[..., Any], argv: list[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that this terminal cannot show stop no run
            stream.reconfigure(errors="backslashreplace")
    came: set[int] = set()
    try:
        with MemoryGuard(), _ending_cleanly() as came:
            status = app(args=argv, prog_name="ralib", standalone_mode=False, obj=began(argv))
        if status == EXIT_INTERRUPTED and signal.SIGINT in came:  # typer makes a mere status of the exception
            return _fail("interrupted", EXIT_INTERRUPTED)
    except (Terminated, KeyboardInterrupt) as stop:
        return _stopped(stop.status - 128 if isinstance(stop, Terminated) else signal.SIGINT)
    except typer.Abort as stop:
        if isinstance(stop.__cause__, EOFError):  # which typer takes for the end of what a person types
            return _explain(stop.__cause__, _command(argv))
        return _fail("aborted", EXIT_ERROR)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except BrokenPipeError:
        # The reader closed the pipe (`ralib ... | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except Exception as error:
        if came:  # libraries make errors of their own of the signal's exception
            return _stopped(min(came))
        return _explain(error, _command(argv))
    return status if isinstance(status, int) else 0


def _stopped(number: int) -> int:
    if number == signal.SIGINT:
        return _fail("interrupted", EXIT_INTERRUPTED)
    return _fail(f"terminated ({signal.Signals(number).name}): what was being written is removed", 128 + number)


def _command(argv: list[str] | None) -> str:
    """The first word of the command line: what was to be done."""
    return next((word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("-")), "")


def _explain(error: Exception, command: str) -> int:
    if os.environ.get("RALIB_DEBUG"):
        traceback.print_exc()
    if isinstance(error, RalibError | RankLost):
        return _fail(with_flags(str(error), command), EXIT_ERROR)
    if hasattr(error, "format_message"):  # typer's own: a wrong option or argument
        # Empty after a help page; a parser's message may come behind a prefix of pydantic's.
        message = error.format_message().replace(": Value error, ", ": ")
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "ralib"
        instead = REPLACED_OPTIONS.get(getattr(error, "option_name", ""))
        message = f"{message} {instead}" if instead else message
        return _fail(f"{message} (see '{command} --help')", EXIT_ERROR) if message else EXIT_ERROR
    if trouble := cache_error_message(error):
        return _fail(trouble, EXIT_ERROR)
    if out_of_memory(error):
        what = str(error).strip().split("\n")[0] or "an allocation was refused"
        return _fail(f"out of memory: {what}; {memory_left()}: {SMALLER}", EXIT_ERROR)
    if isinstance(error, OSError):
        return _fail(_describe_os_error(error), EXIT_ERROR)
    what = f"{type(error).__name__}: {error}"
    return _fail(f"internal error, please report it: {what} (RALIB_DEBUG=1 shows where)", 1)


def _describe_os_error(error: OSError) -> str:
    hints = {
        errno.ENOSPC: "free some space or choose another output folder",
        errno.EDQUOT: "your quota is used up: free some space or choose another output folder",
        errno.EACCES: "check the permissions",
        errno.EROFS: "choose an output folder that can be written",
        errno.ENOENT: "check the path",
    }
    if error.filename is None and _of_printing(error):
        return f"cannot write to standard output: {error.strerror}: send it elsewhere, or free some space there"
    where = f"{error.filename}: " if error.filename else ""
    what = error.strerror or str(error)
    hint = hints.get(error.errno or 0)
    return f"{where}{what}" + (f": {hint}" if hint else "")


def _of_printing(error: OSError) -> bool:
    """Whether an error came of printing a line."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(not {"click", "_click", "rich"}.isdisjoint(Path(frame.filename).parts) for frame in frames[-3:])


def _fail(message: str, status: int) -> int:
    """Print one line on stderr, whatever line breaks a library put into its message, and return the status.

    Of several processes only the first to fail prints.
    """
    rank = rank_to_show()
    if first_to_fail():
        with contextlib.suppress(OSError):  # where nobody can be told, the status does
            typer.echo(f"ralib: {f'rank {rank}: ' if rank else ''}{' '.join(message.split())}", err=True)
    return status
