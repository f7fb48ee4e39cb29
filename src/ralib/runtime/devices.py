"""The device that a user names for a computation."""

from __future__ import annotations

import torch

from ralib.types import RalibError


def computing_device(device: torch.device | str, *, option: str = "device") -> torch.device:
    """Return the device named by `cpu`, `cuda` or `cuda:K`, after checking that it is there.

    Parameters
    ----------
    device : torch.device or str
        The device, or its name.
    option : str, default 'device'
        The parameter that it was given by, for errors.

    Returns
    -------
    torch.device
        The device.

    Raises
    ------
    RalibError
        If it is no such device, or PyTorch finds no such GPU.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise RalibError(f"`{option}` {str(device)!r} is not a device: use 'cpu', 'cuda' or 'cuda:K'")
    if found.type == "cpu":
        return found
    n_gpus = torch.cuda.device_count()
    if n_gpus == 0:
        raise RalibError(f"`{option}` {str(device)!r}: PyTorch finds no GPU here: use 'cpu', or see 'ralib info'")
    if (found.index or 0) >= n_gpus:
        raise RalibError(f"`{option}` {str(device)!r}: there are {n_gpus} GPUs, numbered from 0: use a smaller number")
    return found
