"""Errors and notices: what a person should know, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class RalibError(Exception):
    """A mistake in the input or the options, described in one line: what, where, what to do.

    The command line prints it without a traceback and exits with status 2.
    """


@dataclass(frozen=True)
class Notice:
    """Something that a person should know of a run or its input.

    Attributes
    ----------
    what : str
        What was found.
    where : str, optional
        In which file, classes or particles.
    remedy : str, optional
        What to do about it.
    """

    what: str
    where: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        """The notice in one line."""
        return f"{self.what}; {self.remedy}" if self.remedy else self.what

    def record(self) -> dict[str, str]:
        """The notice as run.json holds it, with the keys what, where and do."""
        return {"what": self.what, "where": self.where, "do": self.remedy}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Notice:
        """The notice that run.json holds."""
        return cls(*(str(record.get(key, "")) for key in ("what", "where", "do")))
