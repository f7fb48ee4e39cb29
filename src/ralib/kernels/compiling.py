"""Triton's compiler, loaded before there is a kernel to compile, and a function that it calls before every kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from triton import knobs


def before_compiling(function: Callable[[str, str], object]) -> None:
    """From now on, call a function before a kernel is compiled, or read from Triton's cache.

    Parameters
    ----------
    function : Callable[[str, str], object]
        Takes the kernel's name, and in words what it is compiled for.
    """

    def hook(*, fn: Any, key: str, **_: Any) -> bool:
        function(fn.name, key)
        return False  # and Triton goes on

    knobs.runtime.jit_cache_hook = hook


@triton.jit  # type: ignore[untyped-decorator]
def _nothing(_) -> None:  # type: ignore[no-untyped-def]
    """A kernel."""


def load_compiler() -> None:
    """Compile a kernel that does nothing for the present GPU, of which it takes no memory."""
    _nothing.warmup(torch.float32, grid=(1,))
