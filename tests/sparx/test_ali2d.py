"""ali2d against EMAN2's own runs, its options, and what must hold of any run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from devices import DEVICES
from ralib import sparx
from ralib.images.ctf import ctf_from_eman2
from ralib.sparx.ali2d import ali2d
from ralib.sparx.ctf import filt_ctf
from ralib.sparx.scf import parabola_peak_2d
from ralib.sparx.stages import stages_of
from ralib.types import ArraySource, ParticleSet, RalibError

CASES: dict[str, dict[str, Any]] = {
    "reffree_xr2_it4": {"xr": 2, "ts": 1, "maxit": 4, "center": -1},
    "reffree_xr2_it3_nomirror": {"xr": 2, "ts": 1, "maxit": 3, "center": 0, "nomirror": True},
    "reffree_xr1_ts05_it3": {"xr": 1, "ts": 0.5, "maxit": 3, "center": 0},
}


@pytest.fixture(scope="module")
def given(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "reffree_input.npz") as data:
        return {name: data[name] for name in data.files}


def correlation(a: Any, b: Any) -> float:
    return float(np.corrcoef(np.asarray(a).ravel(), np.asarray(b).ravel())[0, 1])


def turned(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs((got - expected + 180) % 360 - 180)


def angle_spread_deg(result: Any, given: dict[str, np.ndarray]) -> float:
    """Median error of the angles against the truth, once the average's own angle and hand are taken out."""
    true, hand = torch.from_numpy(given["true_psi"]), torch.from_numpy(given["true_mirror"])
    psi, mirror = result.poses.psi_deg.double(), result.poses.mirror
    flipped = bool((mirror ^ hand).float().mean() > 0.5)
    right = (mirror ^ hand) == flipped
    # After the mirror a particle's own rotation counts the other way round.
    error = (psi + true)[right] * torch.where(mirror[right], -1.0, 1.0)
    wave = torch.polar(torch.ones_like(error), torch.deg2rad(error))
    off = torch.angle(wave / (wave.mean() / wave.mean().abs()))
    return float(torch.rad2deg(off).abs().median())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_ali2d_golden_parameters_are_reproduced(
    given: dict[str, np.ndarray], golden: Path, case: str, device: str
) -> None:
    expected = np.load(golden / f"{case}.npz")
    result = ali2d(given["images"], ou=26, **CASES[case], device=device)
    got, want = result.sparx.params.numpy(), expected["params"]
    same = got[:, 3] == want[:, 3]
    close = same & (np.abs(got[:, 1:3] - want[:, 1:3]).max(1) < 0.01)
    assert same.mean() >= 0.98
    assert close.mean() >= 0.97
    assert np.median(turned(got[close, 0], want[close, 0])) < 0.05
    assert turned(got[close, 0], want[close, 0]).max() < 0.5
    assert correlation(result.sparx.raw_averages, expected["raw_average"]) > 0.995
    assert correlation(result.averages.images, expected["average"]) > 0.995
    assert np.median(turned(-got[close, 0], want[close, 0])) > 10
    assert len(result.iterations) == CASES[case]["maxit"]


def test_poses_follow_the_centred_average(given: dict[str, np.ndarray]) -> None:
    result = ali2d(given["images"], ou=26, xr=2, ts=1, maxit=3, center=1)
    moved = sparx.rot_shift2D(torch.from_numpy(given["images"]), sparx.poses_to_params(result.poses))
    inside = sparx.model_circle(20, 64) > 0.5
    assert correlation(moved.mean(0)[inside], result.averages.images[0][inside]) > 0.9


