"""Chunks of equal size: what is computed of a row then has the same bits whatever the rows beside it are.

Libraries of matrix products and sums choose another algorithm, which rounds otherwise, where there are more or fewer
rows. Where in a chunk a row lies changes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ralib.kernels.threads import on_cores

CORE_ROWS = 32
"""Rows at a time on a CPU, as images of a hundred pixels fill half of a core's cache."""


def on_gpu(values: Tensor) -> bool:
    """Return whether values are on a GPU."""
    return not values.is_cpu


def row_chunks(n: int, most: int, device: torch.device) -> list[slice | Tensor]:
    """Divide rows into chunks of one size.

    The last row is repeated until the last chunk has the size of all others; the caller takes the first n rows of the
    result.

    Parameters
    ----------
    n : int
        Number of rows.
    most : int
        Rows of a chunk.
    device : torch.device
        Where is computed.

    Returns
    -------
    list[slice | Tensor]
        Chunks.
    """
    if n == 0:
        return [slice(0, 0)]
    whole, rest = n - n % most, n % most
    chunks: list[slice | Tensor] = [slice(first, first + most) for first in range(0, whole, most)]
    return [*chunks, _last_rows(n, most, device)] if rest else chunks


@functools.lru_cache(maxsize=64)
def _last_rows(n: int, most: int, device: torch.device) -> Tensor:
    """The last chunk's rows (most,), of which the last is repeated."""
    return torch.arange(n - n % most, n - n % most + most, device=device).clamp_max(n - 1)


def gpu_chunks(n: int, most: int, device: torch.device) -> list[slice | Tensor]:
    """Divide rows as `row_chunks` does, but let the last chunk be smaller on a CPU; see `row_chunks`.

    For what a CPU computes row by row.
    """
    if device.type != "cpu":
        return row_chunks(n, most, device)
    return [slice(first, min(first + most, n)) for first in range(0, max(1, n), most)]


def on_rows(work: Callable[[Tensor], Tensor], rows: Tensor, most: int = CORE_ROWS) -> Tensor:
    """Compute something of each row: on a CPU of a few at a time, which stay in a core's cache, on a GPU of all.

    Parameters
    ----------
    work : callable
        Computes (b, ...) from rows (b, ...).
    rows : Tensor of shape (n, ...)
        The rows.
    most : int, default CORE_ROWS
        Rows at a time.

    Returns
    -------
    Tensor of shape (n, ...)
        The results.
    """
    if on_gpu(rows) or len(rows) <= most:
        return work(rows)
    return torch.cat(on_cores(work, rows.split(most)))


def in_gpu_chunks(work: Callable[[Tensor], Tensor], rows: Tensor, most: int) -> Tensor:
    """Compute something of each row: on a GPU in chunks of one size, on a CPU of a few at a time (`on_rows`).

    Parameters
    ----------
    work : callable
        Computes (b, ...) from rows (b, ...).
    rows : Tensor of shape (n, ...)
        The rows.
    most : int
        Rows of a chunk on a GPU.

    Returns
    -------
    Tensor of shape (n, ...)
        The results.
    """
    if not on_gpu(rows):
        return on_rows(work, rows)
    return torch.cat([work(rows[cut]) for cut in row_chunks(len(rows), most, rows.device)])[: len(rows)]
