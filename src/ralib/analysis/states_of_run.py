"""The structural states within every class of a finished run, as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ralib.analysis.states import LEAST_MEMBERS, SHOWN, StateSplit, split_states
from ralib.images.normalise import usable_images
from ralib.io.plausible import named
from ralib.types import ArraySource, Notice, ParticleSet, RalibError


def split_run(
    source: Path,
    out: Path,
    n_states: int | str,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    show: Callable[[Sequence[Notice]], None] = lambda _: None,
) -> dict[str, Any]:
    """Divide every sufficiently large class of a finished run, and write the states into a new folder.

    Writes states.star (the particles, with the state's number as class), state_averages.mrcs and their half averages,
    differences.mrcs, responsibilities.txt, states.json and states.png.

    Parameters
    ----------
    source : Path
        The run's folder.
    out : Path
        The new folder.
    n_states : int or str
        Number of states to test for, or 'auto'.
    seed : int, default 0
        Of initialisations and folds.
    device : torch.device or str, default 'cpu'
        Where to compute.
    show : callable, optional
        Is given the warnings about the particles, such as those left out.

    Returns
    -------
    dict
        Contents of states.json.
    """
    from ralib.io import for_computing, open_particles
    from ralib.results.run_record import particle_file

    if out.exists():
        raise RalibError(f"{out} exists: remove it, or name another folder")
    given = open_particles(particle_file(source))
    if given.poses is None:
        raise RalibError(f"{source} holds no poses: give the folder or the particles.star of a finished run")
    particles = with_usable_images(for_computing(given, ctf=given.ctf is not None))
    show(particles.warnings)
    assert particles.poses is not None
    classes = particles.poses.class_index.cpu().numpy()
    if particles.usable is not None:
        classes = np.where(particles.usable, classes, -1)
    splits: dict[int, tuple[np.ndarray, StateSplit]] = {}
    for k in np.unique(classes[classes >= 0]).tolist():
        members = np.flatnonzero(classes == k)
        if len(members) >= LEAST_MEMBERS:
            chosen = members_of(particles, members)
            splits[k] = members, split_states(chosen, n_states, seed=seed, device=device)
    if not splits:
        raise RalibError(f"no class of {source} has {LEAST_MEMBERS} members: states cannot be distinguished")
    return _write_states(out, given, splits, n_states)


def with_usable_images(particles: ParticleSet) -> ParticleSet:
    """Return the set with images in a class that are constant or not finite left out, and a warning about them."""
    assert particles.poses is not None
    bad = np.zeros(len(particles), dtype=bool)
    for rows in np.array_split(np.flatnonzero((particles.poses.class_index >= 0).numpy()), len(particles) // 1000 + 1):
        bad[rows] = ~usable_images(torch.from_numpy(particles.images.read(rows)).float()).numpy()
    if not bad.any():
        return particles
    what = f"{named(bad)} left out: the image is constant, or holds NaN or infinite pixels"
    return particles.leave_out(bad, Notice(what=what, where="images", remedy="repair or remove these images"))


def members_of(particles: ParticleSet, index: np.ndarray) -> ParticleSet:
    """Return some of the particles, with their images in memory.

    Parameters
    ----------
    particles : ParticleSet
        All particles of the run.
    index : ndarray of shape (m,)
        Row numbers, in increasing order or any other.

    Returns
    -------
    ParticleSet
        The members.
    """
    poses, ctf = particles.poses, particles.ctf
    return ParticleSet(
        ArraySource(particles.images.read(index)),
        pixel_size_A=particles.pixel_size_A,
        ctf=None if ctf is None else ctf[index],
        poses=None if poses is None else poses[torch.as_tensor(index)],
    )


def _write_states(
    out: Path, particles: ParticleSet, splits: dict[int, tuple[np.ndarray, StateSplit]], n_states: int | str
) -> dict[str, Any]:
    from ralib.analysis import plots
    from ralib.io import write_json, write_mrcs, write_particles_star
    from ralib.io.atomic import atomic_folder

    assert particles.poses is not None
    state_index, weight, classes = _numbered(splits, len(particles))
    record: dict[str, Any] = {"asked_for": n_states, "classes": classes}
    found = [split for _, split in splits.values()]
    averages = np.concatenate([split.averages for split in found])
    differences = np.concatenate([split.difference for split in found])
    halves = np.concatenate([split.halves for split in found], axis=1)
    titles = [f"{f['class']}: state {s}" for f in record["classes"] for s in f["states"]]
    with atomic_folder(out) as made:
        write_mrcs(made / "state_averages.mrcs", averages, particles.pixel_size_A)
        for half in (0, 1):
            write_mrcs(made / f"state_averages_half{half + 1}.mrcs", halves[half], particles.pixel_size_A)
        write_mrcs(made / "differences.mrcs", differences, particles.pixel_size_A)
        poses = particles.poses.replace(class_index=state_index)
        np.savetxt(
            made / "responsibilities.txt",
            np.column_stack([np.arange(len(weight)), state_index.numpy() + 1, weight]),
            fmt=("%d", "%d", "%.4f"),
            header="particle (from 0)  state (from 1; 0: none)  its probability",
        )
        write_json(made / "states.json", record)
        plots.gallery(np.concatenate([averages, differences]), titles=[*titles, *titles], columns=len(titles)).savefig(
            made / "states.png", dpi=120
        )
        write_particles_star(made / "states.star", particles, poses, n_classes=sum(split.n_states for split in found))
    return record


def _numbered(
    splits: dict[int, tuple[np.ndarray, StateSplit]], n: int
) -> tuple[torch.Tensor, np.ndarray, list[dict[str, Any]]]:
    """State of each particle (n,) counted through all classes, -1 for none; its probability (n,); figures by class."""
    state_index, weight = torch.full((n,), -1, dtype=torch.int64), np.zeros(n)
    classes: list[dict[str, Any]] = []
    first = 0
    for k, (members, split) in splits.items():
        state_index[torch.from_numpy(members)] = torch.from_numpy(split.labels + first)
        weight[members] = split.responsibilities.max(1)
        classes.append(
            {
                "class": k + 1,
                "members": len(members),
                "states": list(range(first + 1, first + split.n_states + 1)),
                "shares": split.responsibilities.mean(0).round(4).tolist(),
                **{name: getattr(split, name) for name in SHOWN},
                "components_above_noise": split.n_above_noise,
                "tried": split.tried,
            }
        )
        first += split.n_states
    return state_index, weight, classes
