"""Images as the rows of a matrix that need not fit in memory: read in chunks, centred, on the computing device.

The estimators pass over such rows a few times and hold one chunk at a time, unless all of them fit on the device, where
they are then read once and kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.images.array_interop import as_tensor
from ralib.runtime.devices import computing_device
from ralib.types import ImageSource, ParticleSet, RalibError

CHUNK_BYTES = 64 * 2**20
CPU_CACHE_BYTES = 4 * 2**30


class ImageRows:
    """n images of h x w pixels as rows of h * w numbers.

    Parameters
    ----------
    source : Any
        Images (n, h, w), or rows (n, h * w) with `image_shape`, a tensor, an `ImageSource` or a `ParticleSet`.
    device : torch.device or str, default 'cpu'
        Where the chunks are put.
    dtype : torch.dtype, default torch.float32
        Type of the chunks; float64 for the exact solvers on small data.
    image_shape : tuple of int, optional
        Height and width where the source is a matrix of rows.
    """

    def __init__(
        self,
        source: Any,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        image_shape: tuple[int, int] | None = None,
    ) -> None:
        images = source.images if isinstance(source, ParticleSet) else source
        self.device, self.dtype = computing_device(device), dtype
        self._source: ImageSource | None = None
        self._array: Tensor | None = None
        if isinstance(images, ImageSource):
            self._source = images
            self.n_rows = images.n_images
            self.image_shape = (images.box, images.box)
        else:
            self._array = real_images(images)
            self.image_shape = _image_shape(self._array, image_shape)
            self.n_rows = len(self._array)
        if self.n_rows == 0:
            raise RalibError("there are no images: give at least one")
        self._cached: list[Tensor] | None = None

    @property
    def n_pixels(self) -> int:
        """Number of pixels of an image."""
        return math.prod(self.image_shape)

    @property
    def chunk_rows(self) -> int:
        """Number of rows in a chunk."""
        return max(1, CHUNK_BYTES // (self.n_pixels * self.dtype.itemsize))

    def chunks(self) -> Iterator[Tensor]:
        """Iterate over chunks of rows (b, h * w) in order, on the device; the last may be shorter."""
        if self._cached is not None:
            yield from self._cached
            return
        keep: list[Tensor] | None = [] if self._fits() else None
        for start in range(0, self.n_rows, self.chunk_rows):
            chunk = self._read(start, min(start + self.chunk_rows, self.n_rows))
            if keep is not None:
                keep.append(chunk)
            yield chunk
        self._cached = keep

    def mean(self) -> Tensor:
        """Return the mean row (h * w,), summed in double precision."""
        total = torch.zeros(self.n_pixels, dtype=torch.float64, device=self.device)
        for chunk in self.chunks():
            total += chunk.sum(dim=0, dtype=torch.float64)
        mean = total / self.n_rows
        if not bool(torch.isfinite(mean).all()):
            raise RalibError("the images hold NaN or infinite pixels: leave those particles out, or repair them")
        return mean.to(self.dtype)

    def _read(self, start: int, stop: int) -> Tensor:
        if self._source is not None:
            rows = torch.from_numpy(self._source.read(np.arange(start, stop)))
        else:
            assert self._array is not None
            rows = self._array[start:stop]
        return rows.reshape(stop - start, -1).to(device=self.device, dtype=self.dtype)

    def _fits(self) -> bool:
        """Whether all rows may stay on the device: a third of a GPU's free memory, 4 GiB on a CPU."""
        needed = self.n_rows * self.n_pixels * self.dtype.itemsize
        if self.device.type == "cuda":
            return needed < torch.cuda.mem_get_info(self.device)[0] // 3
        return needed < CPU_CACHE_BYTES


def real_images(images: Any) -> Tensor:
    """Return images as a tensor that NumPy can hold too: real numbers, without gradients.

    Parameters
    ----------
    images : Any
        Array of any library, or a list of arrays.

    Returns
    -------
    Tensor
        The images, over the same memory where possible; not to be written to.

    Raises
    ------
    RalibError
        If they are not real numbers.
    """
    kind = str(getattr(images, "dtype", "")).removeprefix("torch.")
    if kind.startswith("complex"):
        raise RalibError(f"images must be real numbers, not {kind}: give their real or absolute values")
    tensor = as_tensor(images, "the stack of images").detach()
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # NumPy has no bfloat16


def _image_shape(array: Tensor, image_shape: tuple[int, int] | None) -> tuple[int, int]:
    """(h, w) of images (n, h, w); of rows as given, else a square, else a single column of pixels."""
    if array.ndim == 3:
        return int(array.shape[1]), int(array.shape[2])
    if array.ndim != 2:
        raise RalibError(f"images of shape {tuple(array.shape)}: give (n, h, w) images or (n, h * w) rows")
    n_pixels = array.shape[1]
    if image_shape is not None:
        if math.prod(image_shape) != n_pixels:
            raise RalibError(f"rows of {n_pixels} pixels are no images of {image_shape}: give a fitting image_shape")
        return image_shape
    side = math.isqrt(n_pixels)
    return (side, side) if side * side == n_pixels else (n_pixels, 1)
