"""Figures: galleries, clusters, poses, defocus, CTF, spectra. Each function returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from ralib.images.ctf import ctf_2d, ctf_polar
from ralib.types import CtfParameters, Poses, RalibError

MAX_LEGEND = 20


def gallery(images: Any, *, titles: Sequence[str] | None = None, columns: int = 10, size_inch: float = 1.0) -> Figure:
    """Show images side by side, each between its own 0.5 and 99.5 percentiles.

    Row 0 is on top, as in classes.png, in the report and in most viewers.

    Parameters
    ----------
    images : array_like of shape (k, h, w)
        Images.
    titles : sequence of str, optional
        Title of each.
    columns : int, default 10
        Images in a row.
    size_inch : float, default 1.0
        Width of an image, inch.

    Returns
    -------
    Figure
        The figure.
    """
    images = _array(images)
    if images.ndim != 3 or not len(images):
        raise RalibError(f"a gallery of shape {images.shape}: give (k, h, w) images, at least one")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    title_inch = 0.25 if titles is not None else 0.0
    figure = Figure(figsize=(columns * size_inch, rows * (size_inch + title_inch)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for i, (ax, image) in enumerate(zip(axes, images, strict=False)):
        low, high = np.nanpercentile(image, [0.5, 99.5])
        ax.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        if titles is not None:
            ax.set_title(titles[i], fontsize=7, pad=2)
    return figure


def class_gallery(averages: Any, members: Any, *, columns: int = 10) -> Figure:
    """Show class averages, the largest class first, titled with class (from 1) and number of members.

    Parameters
    ----------
    averages : array_like of shape (k, n, n)
        Class averages.
    members : array_like of shape (k,)
        Number of members.
    columns : int, default 10
        Images in a row.

    Returns
    -------
    Figure
        The figure.
    """
    members = _array(members)
    order = np.argsort(-members, kind="stable")
    return gallery(_array(averages)[order], titles=[f"{i + 1}: {members[i]:,}" for i in order], columns=columns)


def scatter_by_cluster(coordinates: np.ndarray, labels: np.ndarray | None = None, *, title: str = "") -> Figure:
    """Show particles as points coloured by label, on a colour scale for labels of many values.

    Parameters
    ----------
    coordinates : ndarray of shape (n, 2)
        Points.
    labels : ndarray of shape (n,), optional
        Label of each.
    title : str, default ''
        Title of the figure.

    Returns
    -------
    Figure
        The figure.
    """
    figure, ax = _one_axes(title)
    points = dict(s=max(2.0, 24.0 - 2.0 * np.log2(len(coordinates) + 1)), linewidths=0, alpha=0.7, rasterized=True)
    values = np.zeros(len(coordinates), int) if labels is None else np.asarray(labels)
    distinct = np.unique(values)
    if len(distinct) <= MAX_LEGEND:
        for k, value in enumerate(distinct):
            chosen = coordinates[values == value]
            label = None if labels is None else f"{value} ({len(chosen):,})"
            ax.scatter(chosen[:, 0], chosen[:, 1], color=_colour(k), label=label, **points)
        if labels is not None:
            ax.legend(markerscale=3, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    else:
        figure.colorbar(ax.scatter(coordinates[:, 0], coordinates[:, 1], c=values, cmap="turbo", **points), ax=ax)
    ax.set(xlabel="first coordinate", ylabel="second coordinate")
    return figure


def class_histogram(class_index: Any, *, n_classes: int | None = None, what: str = "class") -> Figure:
    """Show the number of members of each class; the title has the number of particles without one (-1).

    Parameters
    ----------
    class_index : array_like of shape (n,)
        Class of each particle, from 0.
    n_classes : int, optional
        Number of classes; by default the largest plus one.
    what : str, default 'class'
        What is counted, for the labels.

    Returns
    -------
    Figure
        The figure.
    """
    classes = _array(class_index).astype(int)
    counts = np.bincount(classes[classes >= 0], minlength=n_classes or 1)
    outside = int((classes < 0).sum())
    figure, ax = _one_axes(f"{outside:,} particles without a {what}" if outside else "")
    ax.bar(np.arange(1, len(counts) + 1), counts, color=_colour(0))
    ax.set(xlabel=what, ylabel="particles")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def pose_figure(poses: Poses) -> Figure:
    """Show origins in hexagonal bins, with x and y alone at the sides, and the distribution of psi by mirror."""
    poses = poses.to("cpu")
    shift, psi, mirror = poses.origin_xy_px.numpy(), poses.psi_deg.numpy() % 360.0, poses.mirror.numpy()
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = np.ravel(np.asarray(figure.subfigures(1, 2)))
    reach = max(1.0, float(np.abs(shift).max()) * 1.05) if len(shift) else 1.0
    _draw_hexbin(left, shift[:, 0], shift[:, 1], ("origin x (px)", "origin y (px)"), 30, (-reach, reach, -reach, reach))
    ax = right.subplots()
    ax.hist([psi[~mirror], psi[mirror]], bins=np.arange(0, 361, 10), stacked=True, label=["as is", "mirrored"])
    ax.set(xlabel="psi (degrees)", ylabel="particles", title="in-plane rotation", xlim=(0, 360))
    ax.legend(frameon=False)
    return figure


def defocus_figure(ctf: CtfParameters) -> Figure:
    """Show the distribution of the mean defocus, and of astigmatism by direction."""
    u, v = np.asarray(ctf.defocus_u_A) * 1e-4, np.asarray(ctf.defocus_v_A) * 1e-4
    angle = np.deg2rad(ctf.astigmatism_angle_deg)
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist((u + v) / 2, bins=50, color=_colour(0))
    left.set(xlabel="defocus (um)", ylabel="particles", title="mean defocus")
    difference = np.abs(u - v)
    right.scatter(difference * np.cos(2 * angle), difference * np.sin(2 * angle), s=3, alpha=0.5, rasterized=True)
    reach = 1.1 * max(float(difference.max(initial=0.0)), 1e-3)
    right.set(xlabel="astigmatism x (um)", ylabel="astigmatism y (um)", aspect="equal", title="astigmatism")
    right.set(xlim=(-reach, reach), ylim=(-reach, reach))
    right.locator_params(nbins=5)
    return figure


def ctf_figure(ctf: CtfParameters, index: int = 0, *, pixel_size_A: float, box: int = 256) -> Figure:
    """Show the CTF of one particle along both defocus axes, and over the Fourier plane.

    Parameters
    ----------
    ctf : CtfParameters
        CTF parameters.
    index : int, default 0
        Number of the particle.
    pixel_size_A : float
        Pixel size, Angstrom.
    box : int, default 256
        Size of the plane, pixels.

    Returns
    -------
    Figure
        The figure.
    """
    one = ctf[np.array([index])]
    frequency = torch.linspace(0, 0.5 / pixel_size_A, 1000, dtype=torch.float64)
    along = np.deg2rad(float(one.astigmatism_angle_deg[0])) + np.array([0, np.pi / 2])
    curves = ctf_polar(one, frequency, torch.from_numpy(along))[0]
    half = ctf_2d(one, box, pixel_size_A)[0].numpy()
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for k, defocus in enumerate((one.defocus_u_A[0], one.defocus_v_A[0])):
        left.plot(frequency, curves[:, k], color=_colour(k), lw=1, label=f"along {float(defocus) * 1e-4:.2f} um")
    left.axhline(0, color="0.7", lw=0.8)
    left.set(xlabel="spatial frequency (1/A)", ylabel="CTF", ylim=(-1.05, 1.05), title=f"particle {index + 1}")
    left.legend(frameon=False)
    right.imshow(_whole_plane(half, box), cmap="gray", vmin=-1, vmax=1, origin="lower")
    right.set_axis_off()
    return figure


def spectrum_figure(spectrum: Any, noise_edge: float, eigenimages: Any = None) -> Figure:
    """Show eigenvalues of whitened particles with the noise edge, and the first eigenimages.

    Parameters
    ----------
    spectrum : array_like of shape (s,)
        Eigenvalues.
    noise_edge : float
        Largest eigenvalue that noise alone makes.
    eigenimages : array_like of shape (k, h, w), optional
        Eigenimages.

    Returns
    -------
    Figure
        The figure.
    """
    values = _array(spectrum)
    figure = Figure(figsize=(6, 4.5 if eigenimages is None else 6), layout="constrained")
    grid = figure.add_gridspec(
        1 if eigenimages is None else 2, 6, height_ratios=(1,) if eigenimages is None else (3, 1)
    )
    ax = figure.add_subplot(grid[0, :])
    number = np.arange(1, len(values) + 1)
    ax.bar(number, values, color=[_colour(0) if v > noise_edge else "0.7" for v in values])
    ax.axhline(noise_edge, color=_colour(3), lw=1, label="noise alone")
    ax.set(xlabel="component", ylabel="variance over the noise's")
    ax.legend(frameon=False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for k, image in enumerate(() if eigenimages is None else _array(eigenimages)[:6]):
        small = figure.add_subplot(grid[1, k])
        small.imshow(image, cmap="gray", interpolation="nearest")
        small.set_title(f"{k + 1}", fontsize=7, pad=2)
        small.set_axis_off()
    return figure


def view_figure(rot_deg: Any, tilt_deg: Any, *, what: tuple[str, str] = ("rot", "tilt")) -> Figure:
    """Show viewing directions in hexagonal bins, with the distribution of either angle at the sides.

    Parameters
    ----------
    rot_deg : array_like of shape (n,)
        First angle, degrees.
    tilt_deg : array_like of shape (n,)
        Second angle, degrees.
    what : tuple of str, default ('rot', 'tilt')
        Names of the angles.

    Returns
    -------
    Figure
        The figure.
    """
    return hexbin_figure(_array(rot_deg), _array(tilt_deg), labels=(f"{what[0]} (degrees)", f"{what[1]} (degrees)"))


def hexbin_figure(x: Any, y: Any, *, labels: tuple[str, str] = ("x", "y"), gridsize: int = 36) -> Figure:
    """Show points in hexagonal bins, with the distribution of each coordinate at the sides.

    Parameters
    ----------
    x : array_like of shape (n,)
        First coordinate.
    y : array_like of shape (n,)
        Second coordinate.
    labels : tuple of str, default ('x', 'y')
        Names of the coordinates.
    gridsize : int, default 36
        Bins across.

    Returns
    -------
    Figure
        The figure.
    """
    x, y = _array(x), _array(y)
    if x.shape != y.shape or x.ndim != 1:
        raise RalibError(f"points of shapes {x.shape} and {y.shape}: give (n,) of both")
    figure = Figure(figsize=(6, 6), layout="constrained")
    _draw_hexbin(figure, x, y, labels, gridsize)
    return figure


def _draw_hexbin(
    figure: Figure | SubFigure,
    x: np.ndarray,
    y: np.ndarray,
    labels: tuple[str, str],
    gridsize: int,
    extent: tuple[float, float, float, float] | None = None,
) -> None:
    """Hexagonal bins of points (n,), the distribution of x above and of y beside them."""
    grid = figure.add_gridspec(2, 2, width_ratios=(4, 1), height_ratios=(1, 4))
    ax = figure.add_subplot(grid[1, 0])
    bins = ax.hexbin(x, y, gridsize=gridsize, extent=extent, cmap="viridis", mincnt=1)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    above, beside = figure.add_subplot(grid[0, 0], sharex=ax), figure.add_subplot(grid[1, 1], sharey=ax)
    above.hist(x, bins=gridsize, range=extent and extent[:2], color=_colour(0))
    beside.hist(y, bins=gridsize, range=extent and extent[2:], color=_colour(0), orientation="horizontal")
    for side in (above, beside):
        side.tick_params(labelbottom=side is beside, labelleft=side is above)
    figure.colorbar(bins, ax=beside, label="particles")


def scree_figure(explained_variance_ratio: np.ndarray) -> Figure:
    """Show the variance explained by each component, and by all up to it."""
    ratio = np.asarray(explained_variance_ratio)
    figure, ax = _one_axes("")
    number = np.arange(1, len(ratio) + 1)
    ax.bar(number, ratio, color=_colour(0))
    ax.set(xlabel="component", ylabel="fraction of the variance")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    total = ax.twinx()
    total.plot(number, ratio.cumsum(), color=_colour(1))
    total.set(ylabel="sum of the fractions", ylim=(0, None))
    return figure


def _whole_plane(half: np.ndarray, box: int) -> np.ndarray:
    """rfft2's layout (n, n//2+1) of an even real function as the centred plane (n, n)."""
    ky, kx = (np.fft.fftfreq(box) * box).astype(int)[:, None], (np.fft.fftfreq(box) * box).astype(int)[None, :]
    row = np.where(kx < 0, -ky, ky) % box
    return np.fft.fftshift(half[row, np.abs(np.broadcast_to(kx, (box, box)))])


def _one_axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    ax = figure.subplots()
    ax.set_title(title, fontsize=9)
    return figure, ax


def _colour(k: int) -> str:
    return f"C{k % 10}"


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
