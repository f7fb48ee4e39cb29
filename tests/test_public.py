"""The public names: each is there, and none is forgotten in one of the three lists."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import ralib


@pytest.mark.parametrize("name", ralib.__all__)
def test_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(ralib, name).__doc__


def test_public_names_agree_in_all_lists() -> None:
    assert set(ralib.__all__) == set(ralib._MODULE_OF)
    assert set(dir(ralib)) == set(ralib.__all__)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ralib.nothing


def test_import_ralib_does_not_load_torch() -> None:
    code = "import sys, ralib; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_pose_functions_take_mirrors_of_0_and_1() -> None:
    """EMAN2's own tables hold them: they passed one function and failed in the next."""
    psi, origin = torch.tensor([10.0, 20.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    number, truth = torch.tensor([0, 1]), torch.tensor([False, True])
    for function in (
        ralib.eman2_to_pose,
        ralib.pose_to_eman2,
        lambda *pose: ralib.invert(pose),
        lambda *pose: ralib.compose(pose, pose),
    ):
        for given, expected in zip(function(psi, origin, number), function(psi, origin, truth), strict=True):
            assert given.dtype == expected.dtype
            assert torch.equal(given, expected)
