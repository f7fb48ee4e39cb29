"""Versions: ralib's own, in this one place (pyproject.toml reads it from here), and those of what it runs on."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"

MISSING = "missing"
"""In place of the version of a library that is not installed."""


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of installed libraries.

    Parameters
    ----------
    names : iterable of str
        Names as pip knows them.

    Returns
    -------
    dict
        Version by name, MISSING where there is none.
    """
    return {name: _installed(name) for name in names}


def recorded_versions() -> dict[str, str]:
    """Return the versions on which numbers depend, as records of runs and benchmarks hold them."""
    return {"python": platform.python_version()} | library_versions(("torch", "numpy"))


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return MISSING
