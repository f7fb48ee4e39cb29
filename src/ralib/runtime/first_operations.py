"""What PyTorch has to do on a GPU once, done in a thread while the program's other modules load.

The context of the GPU and the code of an operation are loaded with its first call: together .9 s, in which a small set
of particles is classified.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def begin() -> None:
    """Load PyTorch, and begin with its first operations on the GPU that is used by default, if there is one."""
    import torch

    if torch.cuda.is_available():
        threading.Thread(target=_on_gpu, name="ralib-first-operations", daemon=True).start()


def _on_gpu() -> None:
    import torch

    with contextlib.suppress(RuntimeError):  # what fails here fails again where it is needed
        first_operations(torch.device("cuda"))


def first_operations(device: torch.device) -> None:
    """Call the operations that preparing and classifying particles begin with, on next to nothing.

    Parameters
    ----------
    device : torch.device
        Where.
    """
    import torch

    with torch.inference_mode():
        images = torch.ones(2, 16, 16, device=device)
        spectra = torch.fft.rfft2(images)
        torch.fft.irfft2(spectra * spectra.conj(), s=(16, 16))
        rows = images.flatten(1)
        rows.half() @ rows.half().mT
        rows @ rows.mT
        (spectra.real.square() + spectra.imag).sum((1, 2)).sqrt()
        torch.where(rows.isfinite() & (rows > 0), rows - rows.mean(1, keepdim=True), 1.0).amax(1)
        rows.sort(dim=0)
        rows.median()
        rows.topk(2)
        rows.double().cumsum(1).exp().log()
        index = torch.arange(2, device=device)
        rows[index], rows.index_select(0, index), rows.gather(1, index[:, None]), rows[rows[:, 0] > 0]
        torch.zeros_like(rows).index_add_(0, index, rows)
        torch.bincount(index)
        torch.nonzero(torch.cat([rows, rows]).clamp_min(0.5) > 5)
        torch.polar(rows, torch.deg2rad(rows) % 1)
        rows.cpu()
