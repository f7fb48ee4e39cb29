"""Small pictures for the report: Fourier-cropped averages, aligned particles, some members of each class."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ralib.images.ctf import ctf_2d, phase_signs, remaining_flip
from ralib.images.fourier import fourier_resize, frequency_grid
from ralib.io import open_images
from ralib.kernels import rotate_shift_images
from ralib.kernels.interpolation import reference
from ralib.kernels.threads import on_cores
from ralib.report.contents import History, Members
from ralib.results.run_record import run_record
from ralib.results.summary.runs import RunFiles
from ralib.types import CtfCorrection

AVERAGE_PX, HISTORY_PX, MEMBER_PX, POINT_PX = 192, 48, 64, 32
MAX_AVERAGE_PIXELS = 8_000_000
MAX_MEMBER_PIXELS = 10_000_000
MAX_HISTORY_PIXELS = 6_000_000
BATCH, BATCH_PIXELS = 256, 2**25
"""Particles that a core turns at once, and pixels that a GPU does, where launching operations takes the time."""


def average_pictures(averages: np.ndarray) -> np.ndarray:
    """Return averages as shown: at most 192 px, fewer when there are very many."""
    size = min(AVERAGE_PX, int(np.sqrt(MAX_AVERAGE_PIXELS / max(1, len(averages)))) // 16 * 16)
    return shrunk(averages, max(48, size))


def shrunk(images: np.ndarray, size: int) -> np.ndarray:
    """Fourier-crop images to at most a size; smaller ones are unchanged.

    Parameters
    ----------
    images : ndarray of shape (b, n, n)
        Images.
    size : int
        Largest size, pixels.

    Returns
    -------
    ndarray of shape (b, m, m)
        Images.
    """
    return fourier_resize(torch.as_tensor(images), min(images.shape[-1], size)).numpy()


def aligned(run: RunFiles, rows: np.ndarray, size: int, device: torch.device | str = "cpu") -> np.ndarray:
    """Transform particles into the frame of their class average.

    They are cropped in Fourier space before they are rotated, so that the rotation is fast. Where the run used the CTF,
    phases are flipped; and noise above a quarter of the picture's sampling rate is damped.

    Parameters
    ----------
    run : RunFiles
        The run.
    rows : ndarray of shape (b,)
        The particles.
    size : int
        Size of the pictures, pixels.
    device : torch.device or str, default 'cpu'
        Where to compute.

    Returns
    -------
    ndarray of shape (b, size, size)
        Pictures, float32.
    """
    on_cpu, flipped = torch.device(device).type == "cpu", uses_ctf(run)
    # A GPU's kernels would have to be compiled for these sizes, which takes longer than turning so few small pictures.
    turn = rotate_shift_images if on_cpu else reference.rotate_shift_images
    at_once = BATCH if on_cpu else max(BATCH, BATCH_PIXELS // run.particles.box**2)

    def batch(start: int) -> Tensor:
        index = rows[start : start + at_once]
        images = torch.from_numpy(run.particles.images.read(index)).to(device).nan_to_num()
        box = min(images.shape[-1], 2 * size)
        scale = box / images.shape[-1]
        work = fourier_resize(images, box, _phase_signs(run, index, box, scale, device) if flipped else None)
        part = run.poses[torch.from_numpy(index)].to(device)
        turned = turn(work, part.psi_deg, part.origin_xy_px * scale, part.mirror)
        small = min(box, size)
        return fourier_resize(turned, small, _soft(small, device)).cpu()

    starts = range(0, len(rows), at_once)
    parts = on_cores(batch, starts) if on_cpu else list(map(batch, starts))
    return torch.cat(parts).numpy() if parts else np.zeros((0, size, size), dtype=np.float32)


def uses_ctf(run: RunFiles) -> bool:
    """Return whether the run itself corrected for the CTF, so that the phases in the images are still unflipped."""
    known = run.particles.ctf is not None and run.particles.pixel_size_A is not None
    return run_record(run.record, has_ctf=known).ctf is not CtfCorrection.NONE


def _phase_signs(run: RunFiles, index: np.ndarray, box: int, scale: float, device: torch.device | str) -> Tensor:
    assert run.particles.ctf is not None
    assert run.particles.pixel_size_A is not None
    own = run.particles.ctf[index]
    return phase_signs(remaining_flip(own, ctf_2d(own, box, run.particles.pixel_size_A / scale, device=device)))


def _soft(box: int, device: torch.device | str, cutoff_per_px: float = 0.25) -> Tensor:
    """Response (1, s, s // 2 + 1) of a Gaussian low-pass: 1/e at the cut-off."""
    kx, ky = frequency_grid(box, device=device)
    return torch.exp(-(kx**2 + ky**2) / cutoff_per_px**2)[None]


def likeness(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the normalised cross-correlation of each image with its reference inside a disc.

    Parameters
    ----------
    images : ndarray of shape (b, s, s)
        Images.
    references : ndarray of shape (b, s, s)
        References.

    Returns
    -------
    ndarray of shape (b,)
        Correlations.
    """
    inside = disc(images.shape[-1])
    a, b = (x[:, inside] - x[:, inside].mean(axis=1, keepdims=True) for x in (images, references))
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.where(norm > 0, norm, 1))


def disc(size: int) -> np.ndarray:
    """Return the pixels within 0.45 of the box from the centre: bool (size, size)."""
    y, x = np.mgrid[:size, :size] - size // 2
    return np.asarray(np.hypot(x, y) <= 0.45 * size)


def normalised(images: np.ndarray) -> np.ndarray:
    """Return pixels inside a disc as rows, mean 0 and norm 1: (p, t, t) -> (p, d)."""
    rows = np.nan_to_num(images[:, disc(images.shape[-1])].astype(np.float32))
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1))


def members(
    run: RunFiles, score: np.ndarray, rng: np.random.Generator, device: torch.device | str = "cpu"
) -> Members | None:
    """Return the most alike, some typical and the least alike members of each class.

    Parameters
    ----------
    run : RunFiles
        The run.
    score : ndarray of shape (n,)
        Score of each particle, NaN where unknown.
    rng : np.random.Generator
        Random numbers.
    device : torch.device or str, default 'cpu'
        Where to compute.

    Returns
    -------
    Members or None
        The members; None where there are none.
    """
    each = int(np.clip(MAX_MEMBER_PIXELS // (MEMBER_PX**2 * max(1, run.n_classes)) // 3, 1, 8))
    picks = [
        choose_members(np.flatnonzero(run.poses.class_index.numpy() == k), score, each, rng)
        for k in range(run.n_classes)
    ]
    rows = np.stack(picks)
    wanted = np.unique(rows[rows >= 0])
    if not len(wanted):
        return None
    pictures = aligned(run, wanted, min(MEMBER_PX, run.particles.box), device)
    images = np.zeros((*rows.shape, *pictures.shape[-2:]), dtype=np.float32)
    images[rows >= 0] = pictures[np.searchsorted(wanted, rows[rows >= 0])]
    shown = np.where(rows >= 0, score[rows], np.nan)
    kinds = ("most alike",) * each + ("typical",) * each + ("least alike",) * each
    columns = {"fit": run.poses.score.numpy(), **run.scores}
    figures: dict[str, np.ndarray] = {}
    for name in ("fit", "posterior", "junk"):
        if name in columns:
            figures[name] = np.where(rows >= 0, np.asarray(columns[name], dtype=np.float32)[rows], np.nan)
    return Members(images, rows, shown, kinds, figures)


def choose_members(rows: np.ndarray, score: np.ndarray, each: int, rng: np.random.Generator) -> np.ndarray:
    """Choose members of a class: the best, random ones in between, the worst (worst first).

    Parameters
    ----------
    rows : ndarray of shape (m,)
        Members.
    score : ndarray of shape (n,)
        Score of each particle.
    each : int
        Number of each kind.
    rng : np.random.Generator
        Random numbers.

    Returns
    -------
    ndarray of shape (3 * each,)
        Rows, -1 where there are too few.
    """
    ranked = rows[np.isfinite(score[rows])]
    ranked = ranked[np.argsort(-score[ranked], kind="stable")]
    best = ranked[:each]
    worst = ranked[len(best) :][::-1][:each]
    others = np.setdiff1d(rows, np.concatenate([best, worst]))
    typical = np.sort(rng.choice(others, min(each, len(others)), replace=False)) if len(others) else others
    return np.concatenate([np.pad(part, (0, each - len(part)), constant_values=-1) for part in (best, typical, worst)])


def history(run: RunFiles, most: int = 12) -> History | None:
    """Return averages of some iterations, evenly spread, including the first and the last.

    Each final class is followed back: a class that was emptied and split off another one continues that one, and one
    that changed its number keeps its past.

    Parameters
    ----------
    run : RunFiles
        The run.
    most : int, default 12
        Number of iterations at most.

    Returns
    -------
    History or None
        The averages; None where there are none.
    """
    most = max(2, min(most, MAX_HISTORY_PIXELS // (HISTORY_PX**2 * max(1, run.n_classes))))
    wanted = np.unique(np.linspace(0, len(run.history) - 1, min(most, len(run.history))).round().astype(int))
    usable = []
    for number, path in (run.history[i] for i in wanted if run.history):
        averages = open_images(path)
        usable.append((number, shrunk(averages, HISTORY_PX)))
    if not usable or len({images.shape[1:] for _, images in usable}) > 1 or not run.n_classes:
        return None
    final = shrunk(run.averages, usable[-1][1].shape[-1])
    ancestors = followed_back([images for _, images in usable], final)
    images = np.stack([averages[own] for (_, averages), own in zip(usable, ancestors, strict=True)])
    return History(tuple(number for number, _ in usable), images, ancestors)


LEAST_ALIKE, MORE_ALIKE = 0.4, 0.15
"""How well another number's average must correlate, and how much better than the class's own, to be its ancestor."""


def followed_back(averages: list[np.ndarray], final: np.ndarray) -> np.ndarray:
    """Return for each final average the index of its class at earlier iterations.

    From the last to the first, the average most like the class's next one is its ancestor; its own number is kept
    unless another correlates clearly better.

    Parameters
    ----------
    averages : list[ndarray]
        Averages (j, s, s) of each of t iterations.
    final : ndarray of shape (k, s, s)
        Final averages.

    Returns
    -------
    ndarray of shape (t, k)
        Indices.
    """
    own, later = np.arange(len(final)), normalised(final)
    ancestors = np.zeros((len(averages), len(final)), dtype=np.int64)
    for t in range(len(averages) - 1, -1, -1):
        features = normalised(averages[t])
        alike = later @ features.T
        best = alike.argmax(axis=1)
        here = np.minimum(own, len(features) - 1)
        rows = np.arange(len(final))
        other = (alike[rows, best] >= LEAST_ALIKE) & (alike[rows, best] >= alike[rows, here] + MORE_ALIKE)
        kept = (own < len(features)) & ~other
        own = np.where(kept, own, best)
        ancestors[t], later = own, features[own]
    return ancestors
