"""SPARX's single operations against EMAN2's own results: 1e-4 of the data's standard deviation, or said why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ralib import sparx
from ralib.images.centering import METHODS, rot_avg_image
from ralib.images.ctf import ctf_from_eman2
from ralib.sparx.ctf import ctf_2, ctf_img, filt_ctf
from ralib.sparx.rings import make_rings, numrinit, ringwe
from ralib.types import CtfParameters, RalibError


@pytest.fixture(scope="module")
def stored(golden: Path) -> dict[str, torch.Tensor]:
    with np.load(golden / "operations.npz") as data:
        return {name: torch.from_numpy(data[name]) for name in data.files}


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference in units of the expected data's standard deviation."""
    return float((got.double() - expected.double()).abs().max() / expected.double().std())


def angle_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((torch.remainder(got - expected + 180, 360) - 180).abs().max())


@pytest.mark.parametrize("method", ["quadratic", "linear"])
@pytest.mark.parametrize("mode", ["background", "cyclic"])
def test_rot_shift2d_equals_eman2(stored: dict[str, torch.Tensor], method: str, mode: str) -> None:
    rows, expected = stored["alpha_sx_sy_mirror"], stored[f"rot_shift2D_{method}_{mode}"]
    got = sparx.rot_shift2D(stored["images"], rows, interpolation_method=method, mode=mode)
    assert relative(got, expected) < 1e-4
    turned = sparx.rot_shift2D(stored["images"], rows * torch.tensor([-1, 1, 1, 1]), interpolation_method=method)
    assert relative(turned, expected) > 0.5


def test_fshift_equals_eman2_and_its_sign(stored: dict[str, torch.Tensor]) -> None:
    shift = stored["alpha_sx_sy_mirror"][:, 1:3]
    assert relative(sparx.fshift(stored["images"], shift), stored["fshift"]) < 1e-5
    assert relative(sparx.fshift(stored["images"], -shift), stored["fshift"]) > 0.5


def test_combined_and_inverse_parameters_equal_eman2(stored: dict[str, torch.Tensor]) -> None:
    given = stored["combine_params2_in"]
    for got, name in (
        (sparx.combine_params2(given[:, :4], given[:, 4:]), "combine_params2_out"),
        (sparx.inverse_transform2(given[:, :4]), "inverse_transform2_out"),
    ):
        assert angle_error(got[:, 0], stored[name][:, 0]) < 1e-4
        torch.testing.assert_close(got[:, 1:], stored[name][:, 1:], atol=1e-5, rtol=0)
    back = sparx.combine_params2(given[:, :4], sparx.inverse_transform2(given[:, :4]))
    torch.testing.assert_close(back, torch.zeros_like(back), atol=1e-9, rtol=0)


def test_params_to_poses_and_back_is_identity(stored: dict[str, torch.Tensor]) -> None:
    rows = stored["alpha_sx_sy_mirror"]
    back = sparx.poses_to_params(sparx.params_to_poses(rows))
    assert angle_error(back[:, 0], rows[:, 0]) < 1e-4
    torch.testing.assert_close(back[:, 1:], rows[:, 1:], atol=1e-5, rtol=0)


