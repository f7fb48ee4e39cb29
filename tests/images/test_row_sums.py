"""Means and deviations of rows, on a CPU and on a GPU."""

import pytest
import torch

from devices import DEVICES
from ralib.images.row_sums import Regions, row_mean, row_sd


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1801, 1802, 1804])
def test_row_sums_are_the_same_wherever_a_row_begins(device: str, length: int) -> None:
    values = (torch.randn(257, length, generator=torch.Generator().manual_seed(length)) + 0.5).to(device)
    later = torch.cat([values[:1], values[:-1]])
    for of in (row_mean, row_sd):
        assert torch.equal(of(values)[:-1], of(later)[1:])
    torch.testing.assert_close(row_mean(values).cpu(), values.cpu().mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(row_sd(values).cpu(), values.cpu().std(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_means_over_regions_are_the_same_wherever_a_row_stands(device: str) -> None:
    values = torch.randn(64, 301, generator=torch.Generator().manual_seed(1)).to(device)
    numbers = torch.arange(301, device=device)
    regions = Regions((numbers[::3], numbers[5:6], numbers), 301)
    found = regions.means(values)
    assert torch.equal(regions.means(values.roll(1, 0)), found.roll(1, 0))
    expected = torch.stack([values[:, ::3].mean(1), values[:, 5], values.mean(1)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
