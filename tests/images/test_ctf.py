"""The CTF against EMAN2's own numbers, an independent formula, and its invariants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ralib.images.ctf import apply_ctf, ctf_2d, ctf_from_eman2, ctf_polar, electron_wavelength_A, phase_flip
from ralib.types import CtfParameters, RalibError


def make_params(**changes: float | list[float]) -> CtfParameters:
    values: dict[str, object] = {
        "defocus_u_A": 18000.0,
        "defocus_v_A": 16500.0,
        "astigmatism_angle_deg": 25.0,
        "voltage_kV": 300.0,
        "spherical_aberration_mm": 2.7,
        "amplitude_contrast": 0.1,
        "phase_shift_deg": 0.0,
        "bfactor_A2": 0.0,
    }
    values.update(changes)
    return CtfParameters(**{k: np.atleast_1d(np.asarray(v, float)) for k, v in values.items()})


def eman2_params(golden: Path) -> tuple[CtfParameters, float]:
    """The golden CTF with SPARX's rounded electron wavelength undone: same phase, to the last digit."""
    df, cs, kv, apix, bfactor, contrast, astigmatism, angle = np.load(golden / "operations.npz")["ctf_params"]
    ratio = 12.398 / np.sqrt(kv * (1022.0 + kv)) / electron_wavelength_A(np.array([kv]))
    params = ctf_from_eman2(
        defocus_um=df * ratio,
        cs_mm=cs * ratio**3,
        voltage_kV=[kv],
        amplitude_contrast_percent=[contrast],
        bfactor_A2=[bfactor],
        astigmatism_um=astigmatism * ratio,
        astigmatism_angle_deg=[angle],
    )
    return params, float(apix)


def test_ctf_2d_eman2_parameters_agree_with_eman2(golden: Path) -> None:
    expected = torch.as_tensor(np.load(golden / "operations.npz")["ctf_img_re"])
    params, apix = eman2_params(golden)
    got = ctf_2d(params, 64, apix)[0]
    # Row 32 is the Nyquist row, which EMAN2 takes as +1/2 and rfft2 as -1/2.
    rows = torch.arange(64) != 32
    assert (got - expected)[rows].abs().max() < 2e-5
    turned = ctf_2d(make_params(defocus_u_A=17600, defocus_v_A=16400, astigmatism_angle_deg=70), 64, apix)[0]
    assert (turned - expected)[rows].abs().max() > 0.1


def test_apply_ctf_and_phase_flip_agree_with_eman2(golden: Path) -> None:
    """filt_ctf doubles the box with the mean of the image's edge, filters, and cuts the box out again."""
    stored = np.load(golden / "operations.npz")
    images = torch.as_tensor(stored["images"])[: len(stored["filt_ctf"])]
    edge = torch.ones(64, 64, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    padded = images[:, edge].mean(1)[:, None, None].repeat(1, 128, 128)
    padded[:, :64, :64] = images
    params, apix = eman2_params(golden)
    ctf = ctf_2d(params, 128, apix)
    for apply, name in ((apply_ctf, "filt_ctf"), (phase_flip, "filt_ctf_phaseflip")):
        got = apply(padded, ctf)[:, :64, :64]
        difference = torch.fft.rfft2(got - torch.as_tensor(stored[name]))
        difference[:, 32] = 0  # the Nyquist row again
        assert torch.fft.irfft2(difference).abs().max() < 1e-4 * images.std(), name


def test_ctf_2d_agrees_with_an_independent_formula() -> None:
    """One frequency worked out by hand from the text-book formula, in double precision."""
    params = make_params(phase_shift_deg=30.0, bfactor_A2=50.0)
    kx, ky = 7 / (64 * 2.0), -11 / (64 * 2.0)
    wavelength = electron_wavelength_A(np.array([300.0]))[0]
    assert wavelength == pytest.approx(0.019687, abs=1e-6)
    k2, theta = kx**2 + ky**2, np.arctan2(ky, kx)
    defocus = 0.5 * (18000 + 16500) + 0.5 * (18000 - 16500) * np.cos(2 * (theta - np.deg2rad(25)))
    chi = np.pi * wavelength * defocus * k2 - 0.5 * np.pi * 2.7e7 * wavelength**3 * k2**2
    expected = np.sin(chi + np.deg2rad(30) + np.arcsin(0.1)) * np.exp(-50 / 4 * k2)
    got = ctf_2d(params, 64, 2.0, dtype=torch.float64)[0, -11, 7].item()
    assert got == pytest.approx(expected, abs=1e-9)


def test_ctf_polar_agrees_with_ctf_2d() -> None:
    params = make_params(defocus_u_A=[9000.0, 21000.0], defocus_v_A=[8000.0, 21000.0])
    radius = torch.arange(1, 30, dtype=torch.float64) / (64 * 3.0)
    polar = ctf_polar(params, radius, torch.tensor([0.0, torch.pi / 2], dtype=torch.float64))
    grid = ctf_2d(params, 64, 3.0, dtype=torch.float64)
    assert polar.shape == (2, 29, 2)
    torch.testing.assert_close(polar[:, :, 0], grid[:, 0, 1:30])
    torch.testing.assert_close(polar[:, :, 1], grid[:, 1:30, 0])


def test_ctf_2d_underfocus_low_frequencies_keep_their_sign() -> None:
    ctf = ctf_2d(make_params(), 64, 2.0)[0]
    assert ctf[0, 0] == pytest.approx(0.1, abs=1e-6)
    assert (ctf[0, :4] > 0).all()


def test_ctf_from_eman2_phase_plate_beyond_90_degrees_becomes_a_phase_shift() -> None:
    params = ctf_from_eman2(
        defocus_um=[1.0], cs_mm=[2.7], voltage_kV=[300], amplitude_contrast_percent=[150.0], bfactor_A2=[0.0]
    )
    total = np.arcsin(params.amplitude_contrast) + np.deg2rad(params.phase_shift_deg)
    np.testing.assert_allclose(total, np.pi - np.arcsin(0.5))


def test_phase_flip_restores_the_sign_of_every_frequency() -> None:
    image = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
    ctf = ctf_2d(make_params(astigmatism_angle_deg=0.0), 64, 3.0)
    flipped = phase_flip(apply_ctf(image, ctf), ctf)
    torch.testing.assert_close(flipped, apply_ctf(image, ctf.abs()), atol=1e-5, rtol=0)
    assert (flipped - image).abs().max() > 0.1


@pytest.mark.parametrize("pixel_size", [0.0, -1.0, float("nan")])
def test_ctf_2d_pixel_size_not_positive_is_refused(pixel_size: float) -> None:
    with pytest.raises(RalibError, match="pixel size"):
        ctf_2d(make_params(), 32, pixel_size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ctf_2d_half_precision_is_the_single_one_rounded(dtype: torch.dtype) -> None:
    """Phases of many turns have no digits left in half precision."""
    params = make_params(defocus_u_A=70000.0, defocus_v_A=69000.0)
    half = ctf_2d(params, 64, 1.0, dtype=dtype)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), ctf_2d(params, 64, 1.0), atol=5e-3, rtol=0)
