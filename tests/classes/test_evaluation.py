"""Ring correlation, resolution, pixel error, the Cramer-Rao bound and partition measures on cases with known
answers.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from ralib.classes import evaluation
from ralib.images.fourier import ring_counts, ring_sums
from ralib.images.frc import frc, resolution_frequency, ssnr
from ralib.kernels.figures import pixel_error
from ralib.types import Poses


def blob(n: int, x: float, y: float, width: float = 3.0) -> torch.Tensor:
    c = torch.arange(n, dtype=torch.float64) - n // 2
    return torch.exp(-((c[None, :] - x) ** 2 + (c[:, None] - y) ** 2) / (2 * width**2))


@pytest.mark.parametrize("n", [32, 33])
def test_ring_sums_cover_the_plane_once(n: int) -> None:
    image = torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    power = torch.fft.fft2(image).abs().square()
    f = np.fft.fftfreq(n) * n
    ring = np.round(np.hypot(f[:, None], f[None, :]))
    expected = [float(power[torch.from_numpy(ring == r)].sum()) for r in range(n // 2 + 1)]
    sums = ring_sums(torch.fft.rfft2(image).abs().square())
    np.testing.assert_allclose(sums.numpy(), expected, rtol=1e-10)


def test_frc_of_signal_with_noise_gives_its_snr() -> None:
    g = torch.Generator().manual_seed(2)
    signal = torch.randn(200, 32, 32, generator=g)
    halves = [signal + 0.5 * torch.randn(200, 32, 32, generator=g) for _ in range(2)]
    curve = frc(*halves).mean(0)
    assert curve[3:].mean() == pytest.approx(1 / 1.25, abs=0.01)
    assert ssnr(curve)[3:].mean() == pytest.approx(8.0, rel=0.06), "the average of two has half the noise"
    assert frc(signal, signal)[:, 1:].min() > 0.999


def test_frc_of_stored_images_equals_eman2(golden: Path) -> None:
    with np.load(golden / "operations.npz") as data:
        a, b, (frequency, expected, count) = data["frc_a"], data["frc_b"], data["frc"]
    curve = frc(torch.from_numpy(a)[None], torch.from_numpy(b)[None])[0]
    np.testing.assert_allclose(frequency, np.arange(len(curve)) / 64, atol=1e-6)
    np.testing.assert_allclose(curve[:-1], expected[:-1], atol=2e-5)  # EMAN2 counts the last ring otherwise
    assert np.corrcoef(ring_counts(64)[1:-1], count[1:-1])[0, 1] > 0.999


def test_resolution_is_interpolated_between_rings() -> None:
    curve = torch.ones(1, 17)
    curve[0, 8] = 0.2
    curve[0, 9:] = 0.0
    expected = (8 + (0.2 - 0.143) / 0.2) / 32
    assert resolution_frequency(curve.clone()).item() == pytest.approx(expected, abs=1e-6)
    assert resolution_frequency(torch.ones(2, 17)).tolist() == [0.5, 0.5]
    odd = resolution_frequency(curve, box=33).item()
    assert odd == pytest.approx(expected * 32 / 33, abs=1e-6), "a box of 33 px has as many rings"
    curve[0, 5:] = torch.nan
    assert resolution_frequency(curve).item() == pytest.approx((4 + 1 - 0.143) / 32, abs=1e-6), (
        "what is no number is no signal"
    )


def test_effective_classes_of_known_sizes_is_exact() -> None:
    assert evaluation.effective_classes(torch.tensor([5, 5, 5, 5])) == pytest.approx(4)
    assert evaluation.effective_classes(torch.tensor([9, 0, 0])) == pytest.approx(1)
    assert evaluation.effective_classes(torch.zeros(3)) == 0.0


def test_pixel_error_is_the_rms_over_a_disc() -> None:
    a, b = Poses.identity(1), Poses.identity(1)
    b = b.replace(psi_deg=torch.tensor([7.0]), origin_xy_px=torch.tensor([[0.6, -0.3]]))
    g = np.random.default_rng(0)
    r, t = 20 * np.sqrt(g.random(200_000)), 2 * np.pi * g.random(200_000)
    p = (r * np.cos(t) + 1j * r * np.sin(t)) - (0.6 - 0.3j)  # a disc about the second pose's centre
    moved = np.exp(1j * np.deg2rad(7)) * (p + 0.6 - 0.3j) - (p + 0.6 - 0.3j) + (0.6 - 0.3j)
    expected = math.sqrt(np.mean(np.abs(moved) ** 2))
    assert pixel_error(b.fields(), a.fields(), 20.0).item() == pytest.approx(expected, rel=0.01)
    assert torch.isnan(pixel_error(b.replace(mirror=torch.tensor([True])).fields(), a.fields(), 20.0)).all()


def test_pose_bound_matches_numerical_fisher_information() -> None:
    n = 48

    def image(psi: float, x: float, y: float) -> torch.Tensor:
        c, s = math.cos(psi), math.sin(psi)
        return sum(blob(n, c * u - s * v + x, s * u + c * v + y) for u, v in ((6.0, 0.0), (-4.0, 5.0), (0.0, -9.0)))

    h = 1e-4
    columns = []
    for step in np.eye(3) * h:
        columns.append(((image(*step) - image(*(-step))) / (2 * h)).flatten())
    jacobian = torch.stack(columns)
    sd = (torch.linalg.inv(jacobian @ jacobian.T) * 0.3**2).diagonal().sqrt()
    angle, x, y = evaluation.pose_bound(image(0, 0, 0), 0.3)
    assert angle == pytest.approx(math.degrees(float(sd[0])), rel=1e-4)
    assert (x, y) == (pytest.approx(float(sd[1]), rel=1e-4), pytest.approx(float(sd[2]), rel=1e-4))
    assert evaluation.pose_bound(image(0, 0, 0), 0.3, outer_radius=8)[0] > angle, "fewer pixels know less"
    median_angle, median_shift = evaluation.median_of_bound((1.0, 1.0, 1.0))
    assert median_angle == pytest.approx(0.6745, abs=1e-3)
    assert median_shift == pytest.approx(math.sqrt(2 * math.log(2)), rel=0.01)


def test_spread_within_classes_ignores_the_class_offset() -> None:
    g = torch.Generator().manual_seed(0)
    truth = Poses.identity(200).replace(psi_deg=360 * torch.rand(200, generator=g) - 180)
    truth = truth.replace(class_index=torch.arange(200) % 2)
    found = truth.replace(psi_deg=truth.psi_deg + torch.where(truth.class_index == 0, 170.0, -20.0))
    angle, shift = evaluation.spread_within_classes(found, truth, 2)
    assert angle.max() < 1e-3
    assert shift.max() == 0


def test_partition_measures_equal_scikit_learn() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 4, (300,), generator=g), torch.randint(0, 5, (300,), generator=g)
    assert evaluation.adjusted_rand_index(a, b) == pytest.approx(adjusted_rand_score(b, a), abs=1e-12)
    assert evaluation.adjusted_rand_index(a, (a + 1) % 4) == pytest.approx(1.0)
    assert evaluation.purity(torch.tensor([0, 0, 0, 1, 1, -1]), torch.tensor([0, 0, 1, 1, 1, 1])) == pytest.approx(0.8)