@pytest.mark.parametrize(
    "options",
    [
        {"random_method": "SCF", "maxit": 4},
        {"center": 1, "maxit": 4},
        {"center": 5, "maxit": 4},
        {"Fourvar": True, "maxit": 4},
        {"dst": 10.0, "xr": "1 1", "ts": "1 1", "maxit": 6},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_finds_the_angles(given: dict[str, np.ndarray], options: dict[str, Any]) -> None:
    result = ali2d(given["images"], **({"ou": 26, "rs": 2, "xr": 2, "ts": 1} | options))
    assert angle_spread_deg(result, given) < 6


def test_ali2d_hill_climbing_raises_the_criterion(given: dict[str, np.ndarray]) -> None:
    options: dict[str, Any] = {"ou": 26, "rs": 3, "xr": 1, "ts": 1, "maxit": 6, "center": 0, "random_method": "SHC"}
    first, again = (ali2d(given["images"], rand_seed=3, **options) for _ in range(2))
    other = ali2d(given["images"], rand_seed=4, batch_size=9, **options)
    torch.testing.assert_close(first.sparx.params, again.sparx.params, atol=0, rtol=0)
    assert not torch.equal(first.sparx.params, other.sparx.params)
    assert first.iterations[-1]["criterion"] > 1.1 * first.iterations[1]["criterion"]


def test_ali2d_batch_size_changes_nothing(given: dict[str, np.ndarray]) -> None:
    for options in ({"maxit": 3}, {"maxit": 3, "random_method": "SHC"}, {"maxit": 3, "random_method": "SCF"}):
        runs = [ali2d(given["images"][:16], ou=20, rs=2, xr=1, ts=1, batch_size=size, **options) for size in (64, 7)]
        torch.testing.assert_close(runs[0].sparx.params, runs[1].sparx.params, atol=1e-3, rtol=1e-5)


def test_ali2d_every_stage_of_lists_runs(given: dict[str, np.ndarray]) -> None:
    result = ali2d(given["images"][:16], ou=24, rs=2, xr="3 1", yr="1 1", ts="1 0.5", maxit=2, center=0)
    assert [f["iteration"] for f in result.iterations] == [1, 2, 3, 4]
    half_steps = result.sparx.params[:, 1:3]
    origin = sparx.transforms.origins(torch.cat([result.sparx.params[:, :1], half_steps], dim=1))
    assert origin[:, 1].abs().max() <= 3.01
    torch.testing.assert_close(2 * origin, (2 * origin).round(), atol=1e-3, rtol=0)
    auto = ali2d(given["images"][:16], ou=24, rs=3, xr="2 1", ts="1 0.5", maxit=0, center=0)
    assert len(auto.iterations) > 3


def test_ali2d_with_ctf_flips_phases(given: dict[str, np.ndarray]) -> None:
    n = len(given["images"])
    ctf = ctf_from_eman2(
        defocus_um=np.linspace(1.5, 3.0, n),
        cs_mm=np.full(n, 2.0),
        voltage_kV=np.full(n, 300.0),
        amplitude_contrast_percent=np.full(n, 10.0),
        bfactor_A2=np.zeros(n),
    )
    spoilt = filt_ctf(torch.from_numpy(given["images"]), ctf, 4.0, dopad=False).numpy()
    options: dict[str, Any] = {"ou": 26, "xr": 2, "ts": 1, "maxit": 1}
    clean = ali2d(given["images"], **options).sparx.raw_averages
    flipped = ali2d(ParticleSet(ArraySource(spoilt), pixel_size_A=4.0, ctf=ctf), CTF=True, **options)
    plain = ali2d(spoilt, **options).sparx.raw_averages
    assert correlation(flipped.sparx.raw_averages, clean) > correlation(plain, clean) + 0.05


def test_stages_of_texts_and_numbers_are_read() -> None:
    stages = stages_of("4 2 1 1", "-1", "2 1 0.5 0.25")
    assert [s.range_xy_px for s in stages] == [(4, 4), (2, 2), (1, 1), (1, 1)]
    assert [s.step_px for s in stages] == [2, 1, 0.5, 0.25]
    assert stages_of(3, [1.5], "1,")[0].range_xy_px == (3, 1.5)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mode": "H"}, "`mode`"),
        ({"randomize": True}, "`randomize`"),
        ({"snr": 2.0}, "`snr`"),
        ({"random_method": "SA"}, "`random_method`"),
        ({"dst": 5.0, "nomirror": True}, "`dst`"),
        ({"nomirror": True, "random_method": "SCF"}, "`nomirror`"),
        ({"xr": "4 2", "ts": "1"}, "`ts`"),
        ({"xr": "four"}, "`xr`"),
        ({"xr": ""}, "`xr`"),
        ({"ts": "0 0 0 0"}, "`ts`"),
        ({"ou": 29}, "edge of a box"),
        ({"CTF": True, "xr": 1, "ts": 1}, "`CTF`"),
    ],
)
def test_ali2d_bad_options_are_refused(given: dict[str, np.ndarray], options: dict[str, Any], why: str) -> None:
    with pytest.raises(RalibError, match=why):
        ali2d(given["images"][:4], **options)


def test_coarse_angles_that_never_hold_are_said(given: dict[str, np.ndarray]) -> None:
    result = ali2d(given["images"][:16], ou=20, xr=1, ts=1, maxit=2, dst=5.0)
    assert "`dst`" in result.warnings[0].what


def test_parabola_peak_2d_of_a_paraboloid_is_exact() -> None:
    y, x = torch.meshgrid(torch.arange(-1.0, 2), torch.arange(-1.0, 2), indexing="ij")
    values = 5 - 2 * (x - 0.3) ** 2 - (y + 0.2) ** 2 + 0.5 * (x - 0.3) * (y + 0.2)
    place, height = parabola_peak_2d(values[None])
    torch.testing.assert_close(place, torch.tensor([[0.3, -0.2]], dtype=torch.float64), atol=1e-5, rtol=0)
    assert float(height) == pytest.approx(5, abs=1e-5)