def test_fsc_equals_eman2_with_ring_counts(stored: dict[str, torch.Tensor]) -> None:
    expected = stored["frc"]
    frequency, correlation, count = sparx.fsc(stored["frc_a"][None], stored["frc_b"][None])
    torch.testing.assert_close(frequency, expected[0])
    torch.testing.assert_close(correlation[0], expected[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(count, expected[2])


def test_fsc_mask_and_fit_tanh(stored: dict[str, torch.Tensor]) -> None:
    expected = stored["frc_masked"]
    a, b = stored["frc_masked_a"][None], stored["frc_masked_b"][None]
    frequency, correlation, count = sparx.fsc_mask(a, b, stored["mask"])
    torch.testing.assert_close(frequency, expected[0])
    # Ring 0 is a ratio of two roundings there: the masked images have no mean, so its sign is chance.
    torch.testing.assert_close(correlation[0, 1:], expected[1, 1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(count, expected[2])
    cutoff, width = sparx.fit_tanh(frequency, correlation)
    fitted = torch.stack([cutoff[0], width[0]])
    torch.testing.assert_close(fitted, stored["fit_tanh_of_frc_masked"], atol=1e-5, rtol=0)


def test_fit_tanh_perfect_and_zero_curves_are_clamped() -> None:
    frequency = torch.linspace(0, 0.5, 33, dtype=torch.float64)
    perfect, nothing = torch.ones(33), torch.zeros(33)
    cutoff, width = sparx.fit_tanh(frequency, torch.stack([perfect, nothing]))
    assert (cutoff[0], width[0]) == (0.4, 0.2)
    assert torch.isfinite(cutoff).all()
    assert torch.isfinite(width).all()


def test_filt_tanl_equals_eman2_for_each_image(stored: dict[str, torch.Tensor]) -> None:
    expected = stored["filt_tanl_0.2_0.1"]
    images = stored["images"][: len(expected)]
    assert relative(sparx.filt_tanl(images, 0.2, 0.1), expected) < 1e-5
    each = sparx.filt_tanl(images, torch.tensor([0.2, 0.3, 0.2]), torch.tensor([0.1, 0.1, 0.1]))
    assert relative(each[0], expected[0]) < 1e-5
    assert relative(each[1], expected[1]) > 1e-3


def test_filt_table_is_a_radial_filter(stored: dict[str, torch.Tensor]) -> None:
    n = 64
    table = torch.zeros(40, dtype=torch.float64)
    table[:11] = 1.0
    spectrum = torch.fft.rfft2(sparx.filt_table(stored["images"], table)).abs()
    radius = torch.sqrt(torch.fft.fftfreq(n)[:, None] ** 2 + torch.fft.rfftfreq(n)[None] ** 2) * n
    whole = torch.fft.rfft2(stored["images"]).abs()
    torch.testing.assert_close(spectrum[:, radius <= 10], whole[:, radius <= 10], atol=1e-3, rtol=1e-4)
    assert spectrum[:, radius >= 11].max() < 1e-3


def test_center_2d_by_phase_equals_eman2(stored: dict[str, torch.Tensor]) -> None:
    image, shift = sparx.center_2D(stored["center_phase_input"], 1)
    torch.testing.assert_close(shift, stored["center_phase_shift"], atol=1e-4, rtol=0)
    assert relative(image, stored["center_phase_image"]) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_every_center_method_finds_a_moved_blob(method: int) -> None:
    n, moved = 64, torch.tensor([[5.0, -3.0], [0.0, 0.0]], dtype=torch.float64)
    axis = torch.arange(n) - n // 2
    ring = torch.sqrt(axis[:, None] ** 2.0 + axis[None, :] ** 2.0)
    blob = torch.exp(-0.5 * ((ring - (5 if method == 3 else 0)) / 3) ** 2)
    images = sparx.fshift(blob.expand(2, n, n), moved)
    reference = sparx.model_circle(4, n) if method == 7 else blob
    centred, shift = sparx.center_2D(images, method, reference=reference)
    expected = torch.zeros_like(moved) if method == 0 else moved
    torch.testing.assert_close(shift, expected, atol=0.02, rtol=0)
    if method:
        torch.testing.assert_close(centred[0], blob, atol=0.02, rtol=0)


def test_center_by_threshold_sets_darker_pixels_to_the_threshold() -> None:
    """SPARX's threshold_to_minval, by EMAN2's threshold.belowtominval."""
    n = 32
    image = torch.zeros(1, n, n, dtype=torch.float64)
    image[0, 20:23, 12:16] = 5.0  # nothing between the threshold and this
    c = torch.arange(n) - n // 2
    inside = image[0][torch.hypot(c[:, None].float(), c[None, :].float()) <= n // 2 - 2]
    clamped = image.clamp_min(float(inside.mean() + inside.std()))
    _, expected = sparx.center_2D(clamped, 1)
    _, shift = sparx.center_2D(image, 6)
    torch.testing.assert_close(shift, expected, atol=0.02, rtol=0)


def test_center_limits_and_errors() -> None:
    far = torch.zeros(1, 64, 64)
    far[0, 50, 40] = 1.0
    _, shift = sparx.center_2D(far, 1, search_range_px=10)
    torch.testing.assert_close(shift, torch.tensor([[8.0, 0.0]], dtype=torch.float64), atol=1e-5, rtol=0)
    with pytest.raises(RalibError, match="not a method"):
        sparx.center_2D(far, 9)
    with pytest.raises(RalibError, match="reference"):
        sparx.center_2D(far, 4)


def test_average_shift_turns_mirrored_x_back() -> None:
    rows = torch.tensor([[0.0, 2.0, 1.0, 0.0], [0.0, -4.0, 3.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(sparx.average_shift(rows), torch.tensor([3.0, 2.0], dtype=torch.float64))


def test_rotational_average_keeps_a_round_image() -> None:
    axis = torch.arange(64) - 32
    round_image = torch.exp(-(axis[:, None] ** 2.0 + axis[None, :] ** 2.0) / 200)
    got = rot_avg_image(round_image[None])[0]
    assert (got - round_image).abs().max() < 0.01


def test_numrinit_and_ringwe_equal_eman2(stored: dict[str, torch.Tensor]) -> None:
    table = numrinit(1, 26)
    assert table == [tuple(row) for row in stored["numrinit"].tolist()]
    torch.testing.assert_close(torch.tensor(ringwe(table), dtype=torch.float64), stored["ringwe"])
    assert make_rings(1, 26, mode="H").longest == 128
    with pytest.raises(RalibError, match="`ir`"):
        make_rings(30, 20)


def _ctf(stored: dict[str, torch.Tensor], copies: int) -> tuple[CtfParameters, float]:
    defocus, cs, voltage, pixel_A, bfactor, contrast, astigmatism, angle = stored["ctf_params"].tolist()
    params = ctf_from_eman2(
        defocus_um=[defocus] * copies,
        cs_mm=[cs] * copies,
        voltage_kV=[voltage] * copies,
        amplitude_contrast_percent=[contrast] * copies,
        bfactor_A2=[bfactor] * copies,
        astigmatism_um=[astigmatism] * copies,
        astigmatism_angle_deg=[angle] * copies,
    )
    return params, pixel_A


def test_ctf_images_and_filters_equal_eman2(stored: dict[str, torch.Tensor]) -> None:
    params, pixel_A = _ctf(stored, 2)
    assert relative(ctf_img(params, 64, pixel_A)[0], stored["ctf_img_re"]) < 1e-4
    images = stored["images"][:2]
    assert relative(filt_ctf(images, params, pixel_A), stored["filt_ctf"]) < 1e-5
    assert relative(filt_ctf(images, params, pixel_A, binary=True), stored["filt_ctf_phaseflip"]) < 1e-5
    assert relative(filt_ctf(images, params, pixel_A, dopad=False), stored["filt_ctf"]) > 1e-2
    profile = ctf_2(params, 64, pixel_A)
    assert profile.shape == (2, 57)
    torch.testing.assert_close(profile[0, 0].item(), 0.01, atol=1e-6, rtol=0)
