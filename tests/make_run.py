"""A made-up run directory of any size, with known classes, as the tests of report and selection need it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ralib.io import read_star, write_mrcs, write_star
from ralib.kernels import rotate_shift_images

STACK_IMAGES = 1200


def make_run(
    folder: Path,
    *,
    n_classes: int = 8,
    n_particles: int = 400,
    box: int = 48,
    n_iterations: int = 6,
    seed: int = 0,
    hostile: bool = False,
    n_stack: int = STACK_IMAGES,
    scores: bool = True,
    ctf: bool = True,
    judged: bool = False,
) -> Path:
    """Write a run of `n_particles` in `n_classes` into `folder`/run and its particles beside it; returns the run.

    The last class is empty and the one before has two members. Beyond `n_stack` particles, images repeat in the
    particle file. `hostile` puts markup into names, options and warnings. `judged` adds what `classify` says of classes
    (score, verdict, junk, agreement, automatic selection) and particles (particle_scores.txt), and picks.
    """
    rng = np.random.default_rng(seed)
    run = folder / "run"
    (run / "iterations").mkdir(parents=True)
    averages = phantoms(n_classes, box, rng)
    labels = class_labels(n_classes, n_particles, rng)
    poses = random_poses(n_particles, rng)
    stack_size = min(n_particles, n_stack)
    images = particle_images(averages, {k: v[:stack_size] for k, v in poses.items()}, labels[:stack_size], rng)
    write_mrcs(folder / "particles.mrcs", images, 2.5)
    owner = np.arange(n_particles) % stack_size
    if n_particles > stack_size:
        labels = labels[owner]
        poses = {k: v[owner] for k, v in poses.items()}
    score = rng.normal(0.5, 0.1, n_particles) + 0.2 * (labels % 3)
    write_star(
        run / "particles.star",
        star_tables(folder, labels, poses, score if scores else None, owner, box, rng, ctf, n_classes),
    )
    write_mrcs(run / "class_averages.mrcs", averages, 2.5)
    frequency = np.arange(box // 2 + 1) / box
    cutoff = rng.uniform(0.12, 0.35, n_classes)
    frc = 1 / (1 + np.exp((frequency[:, None] - cutoff) * 40)) + rng.normal(0, 0.02, (len(frequency), n_classes))
    np.savetxt(run / "frc.txt", np.column_stack([frequency, frc]), fmt="%.5f")
    members = np.bincount(labels, minlength=n_classes)
    iterations = make_iterations(run, averages, members, 2.5 / cutoff, n_iterations, rng)
    record = make_record(folder, members, 2.5 / cutoff, iterations, box, n_particles, hostile)
    if judged:
        record["classes"] = judged_classes(record["classes"])
        chosen = np.array([row["selected"] for row in record["classes"]])
        write_scores(run / "particle_scores.txt", labels, score, chosen[labels], rng)
        add_picks(run / "particles.star", rng)
    (run / "run.json").write_text(json.dumps(record))
    return run


def judged_classes(classes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Class scores falling from 0.95 to 0.05; the better half, as far as it has members, is selected."""
    for row, score in zip(classes, np.linspace(0.95, 0.05, len(classes)), strict=True):
        good = bool(score > 0.5) and row["members"] > 3
        row |= {"score": float(score), "verdict": "good: detailed" if good else "less detail than most classes"}
        row |= {"junk": float(0.9 * (1 - score)), "reproducibility": float(score), "posterior_mean": 0.9}
        row |= {"selected": good, "reason": "detailed and reproducible" if good else "class score below 0.5"}
    return classes


JUNK_LIMIT = 0.6


def write_scores(path: Path, labels: np.ndarray, fit: np.ndarray, chosen: np.ndarray, rng: np.random.Generator) -> None:
    """particle_scores.txt as `ralib classify` writes it, with some of its columns.

    Particles of chosen classes are junk less often than others; selected is who is junk with JUNK_LIMIT at most.
    """
    n = len(labels)
    posterior, quality = rng.uniform(0.3, 1, n), rng.normal(0, 1, n)
    junk = np.where(chosen, rng.beta(0.4, 1.5, n), rng.beta(4, 1.5, n))
    selected = junk <= JUNK_LIMIT
    table = np.column_stack([np.arange(1, n + 1), labels + 1, posterior, fit, quality, junk, selected])
    np.savetxt(path, table, fmt="%.6g", header="particle class posterior fit quality junk selected")


