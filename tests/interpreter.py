"""Tests of Triton kernels in a process of their own, each with its own name and failure here.

The interpreter has to be chosen before Triton is imported, and Triton reads the source of its kernels, which the
import hook of conftest.py wraps: so the first such test of a file runs that file again, in another process, without
conftest.py, and every one then tells its own outcome there.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

CHILD = "RALIB_TRITON_CHILD"
_NAMES: dict[Path, list[str]] = defaultdict(list)


def in_interpreter(test: Callable[..., None]) -> Callable[..., None]:
    """The test, run in a process of its own: on the GPU where there is one, else in Triton's interpreter."""
    if CHILD in os.environ:
        return test
    file = Path(test.__code__.co_filename)

    @functools.wraps(test)
    def in_child(*_: Any, **__: Any) -> None:
        pytest.importorskip("triton", reason="Triton forms need the package triton: pip install 'cryo-ralib[test]'")
        name = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].rsplit(" ", 1)[0]
        outcomes = _outcomes(file)
        assert name in outcomes, f"{name} did not run in the child: {outcomes}"
        assert not outcomes[name], outcomes[name]

    _NAMES[file].append(test.__name__)
    return pytest.mark.slow(in_child)


@functools.cache
def _outcomes(file: Path) -> dict[str, str]:
    """What each test of the file that ran in the child has to say: nothing where it passed."""
    environment = {**os.environ, CHILD: "1", "OMP_NUM_THREADS": "1"}
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "outcomes.xml"
        tests = [f"{file}::{name}" for name in _NAMES[file]]
        options = ["--noconftest", "-p", "no:cacheprovider", f"--junitxml={found}"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=560)
        if not found.exists():
            return {"no test": done.stdout + done.stderr}
        cases = ElementTree.parse(found).getroot().iter("testcase")
        return {str(case.get("name")): _complaint(case) for case in cases}


def _complaint(case: ElementTree.Element) -> str:
    return "\n".join(
        part.text or part.get("message", "") for part in case if part.tag in {"failure", "error", "skipped"}
    )
