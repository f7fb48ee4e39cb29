"""The contents of a report, already computed by `ralib.results.summary`: numbers, texts and arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Histogram:
    """Counts of one particle quantity by class, so that the page can sum over any selection of classes.

    Attributes
    ----------
    label : str
        Name of the quantity.
    unit : str
        Its unit.
    edges : ndarray of shape (b + 1,)
        Bin edges.
    counts : ndarray of shape (k, b)
        Particles of each class in each bin.
    """

    label: str
    unit: str
    edges: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class HexagonMap:
    """Counts of two particle quantities in hexagonal bins by class, and of each of them alone.

    Attributes
    ----------
    title : str
        Name of the map.
    x, y : Histogram
        The quantities: labels, units, and the counts at the map's sides; their edges span the map.
    centre : ndarray of shape (h, 2)
        Centres of the hexagons that hold particles.
    size : ndarray of shape (2,)
        Distance of neighbouring centres along x, and of rows two apart along y.
    counts : ndarray of shape (k, h)
        Particles of each class in each hexagon.
    """

    title: str
    x: Histogram
    y: Histogram
    centre: np.ndarray
    size: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Members:
    """Some particles of each class, aligned: the most alike, some typical, the least alike.

    Attributes
    ----------
    images : ndarray of shape (k, m, t, t)
        Images.
    row : ndarray of shape (k, m)
        Row in the particle file from 0; -1 where a class has fewer members.
    score : ndarray of shape (k, m)
        Their scores.
    kind : tuple of str
        'most alike', 'typical' or 'least alike' of each of the m columns.
    figures : dict[str, ndarray of shape (k, m)]
        Fit, posterior and junk probability of each, as far as the run knows them.
    """

    images: np.ndarray
    row: np.ndarray
    score: np.ndarray
    kind: tuple[str, ...]
    figures: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """Averages of some iterations, with each class followed back through changes of its number.

    Attributes
    ----------
    iterations : tuple of int
        Numbers of the t iterations.
    images : ndarray of shape (t, k, h, h)
        Averages.
    ancestors : ndarray of shape (t, k)
        Number (from 0) that each final class had at the iteration.
    """

    iterations: tuple[int, ...]
    images: np.ndarray
    ancestors: np.ndarray


@dataclass(frozen=True)
class CtfCurves:
    """One-dimensional CTFs at some defocus values, and how well the whole set covers each frequency.

    Attributes
    ----------
    frequency_per_A : ndarray of shape (f,)
        Frequencies, 1/Angstrom.
    label : tuple of str
        Name of each curve, such as 'median'.
    defocus_A : ndarray of shape (c,)
        Defocus of each curve, Angstrom.
    curves : ndarray of shape (c, f)
        CTF.
    coverage : ndarray of shape (f,)
        Mean of CTF^2 over the particles.
    defocus_uv_A : ndarray of shape (s, 2)
        A sample of both defocus values, Angstrom.
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

    Attributes
    ----------
    xy : ndarray of shape (p, 2)
        Coordinates of the particles.
    row : ndarray of shape (p,)
        Their rows in the particle file.
    class_index : ndarray of shape (p,)
        Their classes from 0.
    score : ndarray of shape (p,)
        Their scores.
    defocus_A : ndarray of shape (p,)
        Their mean defocus, Angstrom; NaN where unknown.
    images : ndarray of shape (p, t, t)
        Their images.
    class_xy : ndarray of shape (k, 2)
        Coordinates of the class averages.
    class_tsne_xy : ndarray of shape (k, 2) or None
        Coordinates of the class averages by t-SNE, or None.
    explained : ndarray of shape (2,)
        Fractions of the variance.
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
class Figure:
    """A figure that is shown as it was drawn.

    Attributes
    ----------
    name : str
        Short name, as that of its file.
    title : str
        What it shows.
    caption : str
        How it is read.
    png : bytes
        The picture.
    """

    name: str
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class ReportContents:
    """All contents of one report.

    Attributes
    ----------
    title : str
        Name of the run.
    fingerprint : str
        Identifies the run's particles and classes.
    facts : dict
        Kind, program, version, command, options, seed, versions, device, input, timings, ...
    classes : list of dict
        For each class: class (from 1), members, resolution_A, inplane_spread_deg, shift_spread_px, ...
    iterations : list of dict
        Figures of each iteration, as in run.json.
    warnings : list of dict
        Warnings with the keys what, where and do.
    averages : ndarray of shape (k, s, s)
        Class averages as shown (at most a few hundred pixels).
    box_px : int
        Image size, pixels.
    pixel_size_A : float, optional
        Pixel size, Angstrom.
    frc_frequency_per_px : ndarray of shape (f,), optional
        Frequencies of the FRC, cycles per pixel.
    frc : ndarray of shape (k, f), optional
        FRC of each class.
    particle_figures : dict
        By name (fit, posterior, junk) one value for each member, class after class.
    histograms : dict
        Histograms by name.
    hexagon_maps : dict
        By name: 'shift', origin shifts, and where the particles have them 'view', viewing directions.
    members : Members, optional
        Some particles of each class.
    history : History, optional
        Averages of some iterations.
    ctf : CtfCurves, optional
        CTF curves.
    embedding : Embedding, optional
        Particles and class averages in a plane.
    components : list of Figure
        Figures of the run's analysis, where it was analysed.
    automatic_junk_limit : float, optional
        Highest junk probability of a particle that the run itself would keep.
    server : dict, optional
        Where the page is served: addresses it writes to and asks, and whether the run has finished.
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
    hexagon_maps: dict[str, HexagonMap] = field(default_factory=dict)
    members: Members | None = None
    history: History | None = None
    ctf: CtfCurves | None = None
    embedding: Embedding | None = None
    components: list[Figure] = field(default_factory=list)
    automatic_junk_limit: float | None = None
    server: dict[str, Any] | None = None
