"""Images rotated, shifted and mirrored by interpolation, and their class sums, in plain PyTorch.

This is the oracle of the Triton and the Numba form. Interpolation kernels, by `method`:

- 'cubic': cubic o-Moms on prefiltered samples, 4 x 4 taps (Blu, Thevenaz and Unser 2001, "MOMS: maximal-order
  interpolation of minimal support"), the most accurate form of four taps a side. At 0.25 to 0.30 cycles per pixel its
  error is 0.9 %, that of the cubic B-spline 2.4 %, of Keys' cubic 10 %, of linear interpolation 25 %.
- 'quadratic': EMAN2's six-tap form (`Util::quadri`), for parity with `rot_shift2D`
- 'linear': bilinear

Values outside the box, by `boundary`: 'zero'; 'mean' of the image; 'cyclic'; 'background', EMAN2's rule: a point
sampled outside the box takes the value that its pixel had before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# From images, prefilter matrix and boundary to padded samples and means: `padded`, or a faster form of it.
Pad = Callable[[Tensor, Tensor | None, str], tuple[Tensor, Tensor | None]]

METHODS = ("cubic", "quadratic", "linear")
BOUNDARIES = ("zero", "mean", "cyclic", "background")
# Boundaries under which taps wrap around.
CYCLIC = ("cyclic", "background")

# Rounding must not throw the first column out of the box under an exact quarter turn.
EDGE_PX = 1e-4
# Samples of the cubic o-Moms at 0 and at +-1: what the prefilter undoes.
OMOMS_CENTRE, OMOMS_SIDE = 13 / 21, 4 / 21
# Samples are padded by this much all round. A coordinate clamped to [-3, n + 1] then has all its taps in memory, and
# those of a clamped one are all padding.
PAD = 4
# Columns of the pose table that compiled forms read, one row a particle.
TABLE_COLUMNS = ("cos", "sin", "start_x", "start_y", "mirror", "weight", "offset")
# Rounded samples are as large as this at most; half precision ends at 65,504.
LARGEST_HALF = 2.0**15
# Temporaries of about a megabyte stay in a core's cache; a GPU needs enough work for a launch instead.
_CPU_CHUNK_PIXELS = 1 << 18
_GPU_CHUNK_PIXELS = 1 << 24


@dataclass(frozen=True)
class Samples:
    """Images prefiltered for interpolation; accepted in place of images by the functions of `ralib.kernels`.

    Attributes
    ----------
    values : Tensor of shape (b, w, w)
        Values with a border, w = n + 2 PAD: zeros or wrapped around; prefiltered for 'cubic'. int32: `rounded`.
    mean : Tensor of shape (b,) or None
        Mean subtracted from each image, where the boundary rule needs it.
    method, boundary : str
        What the values were made for; these take precedence over a call's arguments.
    scale : Tensor of shape (b,) or None
        What rounded values are to be multiplied by: 1 but for images of values that half precision does not have.
    """

    values: Tensor
    mean: Tensor | None
    method: str
    boundary: str
    scale: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice | Tensor) -> Samples:
        mean, scale = (None if table is None else table[part] for table in (self.mean, self.scale))
        return replace(self, values=self.values[part], mean=mean, scale=scale)

    @property
    def box(self) -> int:
        """Image size n, pixels."""
        return int(self.values.shape[-1]) - 2 * PAD

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values.device

    def rounded(self) -> Samples:
        """The same in half precision: each value and the next of its row as one word, so that a load has two taps.

        Only 'cubic' has such a form; others stay as they are.
        """
        if self.scale is not None or self.method != "cubic":
            return self
        low, high = self.values.flatten(1).aminmax(dim=1)
        scale = torch.exp2(torch.log2(torch.maximum(-low, high).float() / LARGEST_HALF).ceil().clamp_min(0))
        words = torch.empty_like(self.values, dtype=torch.int32)
        step = max(1, chunk_pixels(self) // self.box**2)
        for some, own, out in zip(self.values.split(step), scale.split(step), words.split(step), strict=True):
            half = (some / own[:, None, None]).half()
            out.copy_(torch.stack([half, half.roll(-1, 2)], dim=3).view(torch.int32)[..., 0])
        return replace(self, values=words, scale=scale)

    def weighted(self, weights: Tensor | None) -> Tensor | None:
        """Factors (b,) of values as they are stored, of those of particles; None where all are 1."""
        if self.scale is None:
            return weights
        return self.scale if weights is None else weights * self.scale

    def single(self) -> Samples:
        """The same, one value a word."""
        if self.scale is None:
            return self
        values = self.values.view(torch.float16)[..., ::2].float()
        return replace(self, values=values * self.scale[:, None, None], scale=None)


def rotate_shift_images(
    images: Tensor | Samples,
    psi_deg: Tensor,
    origin_xy_px: Tensor,
    mirror: Tensor,
    *,
    method: str = "cubic",
    boundary: str = "zero",
) -> Tensor:
    """Transform particles into the frame of their class average, p_ref = M(R(psi)(p + origin)).

    Parameters
    ----------
    images : Tensor or Samples of shape (b, n, n)
        Particle images, or their `interpolation_samples`.
    psi_deg : Tensor of shape (b,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (b, 2)
        Origin shift (x, y), pixels.
    mirror : Tensor of shape (b,)
        True for a mirrored particle.
    method : str, default 'cubic'
        Interpolation; see the module's list.
    boundary : str, default 'zero'
        Value outside the box; see the module's list.

    Returns
    -------
    Tensor of shape (b, n, n)
        Transformed images, float64 for float64 images and float32 otherwise.

    Raises
    ------
    ValueError
        If the method or boundary is unknown.
    """
    out = empty_like(images)
    for part, samples in sampled_chunks(images, method, boundary, chunk_pixels(images)):
        out[part] = resample(samples, psi_deg[part], origin_xy_px[part], mirror[part])
    return out


def interpolation_samples(
    images: Tensor, *, method: str = "cubic", boundary: str = "zero", pad: Pad | None = None
) -> Samples:
    """Prefilter images that are interpolated many times; takes (1 + 8 / n)^2 times the images' memory.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.
    method : str, default 'cubic'
        Interpolation; see the module's list.
    boundary : str, default 'zero'
        Value outside the box; see the module's list.
    pad : Pad, optional
        Another form of `padded`.

    Returns
    -------
    Samples
        The samples.
    """
    n = images.shape[-1] + 2 * PAD
    values = torch.empty(len(images), n, n, dtype=compute_dtype(images), device=images.device)
    means = []
    for part, samples in sampled_chunks(images, method, boundary, chunk_pixels(images), pad):
        values[part] = samples.values
        means += [] if samples.mean is None else [samples.mean]
    return Samples(values, torch.cat(means) if means else None, method, boundary)


def empty_like(images: Tensor | Samples) -> Tensor:
    """Allocate the output of `rotate_shift_images`."""
    n = images.box if isinstance(images, Samples) else images.shape[-1]
    return torch.empty(len(images), n, n, dtype=compute_dtype(images), device=images.device)


def check_options(method: str, boundary: str) -> None:
    """Check the names of an interpolation method and a boundary rule.

    Parameters
    ----------
    method : str
        Interpolation.
    boundary : str
        Value outside the box.

    Raises
    ------
    ValueError
        If one of them is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown: choose one of {', '.join(METHODS)}")
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary {boundary!r} is unknown: choose one of {', '.join(BOUNDARIES)}")


def compute_dtype(images: Tensor | Samples) -> torch.dtype:
    """Return the type computed in: float64 for float64 images, float32 for all others."""
    dtype = images.values.dtype if isinstance(images, Samples) else images.dtype
    return torch.float64 if dtype == torch.float64 else torch.float32


def chunk_pixels(images: Tensor | Samples) -> int:
    """Return how many pixels are processed at a time on the images' device."""
    return _CPU_CHUNK_PIXELS if images.device.type == "cpu" else _GPU_CHUNK_PIXELS


def sampled_chunks(
    images: Tensor | Samples, method: str, boundary: str, pixels: int, pad: Pad | None = None
) -> Iterator[tuple[slice, Samples]]:
    """Iterate over the images in chunks, with their samples.

    Parameters
    ----------
    images : Tensor or Samples of shape (b, n, n)
        Images, or their samples.
    method : str
        Interpolation; see the module's list.
    boundary : str
        Value outside the box; see the module's list.
    pixels : int
        Pixels of a chunk, about.
    pad : Pad, optional
        Another form of `padded`.

    Yields
    ------
    tuple
        Slice of the first axis, and the samples of those images.
    """
    if isinstance(images, Samples):
        step = max(1, pixels // images.box**2)
        for start in range(0, len(images), step):
            yield slice(start, start + step), images[start : start + step]
        return
    check_options(method, boundary)
    step = max(1, pixels // images.shape[-1] ** 2)
    matrix = prefilter_matrix(images, boundary) if method == "cubic" else None
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        yield part, Samples(*(pad or padded)(images[part], matrix, boundary), method, boundary)


def resample(samples: Samples, psi_deg: Tensor, origin_xy_px: Tensor, mirror: Tensor) -> Tensor:
    """Transform one chunk of particles; see `rotate_shift_images`.

    Parameters
    ----------
    samples : Samples
        Samples of b particles.
    psi_deg : Tensor of shape (b,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (b, 2)
        Origin shift, pixels.
    mirror : Tensor of shape (b,)
        True for a mirrored particle.

    Returns
    -------
    Tensor of shape (b, n, n)
        Transformed images.
    """
    n, values = samples.box, samples.single().values
    x, y = sample_points(psi_deg.to(values), origin_xy_px.to(values), mirror, n, samples.boundary)
    turned = _interpolate(values, x.clamp_(-3.0, n + 1.0), y.clamp_(-3.0, n + 1.0), samples.method)
    return turned if samples.mean is None else turned.add_(samples.mean[:, None, None])


def pose_table(
    samples: Samples, psi_deg: Tensor, origin_xy_px: Tensor, mirror: Tensor, weights: Tensor | None
) -> Tensor:
    """Compute the coefficients with which compiled kernels map the class frame onto each particle.

    Parameters
    ----------
    samples : Samples
        Samples of b particles.
    psi_deg : Tensor of shape (b,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (b, 2)
        Origin shift, pixels.
    mirror : Tensor of shape (b,)
        True for a mirrored particle.
    weights : Tensor of shape (b,) or None
        Factor of each particle; 1 by default.

    Returns
    -------
    Tensor of shape (b, 7)
        TABLE_COLUMNS of each particle, in the samples' type.
    """
    dtype, centre = compute_dtype(samples), samples.box // 2
    psi = torch.deg2rad(psi_deg.to(dtype))
    origin = origin_xy_px.to(dtype)
    nothing, one = torch.zeros_like(psi), torch.ones_like(psi)
    weight = samples.weighted(weights)
    columns = {
        "cos": psi.cos(),
        "sin": psi.sin(),
        "start_x": centre - origin[:, 0],
        "start_y": centre - origin[:, 1],
        "mirror": mirror.to(dtype),
        "weight": one if weight is None else weight.to(dtype),
        "offset": nothing if samples.mean is None else samples.mean,
    }
    return torch.stack([columns[name] for name in TABLE_COLUMNS], dim=1)


def sample_points(
    psi_deg: Tensor, origin_xy_px: Tensor, mirror: Tensor, n: int, boundary: str
) -> tuple[Tensor, Tensor]:
    """Compute where each pixel of the class frame lies in its particle: p = R(-psi) M p_ref - origin.

    A mirror keeps column 0 of an even box.

    Parameters
    ----------
    psi_deg : Tensor of shape (b,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (b, 2)
        Origin shift, pixels.
    mirror : Tensor of shape (b,)
        True for a mirrored particle.
    n : int
        Image size, pixels.
    boundary : str
        'cyclic' wraps coordinates around; 'background' keeps the pixel's own place where it leaves the box.

    Returns
    -------
    Tensor of shape (b, n, n)
        Index coordinate x.
    Tensor of shape (b, n, n)
        Index coordinate y.
    """
    centre = n // 2
    index = torch.arange(n, device=psi_deg.device)
    column = torch.where(mirror[:, None], (2 * centre - index) % n, index).to(psi_deg.dtype)[:, None, :]
    row = index.to(psi_deg.dtype)[None, :, None]
    psi = torch.deg2rad(psi_deg)[:, None, None]
    cos, sin = psi.cos(), psi.sin()
    origin_x, origin_y = origin_xy_px[:, 0, None, None], origin_xy_px[:, 1, None, None]
    x = cos * (column - centre) + (sin * (row - centre) + (centre - origin_x))
    y = -sin * (column - centre) + (cos * (row - centre) + (centre - origin_y))
    if boundary == "cyclic":
        x, y = x - n * torch.floor(x / n), y - n * torch.floor(y / n)
    if boundary == "background":
        inside = (x > -EDGE_PX) & (x < n) & (y > -EDGE_PX) & (y < n)
        x, y = torch.where(inside, x, column), torch.where(inside, y, row)
    return x, y


def padded(images: Tensor, matrix: Tensor | None, boundary: str) -> tuple[Tensor, Tensor | None]:
    """Add the border to images and prefilter them: values and means of `Samples`.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.
    matrix : Tensor of shape (n + 2 PAD, n) or None
        The prefilter's; see `prefilter_matrix`. None: not prefiltered.
    boundary : str
        Value outside the box.

    Returns
    -------
    Tensor of shape (b, n + 2 PAD, n + 2 PAD)
        Values.
    Tensor of shape (b,) or None
        Means subtracted, for boundary 'mean'.
    """
    images = images.to(compute_dtype(images))
    mean = None
    if boundary == "mean":
        mean = images.mean(dim=(-2, -1))
        images = images - mean[:, None, None]
    if matrix is not None:
        return matrix @ (images @ matrix.T), mean
    mode = "circular" if boundary in CYCLIC else "constant"
    return torch.nn.functional.pad(images[:, None], (PAD,) * 4, mode=mode)[:, 0], mean


def prefilter_matrix(images: Tensor, boundary: str) -> Tensor:
    """Return the matrix from samples along one axis to the cubic o-Moms coefficients that reproduce them exactly.

    It is the inverse of the matrix with OMOMS_CENTRE on its diagonal and OMOMS_SIDE beside it, in closed form so that
    it is made on the device: powers of its pole, reflected with opposite sign one pixel outside the box (where the
    value is zero), or wrapped around the box (cyclic).

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images, for their size, type and device.
    boundary : str
        Value outside the box.

    Returns
    -------
    Tensor of shape (n + 2 PAD, n)
        The matrix.
    """
    n = images.shape[-1]
    pole = (math.sqrt(OMOMS_CENTRE**2 - 4 * OMOMS_SIDE**2) - OMOMS_CENTRE) / (2 * OMOMS_SIDE)
    scale = 1 / (OMOMS_CENTRE + 2 * OMOMS_SIDE * pole)
    sample = torch.arange(n, device=images.device)
    if boundary in CYCLIC:
        coefficient = torch.arange(-PAD, n + PAD, device=images.device)
        distance = (coefficient[:, None] - sample).remainder(n).double()
        matrix = (pole**distance + pole ** (n - distance)) * (scale / (1 - pole**n))
    else:
        first, last = torch.minimum(sample[:, None], sample).double(), torch.maximum(sample[:, None], sample).double()
        ends = (1 - pole ** (2 * first + 2)) * (1 - pole ** (2 * n - 2 * last))
        matrix = pole ** (last - first) * ends * (scale / (1 - pole ** (2 * n + 2)))
        matrix = torch.nn.functional.pad(matrix, (0, 0, PAD, PAD))
    return matrix.to(compute_dtype(images))


def _interpolate(samples: Tensor, x: Tensor, y: Tensor, method: str) -> Tensor:
    """Padded samples (b, w, w) at box coordinates x, y (b, n, n) within [-3, n + 1]."""
    b, width = samples.shape[:2]
    x0, y0 = x.floor(), y.floor()
    t, u = x.sub_(x0), y.sub_(y0)
    if width * width > 1 << 24:  # float32 holds smaller addresses exactly
        x0, y0 = x0.double(), y0.double()
    first = torch.add(x0, y0, alpha=width).add_((PAD - 1) * (width + 1))
    taps = _Taps(samples.reshape(b, width * width), first.long().view(b, -1), width, x.shape)
    if method == "quadratic":
        return _quadratic(taps, t, u)
    weights = _cubic_weights if method == "cubic" else _linear_weights
    return _separable(taps, weights(t), weights(u))


class _Taps:
    """Neighbours of every sampled point, by their offset from floor(x), floor(y)."""

    def __init__(self, samples: Tensor, first: Tensor, width: int, shape: torch.Size) -> None:
        self.samples, self.first, self.width, self.shape = samples, first, width, shape

    def __call__(self, dx: int, dy: int) -> Tensor:
        # One index serves all taps: the offset moves the start of the view instead of every index.
        view = self.samples[:, (dy + 1) * self.width + (dx + 1) :]
        return view.gather(1, self.first).view(self.shape)


def _separable(taps: _Taps, weight_x: dict[int, Tensor], weight_y: dict[int, Tensor]) -> Tensor:
    """Sum over taps of weight_y weight_x value, row by row of taps."""
    total = torch.zeros_like(weight_x[0])
    for dy, wy in weight_y.items():
        row = torch.zeros_like(total)
        for dx, wx in weight_x.items():
            row.addcmul_(wx, taps(dx, dy))
        total.addcmul_(wy, row)
    return total


def _linear_weights(t: Tensor) -> dict[int, Tensor]:
    return {0: 1 - t, 1: t}


def _cubic_weights(t: Tensor) -> dict[int, Tensor]:
    """Cubic o-Moms at distances 1 + t, t, 1 - t, 2 - t. In place, for this is a tenth of the time of a CPU run."""
    s = 1 - t
    before = (s * s).mul_(1 / 6).add_(1 / 42).mul_(s)
    after = (t * t).mul_(1 / 6).add_(1 / 42).mul_(t)
    here = (t / 2).sub_(1).mul_(t).add_(1 / 14).mul_(t).add_(OMOMS_CENTRE)
    last = (before + here).add_(after).neg_().add_(1)
    return {-1: before, 0: here, 1: last, 2: after}


def _quadratic(taps: _Taps, t: Tensor, u: Tensor) -> Tensor:
    """EMAN2's quadri: second differences along x and y and one mixed difference towards (+1, +1)."""
    centre = taps(0, 0)
    right, left = taps(1, 0).sub_(centre), taps(-1, 0).sub_(centre)
    below, above = taps(0, 1).sub_(centre), taps(0, -1).sub_(centre)
    mixed = taps(1, 1).sub_(centre).sub_(right).sub_(below)
    along_x = left.add_(right).mul_(0.5).mul_(t - 1).add_(right).addcmul_(u, mixed)
    along_y = above.add_(below).mul_(0.5).mul_(u - 1).add_(below)
    return centre.addcmul_(t, along_x).addcmul_(u, along_y)


def rotate_shift_sum(
    images: Tensor | Samples,
    psi_deg: Tensor,
    origin_xy_px: Tensor,
    mirror: Tensor,
    class_index: Tensor,
    n_classes: int,
    *,
    weights: Tensor | None = None,
    half_index: Tensor | None = None,
    out: Tensor | None = None,
    method: str = "cubic",
    boundary: str = "zero",
    rounded: bool = False,
) -> Tensor:
    """Sum the images of each class in the class frame; see `rotate_shift_images` for the transformation.

    Particles are added in their order, so that the result does not depend on how they are divided into chunks.

    Parameters
    ----------
    images : Tensor or Samples of shape (b, n, n)
        Particle images, or their `interpolation_samples`.
    psi_deg : Tensor of shape (b,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (b, 2)
        Origin shift (x, y), pixels.
    mirror : Tensor of shape (b,)
        True for a mirrored particle.
    class_index : Tensor of shape (b,)
        Class from 0, or -1 for a particle of no class.
    n_classes : int
        Number of classes k.
    weights : Tensor of shape (b,), optional
        Factor of each particle.
    half_index : Tensor of shape (b,), optional
        Half data set of each particle, 0 or 1.
    out : Tensor of shape (k, n, n) or (2, k, n, n), optional
        Running sums to add to; may be float64 for float32 images.
    method : str, default 'cubic'
        Interpolation; see the module's list.
    boundary : str, default 'zero'
        Value outside the box; see the module's list.
    rounded : bool, default False
        Whether interpolation samples pass through half precision; see `Samples.rounded`.

    Returns
    -------
    Tensor of shape (k, n, n), or (2, k, n, n) with `half_index`
        `out`, or new sums of the images' type.
    """
    row = sum_row(class_index, half_index, n_classes)
    sums = new_sums(images, half_index, n_classes) if out is None else out
    rows_of_sums = sums.view(-1, *sums.shape[-2:])
    for part, samples in sampled_chunks(images, method, boundary, chunk_pixels(images)):
        turned = resample(samples.rounded() if rounded else samples, psi_deg[part], origin_xy_px[part], mirror[part])
        if weights is not None:
            turned *= weights[part].to(turned)[:, None, None]
        member = row[part] < len(rows_of_sums)
        rows_of_sums.index_add_(0, row[part][member], turned[member].to(sums.dtype))
    return sums


def new_sums(images: Tensor | Samples, half_index: Tensor | None, n_classes: int) -> Tensor:
    """Allocate zero sums for `rotate_shift_sum`.

    Parameters
    ----------
    images : Tensor or Samples of shape (b, n, n)
        Images, for their size, type and device.
    half_index : Tensor of shape (b,) or None
        Half data set of each particle, or None.
    n_classes : int
        Number of classes k.

    Returns
    -------
    Tensor of shape (k, n, n), or (2, k, n, n) with `half_index`
        Zeros.
    """
    n = images.box if isinstance(images, Samples) else images.shape[-1]
    halves = () if half_index is None else (2,)
    return torch.zeros(*halves, n_classes, n, n, dtype=compute_dtype(images), device=images.device)


def sum_row(class_index: Tensor, half_index: Tensor | None, n_classes: int) -> Tensor:
    """Return the row of each particle in the flattened sums: half * n_classes + class.

    Parameters
    ----------
    class_index : Tensor of shape (b,)
        Class from 0, or -1 for a particle of no class.
    half_index : Tensor of shape (b,) or None
        Half data set of each particle, or None.
    n_classes : int
        Number of classes k.

    Returns
    -------
    Tensor of shape (b,)
        Rows; the row after the last for class -1.
    """
    row = class_index.long()
    n_rows = n_classes
    if half_index is not None:
        row = row + half_index.long() * n_classes
        n_rows = 2 * n_classes
    return torch.where(class_index < 0, n_rows, row)
