"""What a report shows, all of it already computed: numbers, texts and arrays; `ralib.results.summary` fills it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Histogram:
    """Counts of one particle quantity by class, so that the page can add up any selection of classes.

    edges   (b + 1,) bin edges, in `unit`
    counts  (k, b) particles of each class in each bin
    """

    label: str
    unit: str
    edges: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class ShiftMap:
    """Counts of origin shifts on a square grid by class: edges (b + 1,) in pixels, counts (k, b, b) as class, y, x."""

    edges_px: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Members:
    """A few particles of each class, aligned: the most alike, some typical, the least alike.

    images  (k, m, t, t) float; row (k, m) row in the particle file from 0, -1 where a class has fewer members;
    score   (k, m); kind (m,) 'most alike', 'typical' or 'least alike'
    """

    images: np.ndarray
    row: np.ndarray
    score: np.ndarray
    kind: tuple[str, ...]


@dataclass(frozen=True)
class History:
    """Averages of some iterations, each class followed back through its changes of number.

    images (t, k, h, h) and ancestors (t, k), for each final class the number (from 0) it had at the iterations (t,)
    """

    iterations: tuple[int, ...]
    images: np.ndarray
    ancestors: np.ndarray


@dataclass(frozen=True)
class CtfCurves:
    """One-dimensional CTFs at a few defocus values, and how well the whole set covers each frequency.

    frequency_per_A (f,); curves (c, f); defocus_A (c,); label (c,) such as 'median';
    coverage (f,) mean of CTF squared over the particles; defocus_uv_A (s, 2) a sample of both defocus values
    """

    frequency_per_A: np.ndarray
    label: tuple[str, ...]
    defocus_A: np.ndarray
    curves: np.ndarray
    coverage: np.ndarray
    defocus_uv_A: np.ndarray


@dataclass(frozen=True)
class Embedding:
    """A sample of particles and all class averages in the plane of their first two principal components.

    xy (p, 2), row (p,), class_index (p,) from 0, score (p,), defocus_A (p,) (NaN where unknown), images (p, t, t);
    class_xy (k, 2) in the same plane; class_tsne_xy (k, 2) or None; explained (2,) fractions of variance
    """

    xy: np.ndarray
    row: np.ndarray
    class_index: np.ndarray
    score: np.ndarray
    defocus_A: np.ndarray
    images: np.ndarray
    class_xy: np.ndarray
    class_tsne_xy: np.ndarray | None
    explained: np.ndarray


@dataclass(frozen=True)
class ReportContents:
    """Everything one report shows.

    facts       kind, program, version, command, options, seed, versions, device, input, timings, ...
    classes     one dict a class: class (from 1), members, resolution_A, inplane_spread_deg, shift_spread_px, ...
    iterations  one dict an iteration, as in run.json
    warnings    dicts of what, where, do
    averages    (k, s, s) class averages as shown (at most a few hundred pixels)
    frc         (k, f) with frc_frequency_per_px (f,), or None
    particle_figures  by name (fit, posterior, junk): one value a member, class after class
    automatic_junk_limit  highest junk probability of a particle that the run itself would keep
    server      where the page is served: addresses it writes to and asks, and whether the run has finished
    """

    title: str
    fingerprint: str
    facts: dict[str, Any]
    classes: list[dict[str, Any]]
    iterations: list[dict[str, Any]]
    warnings: list[dict[str, str]]
    averages: np.ndarray
    box_px: int
    pixel_size_A: float | None = None
    frc_frequency_per_px: np.ndarray | None = None
    frc: np.ndarray | None = None
    particle_figures: dict[str, np.ndarray] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    shift_map: ShiftMap | None = None
    members: Members | None = None
    history: History | None = None
    ctf: CtfCurves | None = None
    embedding: Embedding | None = None
    automatic_junk_limit: float | None = None
    server: dict[str, Any] | None = None
