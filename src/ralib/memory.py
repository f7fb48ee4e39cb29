"""How much memory may still be taken: of the device, of the machine, and under the limits of a container or a queue."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take on the device; main memory is shared among a machine's ranks."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    room = min(psutil.virtual_memory().available, *_limited_rooms(), 2**62)
    return room // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _limited_rooms() -> Iterator[int]:
    """Bytes left under each limit on this process and those around it: control groups, version 2 or 1."""
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
                room = _room(level, limit, used)
                if room is not None:
                    yield room


def _room(group: Path, limit: str, used: str) -> int | None:
    """Bytes left in one group; files that are merely cached do not count as used."""
    try:
        most, now = (group / limit).read_text().strip(), int((group / used).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(statistics.get("total_inactive_file", statistics.get("inactive_file", "0")))
        return None if most == "max" else max(0, int(most) - now + cached)
    except (OSError, ValueError):  # no such controller here
        return None
