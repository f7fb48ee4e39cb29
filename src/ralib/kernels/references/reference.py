"""What an alignment makes of its references in plain PyTorch: its definition, and the oracle of the Triton forms."""

from __future__ import annotations

import torch
from torch import Tensor

from ralib.kernels.complex_numbers import squared


def masked_unit_norm(references: Tensor, mask: Tensor) -> Tensor:
    """Make templates of references: mean 0 under the mask, masked, unit norm.

    Parameters
    ----------
    references : Tensor of shape (k, n, n)
        References.
    mask : Tensor of shape (n, n)
        Mask, 0 to 1.

    Returns
    -------
    Tensor of shape (k, n, n)
        Templates; a constant reference becomes zero.
    """
    mean = (references * mask).sum((1, 2), keepdim=True) / mask.sum()
    masked = (references - mean) * mask
    norm = torch.linalg.vector_norm(masked, dim=(1, 2), keepdim=True)
    return masked / norm.clamp(min=1e-20)


def nearest_filter(curve: Tensor, filters: Tensor) -> Tensor:
    """Find the filter nearest to each FRC curve, by least squares.

    A curve counts as 1 at frequency 0, and as zero from where it first falls below 0.1, as in SPARX's `fit_tanh`.

    Parameters
    ----------
    curve : Tensor of shape (k, r)
        FRC curves.
    filters : Tensor of shape (f, r)
        Responses of the filters.

    Returns
    -------
    Tensor of shape (k,)
        Number of the filter, int64.
    """
    alive = torch.cumprod((curve[:, 1:] >= 0.1).int(), dim=1)
    target = torch.cat([torch.ones_like(curve[:, :1]), curve[:, 1:].clamp(0, 1) * alive], dim=1)
    return torch.cdist(target, filters.to(target)).argmin(1)


def template_extent(spectrum: Tensor, weight: Tensor, radius: Tensor, share: Tensor) -> Tensor:
    """Measure how many angular orders and radii templates need.

    Parameters
    ----------
    spectrum : Tensor of shape (k, K, m)
        Angular orders of the templates.
    weight : Tensor of shape (K,)
        Quadrature weights of the radii.
    radius : Tensor of shape (K,)
        Radii, radians per pixel.
    share : Tensor of shape (2, 1)
        Shares of the power that may be left out, float64.

    Returns
    -------
    Tensor of shape (5,)
        For either share the orders, then the radii, that hold the rest of the power, each less 1; the mean square
        frequency, radians per pixel squared. Float64.
    """
    # In double precision: fractions of a millionth of the whole matter.
    power = (squared(spectrum) * weight[:, None]).sum(0).double()
    power = power / power.sum().clamp(min=1e-30)
    by_radius = power.sum(1)
    counts = [((1 - part.cumsum(0)) > share).sum(1) for part in (power.sum(0), by_radius)]
    return torch.cat([*counts, (by_radius * radius**2).sum()[None]])


def product_rows(orders: Tensor, weight: Tensor, largest: Tensor, out: Tensor) -> None:
    """Write the left factors of the grid's products, with entries of about 1 at most.

    Parameters
    ----------
    orders : Tensor of shape (m, 2, K, c)
        Real and imaginary parts of the angular orders of shifted templates; order 0 comes first.
    weight : Tensor of shape (K,)
        Quadrature weights of the radii.
    largest : Tensor of shape ()
        Largest sample of a template times the weight of its radius.
    out : Tensor of shape (m, c, f, 2 K)
        Where they are written: for real and imaginary part of the product with a template, and, where f is 4, with its
        mirror image, the factors of the particle's real, then imaginary parts.
    """
    # Both halves of the circle, and orders +m and -m, count; order 0 stands alone.
    scale = weight.repeat(len(orders), 1)
    scale[0] *= 0.5
    scale = scale / largest.clamp(min=1e-30)
    re, im = (orders * scale[:, None, :, None]).transpose(-1, -2).to(out.dtype).unbind(1)
    minus = -im
    four = [re, im, minus, re, re, minus, im, re]
    out.copy_(torch.cat(four[: 2 * out.shape[2]], dim=-1).view(out.shape))
