"""A stack that was taken in and changes is noticed: grown, shrunk, replaced, removed."""

import os
from pathlib import Path

import numpy as np
import pytest

from ralib.io import open_stack, write_mrcs
from ralib.io.arrivals import Arrivals
from ralib.types import RalibError


def _write(path: Path, n_images: int, seed: int = 1) -> None:
    path.unlink(missing_ok=True)
    write_mrcs(path, np.random.default_rng(seed).normal(size=(n_images, 16, 16)).astype(np.float32), 3.0)
    os.utime(path, (n_images, n_images))


@pytest.mark.parametrize("now", [0, 3, 5, 8])
def test_arrivals_stack_changed_after_it_was_taken_in_is_refused(tmp_path: Path, now: int) -> None:
    stack = tmp_path / "a.mrcs"
    _write(stack, 5)
    arrivals = Arrivals(tmp_path)
    assert arrivals.look() is not None
    assert open_stack(stack).n_images == 5
    assert arrivals.look() is None
    stack.unlink() if now == 0 else _write(stack, now, seed=2)
    if now == 5:
        os.utime(stack, (77, 77))
    with pytest.raises(RalibError, match="taken in"):
        arrivals.look()


def test_arrivals_stack_copied_again_is_the_same(tmp_path: Path) -> None:
    stack = tmp_path / "a.mrcs"
    _write(stack, 5)
    arrivals = Arrivals(tmp_path)
    assert arrivals.look() is not None
    _write(stack, 5)
    os.utime(stack, (77, 77))
    assert arrivals.look() is None
