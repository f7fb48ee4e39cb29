"""mref_ali2d against EMAN2's own runs, and what must hold of any run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from devices import DEVICES
from ralib import sparx
from ralib.images.ctf import ctf_from_eman2
from ralib.results.observer import IterationDone, SilentObserver
from ralib.sparx.ctf import filt_ctf
from ralib.sparx.mref import mref_ali2d
from ralib.sparx.run import SparxArrays
from ralib.types import ArraySource, ParticleSet, RalibError

CASES: dict[str, dict[str, Any]] = {
    "mref_it1": {"xr": 3, "maxit": 1, "center": 0},
    "mref_it2_center-1": {"xr": 2, "maxit": 2, "center": -1},
    "mref_it3": {"xr": 3, "maxit": 3, "center": 0},
    "mref_xr2yr1_ts05": {"xr": 2, "yr": 1, "ts": 0.5, "maxit": 1, "center": 0},
}


@pytest.fixture(scope="module")
def given(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "mref_input.npz") as data:
        return {name: data[name] for name in data.files}


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))


def turned(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs((got - expected + 180) % 360 - 180)


def agreement(got: np.ndarray, expected: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Share of particles with EMAN2's reference and mirror, with its shift too, and the angle errors of those."""
    same = (got[:, 4] == expected[:, 4]) & (got[:, 3] == expected[:, 3])
    shift = same & (np.abs(got[:, 1:3] - expected[:, 1:3]).max(1) < 0.01)
    return same.mean(), shift.mean(), turned(got[shift, 0], expected[shift, 0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_mref_golden_parameters_are_reproduced(
    given: dict[str, np.ndarray], golden: Path, case: str, device: str
) -> None:
    expected = np.load(golden / f"{case}.npz")
    result = mref_ali2d(given["images"], given["references"], ou=26, **CASES[case], device=device)
    params = result.sparx.params.numpy()
    same, shift, angle = agreement(params, expected["params"])
    assert same >= 0.98
    assert shift >= 0.97
    assert np.median(angle) < 0.05
    assert angle.max() < 0.5
    np.testing.assert_allclose(params[:, 5], expected["params"][:, 5], rtol=1e-3)
    assert correlations(result.sparx.raw_averages.numpy(), expected["raw_averages"]).min() > 0.995
    assert correlations(result.averages.images.numpy(), expected["averages"]).min() > 0.995
    header = result.sparx.params_header.numpy()
    assert np.abs(header[:, 1:3] - expected["params_header"][:, 1:3]).max() < 0.01
    wrong = params.copy()
    wrong[:, 0] *= -1
    assert np.median(agreement(wrong, expected["params"])[2]) > 10


def test_poses_bring_particles_onto_the_averages(given: dict[str, np.ndarray]) -> None:
    """The poses returned follow the centred averages, in the package's own convention."""
    result = mref_ali2d(given["images"], given["references"], ou=26, xr=2, maxit=1, center=1)
    rows = sparx.poses_to_params(result.poses)
    moved = sparx.rot_shift2D(torch.from_numpy(given["images"]), rows)
    members = result.poses.class_index == 3
    average = moved[members].mean(0)
    inside = sparx.model_circle(20, 64) > 0.5
    seen = torch.corrcoef(torch.stack([average[inside], result.averages.images[3][inside]]))[0, 1]
    assert seen > 0.9
    assert result.averages.members.tolist() == torch.bincount(result.poses.class_index, minlength=8).tolist()


def test_mref_batch_size_changes_nothing(given: dict[str, np.ndarray]) -> None:
    runs = [
        mref_ali2d(given["images"][:24], given["references"], ou=20, xr=1, maxit=2, batch_size=size)
        for size in (1024, 7)
    ]
    for name in ("params", "params_header", "raw_averages"):
        torch.testing.assert_close(getattr(runs[0].sparx, name), getattr(runs[1].sparx, name), atol=1e-4, rtol=1e-5)


class Recorder(SilentObserver):
    """Keeps what it is handed."""

    def __init__(self) -> None:
        self.done: list[IterationDone] = []
        self.batches: list[tuple[int, int]] = []

    def batch(self, done: int, total: int) -> None:
        self.batches.append((done, total))

    def iteration(self, done: IterationDone) -> None:
        self.done.append(done)


def test_mref_ali2d_hands_its_observer_every_batch_and_iteration(given: dict[str, np.ndarray]) -> None:
    seen = Recorder()
    result = mref_ali2d(given["images"][:20], given["references"], ou=20, maxit=2, batch_size=8, observer=seen)
    assert [done.number for done in seen.done] == [1, 2]
    assert result.iterations == seen.done[-1].figures
    assert torch.equal(seen.done[-1].averages().images, result.averages.images)
    assert sum(result.iterations[-1]["class_sizes"]) == 20
    assert np.isfinite(result.iterations[1]["pixel_error_px"])
    assert seen.batches[-1] == (20, 20)


def test_poses_are_where_the_next_run_starts(given: dict[str, np.ndarray]) -> None:
    """Without a shift range the search stays at the origins the particles came with."""
    first = mref_ali2d(given["images"], given["references"], ou=26, xr=3, maxit=1, center=0)
    particles = ParticleSet(ArraySource(given["images"]), poses=first.poses)
    second = mref_ali2d(particles, given["references"], ou=26, xr=0, maxit=1, center=0)
    same = (first.poses.class_index == second.poses.class_index) & (first.poses.mirror == second.poses.mirror)
    assert same.float().mean() > 0.95
    a, b = first.poses.origin_xy_px[same], second.poses.origin_xy_px[same]
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)


def test_a_small_class_becomes_a_random_particle(given: dict[str, np.ndarray]) -> None:
    """SPARX's own collapse, with the random numbers of its seed."""
    references = np.concatenate([given["references"], np.zeros((1, 64, 64), np.float32)])
    result = mref_ali2d(given["images"], references, ou=26, maxit=1, center=0, rand_seed=7)
    assert int(result.averages.members[8]) == 0
    chance = random.Random(7)
    chosen = [chance.randint(0, 63) for _ in range(int((result.averages.members < 4).sum()))][-1]
    seen = np.corrcoef(result.averages.images[8].numpy().ravel(), given["images"][chosen].ravel())[0, 1]
    assert seen == pytest.approx(1.0, abs=1e-5)


def test_mref_user_function_is_applied_to_averages(given: dict[str, np.ndarray]) -> None:
    def one_to_the_right(average: np.ndarray, mask: np.ndarray, frc: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        assert mask.shape == average.shape
        assert frc.shape == (33,)
        return np.roll(average, 1, axis=1), (1, 0)

    plain = mref_ali2d(given["images"], given["references"], ou=26, maxit=1, center=0)
    moved = mref_ali2d(given["images"], given["references"], ou=26, maxit=1, user_function=one_to_the_right)
    rolled = torch.roll(moved.sparx.raw_averages, 1, dims=2)
    torch.testing.assert_close(moved.averages.images, rolled)
    step = moved.sparx.params_header[:, 1:3] - plain.sparx.params_header[:, 1:3]
    sign = torch.where(plain.sparx.params[:, 3] > 0.5, -1.0, 1.0).double()  # the mirror comes after the shift
    torch.testing.assert_close(step, torch.stack([sign, torch.zeros_like(sign)], dim=-1))
    with pytest.raises(RalibError, match="`user_function`"):
        mref_ali2d(given["images"], given["references"], ou=26, maxit=1, user_function=lambda a, m, f: a[:3])


def test_mref_with_ctf_restores_clean_averages(given: dict[str, np.ndarray]) -> None:
    """Particles spoilt by their CTF give the averages of the clean ones back."""
    n = len(given["images"])
    defocus = np.linspace(0.8, 2.4, n)
    ctf = ctf_from_eman2(
        defocus_um=defocus,
        cs_mm=np.full(n, 2.0),
        voltage_kV=np.full(n, 300.0),
        amplitude_contrast_percent=np.full(n, 10.0),
        bfactor_A2=np.zeros(n),
    )
    spoilt = filt_ctf(torch.from_numpy(given["images"]), ctf, 4.0, dopad=False).numpy()
    particles = ParticleSet(ArraySource(spoilt), pixel_size_A=4.0, ctf=ctf)
    options: dict[str, Any] = {"ou": 26, "xr": 2, "maxit": 1, "center": 0}
    clean = mref_ali2d(given["images"], given["references"], **options).sparx
    with_ctf = mref_ali2d(particles, given["references"], CTF=True, snr=1.0, **options).sparx
    without = mref_ali2d(spoilt, given["references"], **options).sparx

    def seen(arrays: SparxArrays) -> float:
        return float(correlations(arrays.raw_averages.numpy(), clean.raw_averages.numpy()).mean())

    assert (with_ctf.params[:, 4] == clean.params[:, 4]).double().mean() > 0.8
    assert seen(with_ctf) > 0.65
    assert seen(with_ctf) > seen(without) + 0.1
    with pytest.raises(RalibError, match="`CTF`"):
        mref_ali2d(spoilt, given["references"], CTF=True, **options)


def test_stops_when_the_criterion_falls(given: dict[str, np.ndarray]) -> None:
    result = mref_ali2d(given["images"][:32], given["references"], ou=26, xr=1, maxit=0)
    criterion = [f["criterion"] for f in result.iterations]
    assert len(criterion) == 10 or criterion[-1] < max(criterion[:-1])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"EQ": True}, "EQ"),
        ({"ou": 40}, "`ou`"),
        ({"center": 8}, "`center`"),
        ({"ts": 0}, "`ts`"),
        ({"maxit": -1}, "`maxit`"),
        ({"ir": 30, "ou": 20}, "`ir`"),
        ({"mask": np.ones((3, 3))}, "mask"),
        ({"batch_size": 0}, "batch"),
    ],
)
def test_mref_bad_options_are_refused(given: dict[str, np.ndarray], options: dict[str, Any], why: str) -> None:
    with pytest.raises(RalibError, match=why):
        mref_ali2d(given["images"][:4], given["references"], **options)


def test_mref_bad_images_are_refused(given: dict[str, np.ndarray]) -> None:
    with pytest.raises(RalibError, match="references"):
        mref_ali2d(given["images"], given["references"][:, :32, :32])
    spoilt = given["images"].copy()
    spoilt[5, 3, 3] = np.nan
    with pytest.raises(RalibError, match="particle 6"):
        mref_ali2d(spoilt, given["references"], ou=26, maxit=1)
    with pytest.raises(RalibError, match="no particles"):
        mref_ali2d(given["images"][:0], given["references"])
