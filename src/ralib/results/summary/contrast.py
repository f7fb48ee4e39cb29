"""CTF curves for the report: low, median and high defocus, and how well the whole set covers each frequency."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch

from ralib.images.ctf import ctf_polar
from ralib.io.plausible import implausible_ctf
from ralib.report.contents import CtfCurves
from ralib.types import CtfParameters

FREQUENCIES = 320
SAMPLE = 1000


def ctf_curves(ctf: CtfParameters, pixel_size_A: float, rng: np.random.Generator) -> CtfCurves:
    """Compute curves up to the Nyquist frequency, and the coverage from at most 1000 particles.

    Parameters
    ----------
    ctf : CtfParameters
        CTF parameters of all particles.
    pixel_size_A : float
        Pixel size, Angstrom.
    rng : np.random.Generator
        Random numbers.

    Returns
    -------
    CtfCurves
        The curves.
    """
    meant = ~implausible_ctf(ctf)[0]
    ctf = ctf[meant] if meant.any() else ctf
    frequency = torch.linspace(0, 0.5 / pixel_size_A, FREQUENCIES)
    defocus = (ctf.defocus_u_A + ctf.defocus_v_A) / 2
    levels = np.percentile(defocus, [5, 50, 95])
    label: tuple[str, ...] = ("low defocus", "median", "high defocus")
    if levels[2] - levels[0] < 1:
        levels, label = levels[1:2], ("median",)
    middle = {f.name: np.full(len(levels), float(np.median(getattr(ctf, f.name)))) for f in fields(CtfParameters)}
    middle |= {"defocus_u_A": levels, "defocus_v_A": levels, "astigmatism_angle_deg": np.zeros(len(levels))}
    curves = ctf_polar(CtfParameters(**middle), frequency, torch.zeros(1))[..., 0]
    rows = np.sort(rng.choice(len(ctf), min(SAMPLE, len(ctf)), replace=False))
    sample = ctf[rows]
    angles = torch.arange(6) * (torch.pi / 6)
    coverage = ctf_polar(sample, frequency, angles).square().mean(dim=(0, 2))
    pairs = np.stack([sample.defocus_u_A, sample.defocus_v_A], axis=1)[:300]
    return CtfCurves(frequency.numpy(), label, levels, curves.numpy(), coverage.numpy(), pairs)
