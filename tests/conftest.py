"""Fixtures shared by all tests: where the golden and the optional shared data lie, and poisoned `empty` tensors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """EMAN2/SPARX's own results, committed beside the tests."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real and simulated particles of other programs; present on the developers' machines only."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("RALIB_SHARED_DATA", default))
    if not path.is_dir():
        pytest.skip(f"the shared data set is missing: no folder {path.name!r}; set RALIB_SHARED_DATA to it")
    return path
