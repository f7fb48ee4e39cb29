"""The likelihood of a particle in a class at a pose, and the arrays that it is computed from.

A particle is modelled as F(k) = a CTF(k) A_c(posed) + noise of variance sigma^2(k). Up to a constant common to all
classes its log-likelihood is a x - a^2 p / 2 with the cross term x = <CTF F / sigma^2, posed A_c> and the norm p =
<CTF^2 / sigma^2, |A_c|^2> (CTF^2 is averaged over angles, so that p does not depend on the pose). The scale a has a
normal prior around the mean scale; its best value is known in closed form, and what remains is a monotonous function of
x (`ralib.kernels.likelihood`).

The model follows Scheres et al. 2005, "Maximum-likelihood multi-reference refinement for electron microscopy images",
J. Mol. Biol. 348, 139-149 (ML2D), and Scheres 2012, "RELION: implementation of a Bayesian approach to cryo-EM structure
determination", J. Struct. Biol. 180, 519-530; the mirror, and the exhaustive search with shifts as phases of the
template (`e_step`), do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ralib.kernels import likelihood as kernels
from ralib.kernels.complex_numbers import squared
from ralib.runtime.chunks import gpu_chunks


@dataclass(frozen=True)
class Spectra:
    """Whitened, CTF-weighted samples of b particles on the rings.

    Attributes
    ----------
    data : Tensor of shape (b, R, H)
        weight * CTF * F / sigma^2, complex.
    power : Tensor of shape (b, R)
        Factor of a template's ring power in the norm: weight * H * mean over angles of CTF^2 / sigma^2.
    """

    data: Tensor
    power: Tensor

    def __len__(self) -> int:
        return len(self.data)

    @cached_property
    def energy(self) -> Tensor:
        """Sum over the angles of |data|^2, (b, R)."""
        chunks = gpu_chunks(len(self), 1024, self.data.device)
        return torch.cat([squared(self.data[cut]).sum(2) for cut in chunks])[: len(self)]

    def norm(self, rows: Tensor | slice, ring_power: Tensor) -> Tensor:
        """Return the norms p of particles and templates.

        Parameters
        ----------
        rows : Tensor or slice of shape (b,)
            The particles.
        ring_power : Tensor of shape (k, r)
            Ring power of the templates.

        Returns
        -------
        Tensor of shape (b, k)
            Norms.
        """
        own = self.power[rows, : ring_power.shape[1]]
        if own.device.type == "cpu":  # BLAS rounds products of an odd length otherwise from row to row
            return (own[:, None] * ring_power).sum(2)
        return own.contiguous() @ ring_power.T  # the layout, too, decides how a product is rounded

    def __getitem__(self, index: Tensor | slice) -> Spectra:
        return Spectra(self.data[index], self.power[index])

    def sample(self, rows: Tensor, n: int) -> Spectra:
        """Return a sample; see `StoredSpectra.sample`."""
        return self[rows]

    def blocks(self, rings: int, most: int, most_bytes: float) -> Iterator[tuple[slice, Spectra]]:
        """Iterate over groups of at most `most` particles; see `StoredSpectra.blocks`."""
        for first in range(0, max(1, len(self)), max(1, most)):
            rows = slice(first, min(first + most, len(self)))
            yield rows, self if rows.stop - rows.start == len(self) else self[rows]

    def divided(self, ratio: Tensor) -> Spectra:
        """Return the spectra for `ratio` (R,) times the noise power; the samples are changed in place."""
        return Spectra(self.data.div_(ratio[:, None]), self.power / ratio)

    def without(self, rings: Tensor) -> Spectra:
        """Return the spectra with nothing on some rings (R,); they are changed in place."""
        self.power[:, rings] = 0
        self.data[:, rings] = 0
        return self


@dataclass(frozen=True)
class ClassPoses:
    """The best pose of each particle in each class, every field (b, k), or in one class, every field (b,).

    Where a particle has several candidate classes, fields are (candidates, b).

    Attributes
    ----------
    cross : Tensor of shape (b, k)
        Cross term x; see the module.
    norm : Tensor of shape (b, k)
        Norm p; see the module.
    psi_deg : Tensor of shape (b, k)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (b, k, 2)
        Origin shift, working pixels.
    mirror : Tensor of shape (b, k)
        True where mirrored.
    """

    cross: Tensor
    norm: Tensor
    psi_deg: Tensor
    origin_xy_px: Tensor
    mirror: Tensor

    def pick(self, class_index: Tensor) -> ClassPoses:
        """Return the poses in one class of each particle, (b,), or in several, (candidates, b): fields like it."""
        return ClassPoses(*kernels.pick(self.fields(), class_index))

    def reordered(self, order: Tensor) -> ClassPoses:
        """Return the poses in candidate classes in another order of each particle's, (candidates, b)."""
        return ClassPoses(*kernels.reordered(self.fields(), order))

    def columns(self, keep: slice | Tensor) -> ClassPoses:
        """Return the poses in some of the classes, or in candidate classes those of some particles."""
        return ClassPoses(*(f[:, keep] for f in self.fields()))

    def rows(self, rows: slice | Tensor) -> ClassPoses:
        """Return the poses of some of the particles."""
        return ClassPoses(*(f[rows] for f in self.fields()))

    def gathered(self, index: Tensor) -> ClassPoses:
        """Return the poses in some classes of each particle, index (b, c): fields (b, c)."""
        row = torch.arange(len(index), device=index.device)[:, None]
        return ClassPoses(*(f[row, index] for f in self.fields()))

    def fields(self) -> tuple[Tensor, ...]:
        """Return all fields."""
        return self.cross, self.norm, self.psi_deg, self.origin_xy_px, self.mirror


def joined(parts: list[ClassPoses], dim: int = 0) -> ClassPoses:
    """Join the poses of parts of the particles.

    Parameters
    ----------
    parts : list of ClassPoses
        Poses of each part.
    dim : int, default 0
        Dimension of the fields along which particles are numbered: 1 in candidate classes.

    Returns
    -------
    ClassPoses
        Poses of all.
    """
    if len(parts) == 1:
        return parts[0]
    return ClassPoses(*(torch.cat(f, dim=dim) for f in zip(*(p.fields() for p in parts), strict=True)))
