"""Before any test: shapes are checked, and memory that nobody wrote shows. Fixtures: where the data lie."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; see ralib.cli

import pytest
import torch
from jaxtyping import install_import_hook

_SOURCE = Path(__file__).resolve().parents[1] / "src"
_MODULES = [".".join(p.relative_to(_SOURCE).with_suffix("").parts) for p in _SOURCE.rglob("*.py")]
# Numba and Triton compile their functions from the source themselves and take no wrapper.
_UNWRAPPED = ("_numba", "_triton", "_llvm", "__init__")
install_import_hook([m for m in _MODULES if not m.endswith(_UNWRAPPED)], "shape_checker.check")


def _poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`make` with its uninitialised floats set to NaN, so that an output nobody wrote cannot pass for a result."""

    @functools.wraps(make)
    def make_poisoned(*args: Any, **options: Any) -> torch.Tensor:
        tensor = make(*args, **options)
        if tensor.is_floating_point() or tensor.is_complex():
            with torch.no_grad():
                tensor.fill_(float("nan"))
        return tensor

    return make_poisoned


torch.empty = _poisoned(torch.empty)
torch.empty_like = _poisoned(torch.empty_like)
torch.Tensor.new_empty = _poisoned(torch.Tensor.new_empty)  # type: ignore[method-assign]


SLOW = (
    "access",
    "browser",
    "classifier",
    "classify_command",
    "decisions",
    "distributed",
    "install",
    "large_sets",
    "notebooks",
    "real_data",
    "ranks",
    "serve",
    "soak",
    "streaming",
    "verdict",
)
"""Files whose tests kill, install, open browsers or classify at length: `make quick` leaves them out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW:
            item.add_marker(pytest.mark.slow)


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
