"""A command as an External job of RELION: files that report its end, and the file that aborts it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from ralib.types import RalibError

ABORT_FILE = "RELION_JOB_ABORT_NOW"


@contextlib.contextmanager
def external_job(folder: Path | None, nodes: dict[str, str]) -> Iterator[None]:
    """Write the files by which RELION recognises the end of an External job; nothing without a folder.

    Parameters
    ----------
    folder : Path or None
        The job's folder, or None.
    nodes : dict[str, str]
        RELION's node type by file name.
    """
    if folder is None:
        yield
        return
    from ralib.io import write_job_exit, write_output_nodes, write_text

    if not folder.is_dir():
        raise RalibError(f"--pipeline_control {folder}: there is no such folder; RELION makes it for its job")
    for before in folder.glob("RELION_JOB_EXIT_*"):
        before.unlink()
    try:
        yield
        if nodes:
            write_output_nodes(folder, nodes)
    except BaseException:
        if (folder / ABORT_FILE).exists():
            write_text(folder / "RELION_JOB_EXIT_ABORTED", "")
        else:
            write_job_exit(folder, ok=False)
        raise
    write_job_exit(folder, ok=True)


@contextlib.contextmanager
def aborted_by(folder: Path, every_s: float = 1.0) -> Iterator[None]:
    """Interrupt this process, as Ctrl-C would, when RELION's abort file appears.

    Parameters
    ----------
    folder : Path
        The job's folder.
    every_s : float, default 1.0
        Time between two checks, s.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            if (folder / ABORT_FILE).exists():
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
