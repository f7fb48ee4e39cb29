"""Simulated particles for bench/analysis_truth.py: projections of a real map, CTF, white noise; everything known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ralib.images.ctf import apply_ctf, ctf_2d
from ralib.types import ArraySource, CtfParameters, ParticleSet, Poses


def load_volume(path: Path, box: int, pixel_size_A: float) -> tuple[torch.Tensor, float]:
    """A map (.npz of make_hard.py) on about this pixel size in this box; the size that fits its grid exactly."""
    stored = np.load(path)
    volume = torch.from_numpy((stored["q"] * (stored["s"] / 2000)).astype(np.float32))
    old_A, m = float(stored["va"]), volume.shape[0]
    size = 2 * round(m * old_A / pixel_size_A / 2)
    spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(volume)))
    low = m // 2 - size // 2
    part = spectrum[low : low + size, low : low + size, low : low + size]
    volume = torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(part)).real)
    out = torch.zeros(box, box, box)
    a, b = max(0, box // 2 - size // 2), max(0, size // 2 - box // 2)
    width = min(box, size)
    out[a : a + width, a : a + width, a : a + width] = volume[b : b + width, b : b + width, b : b + width]
    return out / out.sum(0).std(), m * old_A / size


def view_frames(view: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """Rows (n, 3, 3): image x, image y and the viewing direction, turned by psi about it."""
    helper = np.where(np.abs(view[:, [2]]) < 0.9, [[0, 0, 1.0]], [[1.0, 0, 0]])
    x = np.cross(helper, view)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.cross(view, x)
    c, s = np.cos(psi)[:, None], np.sin(psi)[:, None]
    return np.stack([c * x + s * y, -s * x + c * y, view], axis=1)


def project(volume: torch.Tensor, frames: np.ndarray) -> torch.Tensor:
    """Sums of the volume along the third row of each frame: (n, box, box)."""
    box = volume.shape[0]
    axis = torch.arange(box).float() - box // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], dim=-1).reshape(-1, 3)
    images = []
    for frame in torch.from_numpy(frames).float():
        at = ((points @ frame + box // 2) + 0.5) * 2 / box - 1
        sampled = torch.nn.functional.grid_sample(
            volume[None, None], at.view(1, box, box, box, 3), mode="bilinear", align_corners=False
        )
        images.append(sampled[0, 0].sum(0))
    return torch.stack(images)


def make_views(path: Path, volume: Path, n: int, *, box: int, pixel_size_A: float, snr: float, seed: int) -> None:
    """Views all over the sphere, 40 defoci without astigmatism, variance ratio `snr`, into an .npz file."""
    map_, pixel_size_A = load_volume(volume, box, pixel_size_A)
    rng = np.random.default_rng(seed)
    view = rng.normal(size=(n, 3))
    view /= np.linalg.norm(view, axis=1, keepdims=True)
    clean = project(map_, view_frames(view, rng.uniform(0, 2 * np.pi, n)))
    micrograph = np.arange(n) * 40 // n
    defocus = rng.uniform(8000, 26_000, 40)[micrograph]
    images = apply_ctf(clean, ctf_2d(plain_ctf(defocus), box, pixel_size_A))
    variance = float(images.var()) / snr
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    np.savez(
        path,
        images=(images + noise * variance**0.5).numpy(),
        clean=clean.numpy(),
        view=view,
        defocus=defocus,
        micrograph=micrograph,
        pixel_size_A=pixel_size_A,
        variance=variance,
    )


def plain_ctf(defocus_A: np.ndarray) -> CtfParameters:
    one = np.ones(len(defocus_A))
    return CtfParameters(defocus_A, defocus_A, 0 * one, 300 * one, 2.7 * one, 0.1 * one, 0 * one, 0 * one)


def open_views(path: Path) -> tuple[ParticleSet, dict[str, np.ndarray]]:
    """Particles and truth of a file of `make_views`."""
    with np.load(path) as stored:
        truth = dict(stored)
    particles = ParticleSet(
        ArraySource(truth["images"]), pixel_size_A=float(truth["pixel_size_A"]), ctf=plain_ctf(truth["defocus"])
    )
    return particles, truth


def open_hard(folder: Path) -> tuple[ParticleSet, dict[str, np.ndarray]]:
    """Particles of make_hard.py at their true poses, and the truth."""
    from ralib.io import open_particles

    particles = open_particles(folder / "particles.star")
    with np.load(folder / "truth.npz", allow_pickle=True) as stored:
        truth = dict(stored)
    poses = Poses.identity(len(particles)).replace(
        psi_deg=torch.from_numpy(np.rad2deg(truth["psi"])).float(),
        origin_xy_px=torch.from_numpy(-truth["shift"]).float(),
    )
    return particles.replace(poses=poses), truth


def chosen(particles: ParticleSet, index: np.ndarray) -> ParticleSet:
    """Some of the particles, in memory."""
    assert particles.ctf is not None
    assert particles.poses is not None
    return ParticleSet(
        ArraySource(particles.images.read(index)),
        pixel_size_A=particles.pixel_size_A,
        ctf=particles.ctf[index],
        poses=particles.poses[torch.from_numpy(index)],
    )
