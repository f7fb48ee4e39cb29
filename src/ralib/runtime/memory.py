"""Available memory: of the device, of the machine, and within the limits of a container or a queue.

A plan made from it can still be too large, as other programs take memory too: `within_memory` then plans again.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from ralib.runtime.distributed import launcher_number
from ralib.types import RalibError

T = TypeVar("T")

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_SIZES = Path("/proc/self/statm")
OWN_GROUPS = Path("/proc/self/cgroup")


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on a device; ranks of a machine share its main memory.

    On a GPU this includes memory that PyTorch holds unused, and respects `torch.cuda.set_per_process_memory_fraction`.

    Parameters
    ----------
    device : torch.device
        The device.

    Returns
    -------
    int
        Bytes.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
        return max(0, min(free, total_memory(device) - torch.cuda.memory_allocated(device)))
    free = min(psutil.virtual_memory().available, *_left_by_control_groups(), *_left_by_process_limits(), 2**62)
    return free // launcher_number("LOCAL_WORLD_SIZE", 1)


def total_memory(device: torch.device) -> int:
    """Return the bytes of the GPU that this process may use at all."""
    index = torch.cuda.current_device() if device.index is None else device.index
    share = torch.cuda.get_per_process_memory_fraction(index)
    return int(share * torch.cuda.get_device_properties(device).total_memory)


def limit_device_memory(device: torch.device, most_bytes: int) -> None:
    """Limit the use of a GPU as on a smaller one; allocations beyond it fail.

    Parameters
    ----------
    device : torch.device
        The GPU.
    most_bytes : int
        The limit.
    """
    fraction = most_bytes / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, fraction), device)


def within_memory(work: Callable[[], T], make_room: Callable[[], bool]) -> T:
    """Run a function, and repeat it while memory runs out and more can be freed.

    Parameters
    ----------
    work : callable
        The function.
    make_room : callable
        Frees memory, or plans with less; returns whether that was possible.

    Returns
    -------
    T
        Result of `work`.

    Raises
    ------
    RalibError
        If memory runs out and no more can be freed.
    """
    while True:
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            reason = " ".join(str(error).split())
        # Only here are the tensors that the error's frames held free again.
        if not make_room():
            raise RalibError(
                f"out of memory, and nothing is left to shrink: {reason}; use fewer references or a smaller box"
            )


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports a lack of memory: PyTorch's own, its libraries', or Python's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    messages = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in messages)


def memory_left() -> str:
    """Return what is free, for a message: of main memory under all limits, and of the GPU in use."""
    amounts = f"{free_memory(torch.device('cpu')) / 2**20:,.0f} MiB of main memory"
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        amounts += f" and {free_memory(torch.device('cuda')) / 2**20:,.0f} MiB of the GPU"
    return f"{amounts} are free"


def _left_by_process_limits() -> Iterator[int]:
    """Bytes left under the limits that a shell or a queue set for this process alone (ulimit -v, ulimit -d)."""
    try:
        pages = [int(word) for word in OWN_SIZES.read_text().split()]
    except (OSError, ValueError):
        return
    for kind, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            yield max(0, limit - used * resource.getpagesize())


def _left_by_control_groups() -> Iterator[int]:
    """Bytes left under each limit on this process and those around it."""
    for group, limit, used in limited_groups():
        left = _left_in_group(group, limit, used)
        if left is not None:
            yield left


def limited_groups() -> Iterator[tuple[Path, str, str]]:
    """Yield the control groups of this process, version 2 or 1, and the names of their files for limit and use."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root, limit, used = CONTROL_GROUPS, "memory.max", "memory.current"
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            root, limit, used = CONTROL_GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        group = root / path.lstrip("/")
        for level in (group, *group.parents):
            if level.is_relative_to(root):
                yield level, limit, used


def _left_in_group(group: Path, limit: str, used: str) -> int | None:
    """Bytes left in one group; files that are merely cached do not count as used."""
    try:
        most, now = (group / limit).read_text().strip(), int((group / used).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(statistics.get("total_inactive_file", statistics.get("inactive_file", "0")))
        return None if most == "max" else max(0, int(most) - now + cached)
    except (OSError, ValueError):  # no such controller here
        return None
