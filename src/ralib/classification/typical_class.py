"""The typical class: medians over classes that a few strong ones, such as those of gold beads, do not move."""

from __future__ import annotations

from torch import Tensor

from ralib.kernels.averages import ring_power


def weighted_median(values: Tensor, weight: Tensor) -> Tensor:
    """Return the median over classes weighted by their members; a few strong classes do not shift it.

    Parameters
    ----------
    values : Tensor of shape (k, r)
        A row for each class.
    weight : Tensor of shape (k,)
        Weight of each class.

    Returns
    -------
    Tensor of shape (r,)
        Median.
    """
    ordered, order = values.sort(dim=0)
    share = weight[order].cumsum(0) / weight.sum().clamp_min(1e-12)
    return ordered.gather(0, (share < 0.5).sum(0, keepdim=True).clamp_max(len(values) - 1))[0]


def typical_power(references: Tensor, members: Tensor) -> Tensor:
    """Return the ring power of the typical class, weighted by members.

    A mean would be dominated by strong junk: a bead has some hundred times the power of a molecule.

    Parameters
    ----------
    references : Tensor of shape (k, r, m)
        Angular orders of the references.
    members : Tensor of shape (k,)
        Number of members.

    Returns
    -------
    Tensor of shape (r,)
        Power.
    """
    return weighted_median(ring_power(references), members)
