"""From raw averages to the next references: SPARX's user functions, ref_ali2d among them, and half sums.

Follows user_functions.ref_ali2d and statistics.sum_oe (EMAN2 2.99).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.images.centering import center_2D
from ralib.images.masks import mean_under
from ralib.sparx.filters import filt_tanl, fit_tanh
from ralib.sparx.resample import rot_shift2D
from ralib.sparx.transforms import Params
from ralib.types import RalibError

UserFunction = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]
CUTOFF_RANGE_PER_PX = (0.12, 0.4)
LARGEST_FALL_OFF = 0.2


@dataclass
class HalfSums:
    """Sums of transformed particles of even and odd number.

    Attributes
    ----------
    images : Tensor of shape (2, k, n, n)
        Sums, float64.
    members : Tensor of shape (2, k)
        Numbers of particles, float64.
    """

    images: Tensor
    members: Tensor

    @classmethod
    def empty(cls, k: int, n: int, device: torch.device) -> HalfSums:
        """Allocate zero sums of k classes of n x n pixels.

        Parameters
        ----------
        k : int
            Number of classes.
        n : int
            Image size, pixels.
        device : torch.device
            Where the sums are.

        Returns
        -------
        HalfSums
            The sums.
        """
        return cls(
            torch.zeros(2, k, n, n, dtype=torch.float64, device=device),
            torch.zeros(2, k, dtype=torch.float64, device=device),
        )

    def add(self, index: Tensor, images: Tensor, params: Params, class_index: Tensor) -> None:
        """Add particles transformed onto their class's average by SPARX's quadratic rot_shift2D.

        Parameters
        ----------
        index : Tensor of shape (b,)
            Numbers of the particles.
        images : Tensor of shape (b, n, n)
            Images.
        params : Params of shape (b, 4)
            Their rows.
        class_index : Tensor of shape (b,)
            Their classes.
        """
        self.add_images(index, rot_shift2D(images, params), class_index)

    def add_images(self, index: Tensor, images: Tensor, class_index: Tensor) -> None:
        """Add images unchanged; even numbers go to the first half.

        Parameters
        ----------
        index : Tensor of shape (b,)
            Numbers of the particles.
        images : Tensor of shape (b, n, n)
            Images.
        class_index : Tensor of shape (b,)
            Their classes.
        """
        # A matrix product, not a scatter: the same bits on every device, whatever the order of the threads.
        one_hot = torch.nn.functional.one_hot(
            (index % 2) * self.images.shape[1] + class_index, self.members.numel()
        ).double()
        self.images += (one_hot.T @ images.double().flatten(1)).view(self.images.shape)
        self.members += one_hot.sum(dim=0).view(self.members.shape)


def ref_ali2d(raw: Tensor, mask: Tensor, frequency_per_px: Tensor, frc: Tensor, center: int) -> tuple[Tensor, Tensor]:
    """Make references by SPARX's built-in user function: mask, tanh low-pass fitted to the FRC, centring.

    Parameters
    ----------
    raw : Tensor of shape (k, n, n)
        Averages.
    mask : Tensor of shape (n, n)
        Mask.
    frequency_per_px : Tensor of shape (m,)
        Frequencies of the FRC, cycles per pixel.
    frc : Tensor of shape (k, m)
        FRC curves.
    center : int
        Centring method.

    Returns
    -------
    Tensor of shape (k, n, n)
        References.
    Tensor of shape (k, 2)
        Offset removed from each, pixels.
    """
    cutoff, fall_off = fit_tanh(frequency_per_px, frc)
    masked = (raw - mean_under(raw, mask)[:, None, None].to(raw.dtype)) * mask
    filtered = filt_tanl(masked, cutoff.clamp(*CUTOFF_RANGE_PER_PX), fall_off.clamp_max(LARGEST_FALL_OFF))
    return center_2D(filtered, max(center, 0), reference=mask)


def prepare(
    function: UserFunction | None,
    raw: Tensor,
    mask: Tensor,
    curves: tuple[Tensor, Tensor],
    center: int,
) -> tuple[Tensor, Tensor]:
    """Make references by ref_ali2d, or by the user's function (average, mask, frc), class by class.

    The user's function returns a reference, or (reference, (dx, dy) by which it moved it).

    Parameters
    ----------
    function : UserFunction or None
        The user's function, or None.
    raw : Tensor of shape (k, n, n)
        Averages.
    mask : Tensor of shape (n, n)
        Mask.
    curves : tuple of Tensor
        Frequencies (m,) and FRC curves (k, m).
    center : int
        Centring method.

    Returns
    -------
    Tensor of shape (k, n, n)
        References.
    Tensor of shape (k, 2)
        Offset removed from each, pixels.
    """
    if function is None:
        return ref_ali2d(raw, mask, *curves, center)
    references, off = [], []
    hard_mask = mask.cpu().numpy()
    for image, curve in zip(raw.cpu().numpy(), curves[1].cpu().numpy(), strict=True):
        answer = function(image.copy(), hard_mask.copy(), curve.copy())
        reference, move = answer if isinstance(answer, tuple) else (answer, (0.0, 0.0))
        reference = np.asarray(reference, dtype=np.float32)
        if reference.shape != image.shape or not np.isfinite(reference).all():
            raise RalibError(
                f"`user_function` returned {reference.shape}, not a finite image of {image.shape}: correct it"
            )
        references.append(torch.from_numpy(reference))
        off.append([-float(move[0]), -float(move[1])])
    return torch.stack(references).to(raw), torch.tensor(off, dtype=torch.float64, device=raw.device)