def add_picks(star: Path, rng: np.random.Generator) -> None:
    """Coordinates on the micrographs, 1.25 A/px; every tenth particle lies 4 px beside the one before it."""
    tables = read_star(star)
    table = tables["particles"]
    x, y = rng.uniform(0, 4000, (2, len(table)))
    x[9::10], y[9::10] = x[8::10][: len(x[9::10])] + 4, y[8::10][: len(x[9::10])]
    tables["optics"]["rlnMicrographOriginalPixelSize"] = 1.25
    tables["particles"] = table.assign(rlnCoordinateX=x.round(3), rlnCoordinateY=y.round(3))
    write_star(star, tables)


def phantoms(n: int, box: int, rng: np.random.Generator) -> np.ndarray:
    """Blobs of bright density near the centre, (n, box, box); the second to last lies off centre."""
    y, x = np.mgrid[:box, :box] - box // 2
    images = np.zeros((n, box, box), dtype=np.float32)
    for k in range(n):
        for _ in range(7):
            cx, cy, width = rng.uniform(-0.2, 0.2, 2) * box @ np.eye(2), 0, rng.uniform(0.035, 0.1) * box
            cx, cy = cx
            images[k] += rng.uniform(0.5, 1) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2))
        images[k] += rng.normal(0, 0.02, (box, box))
    if n > 2:
        images[-3] = np.roll(images[-3], box // 5, axis=1)
    return images


def class_labels(n_classes: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Unequal classes; the last is empty, the one before has two members (needs three classes)."""
    weight = rng.gamma(2.0, 1.0, n_classes) + 0.2
    weight[-2:] = 0
    labels = rng.choice(n_classes, n, p=weight / weight.sum())
    labels[rng.choice(n, 2, replace=False)] = n_classes - 2
    return labels


def random_poses(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "psi": rng.uniform(-180, 180, n),
        "origin": rng.normal(0, 1.2, (n, 2)).clip(-3, 3),
        "mirror": rng.random(n) < 0.5,
    }


def particle_images(
    averages: np.ndarray, poses: dict[str, np.ndarray], labels: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Class images turned back by the inverse pose, plus noise."""
    from ralib.conventions import invert

    psi, origin, mirror = (torch.as_tensor(poses[k]) for k in ("psi", "origin", "mirror"))
    inverse = invert((psi.float(), origin.float(), mirror))
    images = rotate_shift_images(torch.as_tensor(averages[labels]), *inverse).numpy()
    return np.asarray(images + rng.normal(0, 0.35, images.shape), dtype=np.float32)


def star_tables(
    folder: Path,
    labels: np.ndarray,
    poses: dict[str, np.ndarray],
    score: np.ndarray | None,
    owner: np.ndarray,
    box: int,
    rng: np.random.Generator,
    ctf: bool,
    n_classes: int,
) -> dict[str, Any]:
    n = len(labels)
    defocus = rng.uniform(8000, 26000, n // 20 + 1)[np.arange(n) // 20]
    optics = {
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnOpticsGroup": [1],
        "rlnImagePixelSize": [2.5],
        "rlnImageSize": [box],
        "rlnImageDimensionality": [2],
    }
    particles: dict[str, Any] = {
        "rlnImageName": [f"{i + 1:06d}@{folder / 'particles.mrcs'}" for i in owner],
        "rlnMicrographName": [f"mic{i // 20:05d}.mrc" for i in range(n)],
        "rlnOpticsGroup": np.ones(n, dtype=int),
        "rlnAnglePsi": poses["psi"].round(4),
        "rlnOriginXAngst": (2.5 * poses["origin"][:, 0]).round(4),
        "rlnOriginYAngst": (2.5 * poses["origin"][:, 1]).round(4),
        "rlnClassNumber": labels + 1 + n_classes * poses["mirror"],
        "ralibClass": labels + 1,
        "ralibMirror": poses["mirror"].astype(int),
        "myOwnColumn": np.arange(n),
    }
    if ctf:
        optics |= {"rlnVoltage": [300.0], "rlnSphericalAberration": [2.7], "rlnAmplitudeContrast": [0.1]}
        particles |= {"rlnDefocusU": defocus + 150, "rlnDefocusV": defocus - 150, "rlnDefocusAngle": np.full(n, 30.0)}
    if score is not None:
        particles["ralibScore"] = score.round(5)
    return {"optics": pd.DataFrame(optics), "particles": pd.DataFrame(particles)}


def make_iterations(
    run: Path, averages: np.ndarray, members: np.ndarray, resolution_A: np.ndarray, n: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    result = []
    for i in range(1, n + 1):
        part = i / n
        sizes = np.round(members * part + members.mean() * (1 - part)).astype(int)
        resolution = resolution_A * (1 + 0.8 * (1 - part))
        share = sizes[sizes > 0] / sizes.sum()
        (run / "iterations" / f"{i:03d}").mkdir()
        blurred = averages * part + averages.mean(axis=0) * (1 - part)
        write_mrcs(run / "iterations" / f"{i:03d}" / "averages.mrcs", blurred.astype(np.float32), 2.5)
        result.append(
            {
                "iteration": i,
                "criterion": float(1 - 0.6**i),
                "class_sizes": sizes.tolist(),
                "smallest": int(sizes.min()),
                "largest": int(sizes.max()),
                "empty": int((sizes == 0).sum()),
                "effective_classes": float(np.exp(-(share * np.log(share)).sum())),
                "median_resolution_A": float(np.median(resolution)),
                "resolution_A": resolution.round(2).tolist(),
                "pixel_error_px": float(4 * 0.6**i),
                "class_changes": float(0.9 * 0.6**i),
                "mirror_changes": float(0.5 * 0.6**i),
                "seconds": float(rng.uniform(2, 4)),
            }
        )
    return result


def make_record(
    folder: Path,
    members: np.ndarray,
    resolution_A: np.ndarray,
    iterations: list[dict[str, Any]],
    box: int,
    n: int,
    hostile: bool,
) -> dict[str, Any]:
    nasty = "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>" if hostile else ""
    record: dict[str, Any] = {
        "program": "ralib",
        "version": "0.1.0",
        "kind": "mref",
        "command": ["ralib", "mref", f"particles{nasty}.mrcs", "refs.mrcs", "out", "--ou", "20", "--xr", "3"],
        "options": {"outer_radius": 20, "xr": "3", "ts": "1", "center": 1, "note": nasty},
        "seed": 7,
        "versions": {"ralib": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "numpy": "2.4.6"},
        "device": "cpu (2 threads)",
        "input": {"path": f"{nasty}particles.mrcs", "particles": n, "box": box, "pixel_size_A": 2.5},
        "iterations": iterations,
        "classes": [
            {
                "class": k + 1,
                "members": int(m),
                "resolution_A": float(round(r, 2)) if m > 1 else None,
                "inplane_spread_deg": 4.0 + k % 5,
                "shift_spread_px": 1.1,
                "stability": 0.5 + 0.04 * (k % 10),
            }
            for k, (m, r) in enumerate(zip(members, resolution_A, strict=True))
        ],
        "warnings": [
            {
                "what": f"Two images held NaN and were left out.{nasty}",
                "where": "Images 17 and 40.",
                "do": "Check the extraction, or run with --strict.",
            }
        ],
        "timings": {
            "read_s": 3.2,
            "prepare_s": 5.1,
            "search_s": 61.0,
            "average_s": 9.7,
            "write_s": 1.2,
            "total_s": 81.0,
        },
        "peak_device_memory_bytes": 3 * 2**30,
    }
    return record
