"""Triton's compiler where there is nothing to launch, and a function that it calls before every kernel.

A kernel called with tensors of a CPU is then compiled for a GPU, and not launched: a process that compiles so needs
neither a GPU's memory nor a context on it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ralib import kernels

WARP = 32
"""Threads of a warp."""

CAPABILITY_MAJOR, CAPABILITY_MINOR, SHARED = 75, 76, 97
"""Attributes of a device: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_..., ..._MAX_SHARED_MEMORY_PER_BLOCK_OPTIN."""


@dataclass(frozen=True)
class Card:
    """What a kernel is compiled for.

    Attributes
    ----------
    capability : int
        Compute capability, as 90 for 9.0.
    shared_bytes : int
        Shared memory that a program may have.
    """

    capability: int
    shared_bytes: int

    @classmethod
    def first(cls) -> Card:
        """Return that of the first GPU, asked of its driver: PyTorch would load more than is needed to compile.

        Raises
        ------
        OSError
            If there is no driver.
        """
        driver, value = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        driver.cuInit(0)

        def attribute(number: int) -> int:
            driver.cuDeviceGetAttribute(ctypes.byref(value), number, 0)
            return value.value

        major, minor, shared_bytes = (attribute(number) for number in (CAPABILITY_MAJOR, CAPABILITY_MINOR, SHARED))
        return cls(10 * major + minor, shared_bytes)


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


def compile_only(card: Card) -> None:
    """From now on, let kernels be compiled for a card, and none be launched; compile a first one."""
    kernels.gpu_forms_only = True
    knobs.build.impl = _built
    driver.set_active(_Compiling(card))
    _nothing[(1,)](torch.zeros(1))


def shared_bytes() -> int:
    """Shared memory that a program may have on the present device; the interpreter has all it needs."""
    if knobs.runtime.interpret:
        return 2**30
    return _shared_bytes(driver.active.get_current_device())


@functools.cache
def _shared_bytes(device: int) -> int:
    """Ask a GPU, which takes a while."""
    return int(driver.active.utils.get_device_properties(device)["max_shared_mem"])


def _built(
    name: str, source: str, folder: str, library_folders: list[str], include_folders: list[str], libraries: list[str]
) -> str:
    """Compile what launches a kernel, as Triton does but without optimising it, which takes as long as the rest."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or "cc"
    module = os.path.join(folder, name + sysconfig.get_config_var("EXT_SUFFIX"))
    includes = [f"-I{f}" for f in (*include_folders, folder, sysconfig.get_paths()["include"])]
    found = [*(f"-L{f}" for f in library_folders), *(f"-l:{library}" for library in libraries)]
    command = [compiler, source, "-O0", "-shared", "-fPIC", "-Wno-psabi", "-o", module, *includes, *found]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return module


@triton.jit  # type: ignore[untyped-decorator]
def _nothing(_) -> None:  # type: ignore[no-untyped-def]
    """A kernel."""


class _Compiling:
    """A driver of Triton's that compiles for a card and launches nothing; it answers for its own utilities."""

    def __init__(self, card: Card) -> None:
        self._card, self.utils, self.launcher_cls = card, self, _Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._card.capability, WARP)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self._card.shared_bytes}

    def load_binary(self, *_: object) -> tuple[int, int, int, int, int]:
        return 0, 0, 0, 0, 2**31  # module, function, registers, spilled, threads that it may have


class _Launcher:
    """Compiles the launcher of a kernel, where Triton's has to be compiled, and does not launch."""

    def __init__(self, source: object, metadata: object) -> None:
        with contextlib.suppress(Exception):  # as without a GPU's libraries: whoever launches will see
            from triton.backends.nvidia.driver import CudaLauncher

            CudaLauncher(source, metadata)

    def __call__(self, *_: object) -> None:
        """Launch nothing."""
