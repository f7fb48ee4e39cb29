"""Observer of a run of the method within another run, such as one from another start."""

from __future__ import annotations

from ralib.cli.interrupts import SignalFlag
from ralib.cli.terminal import Terminal
from ralib.results.observer import IterationDone


class OtherRun:
    """Observer of another run of the method within a session, such as one from another start.

    Parameters
    ----------
    terminal : Terminal
        Where its progress is shown.
    flag : SignalFlag
        A signal stops it.
    name : str
        What the bar shows.
    """

    def __init__(self, terminal: Terminal, flag: SignalFlag, name: str) -> None:
        self.terminal, self.flag, self.name = terminal, flag, name
        terminal.show()
        terminal.step(0, name)

    def batch(self, done: int, total: int) -> None:
        """Show the progress; see `Observer.batch`."""
        self.flag.raise_if_set()
        self.terminal.part(done / max(1, total))

    def iteration(self, done: IterationDone) -> None:
        """Show the progress; see `Observer.iteration`."""
        self.flag.raise_if_set()
        self.terminal.step(done.number, self.name)

    def found(self, line: str) -> None:
        """Ignore the line; see `Observer.found`."""
