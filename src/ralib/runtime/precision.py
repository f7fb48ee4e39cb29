"""Single precision as PyTorch's default while the library computes, whatever the caller has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def in_single_precision() -> Iterator[None]:
    """Make tensors in single precision by default, within a context or a decorated function."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
