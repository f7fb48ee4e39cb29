"""classes.png: every average in its place, largest class first."""

from __future__ import annotations

import numpy as np
import torch

from ralib.results.contact_sheet import GAP_PX, LABEL_PX, TILE_PX, class_picture
from ralib.types import ClassAverages


def tile(sheet: np.ndarray, place: int, columns: int) -> np.ndarray:
    top = GAP_PX + place // columns * (TILE_PX + LABEL_PX + GAP_PX) + LABEL_PX
    left = GAP_PX + place % columns * (TILE_PX + GAP_PX)
    return sheet[top : top + TILE_PX, left : left + TILE_PX].astype(float)


def test_largest_class_first_each_on_its_own_grey_scale() -> None:
    y, x = np.mgrid[:32, :32] - 16.0
    spots = [np.exp(-((x - 8 * np.cos(k)) ** 2 + (y - 8 * np.sin(k)) ** 2) / 20) * 10.0**k for k in range(5)]
    images = torch.from_numpy(np.stack(spots)).float()
    members = torch.tensor([3, 50, 7, 0, 9])
    sheet = np.asarray(class_picture(ClassAverages(images, members), columns=2))
    assert sheet.shape[1] == 2 * (TILE_PX + GAP_PX) + GAP_PX
    for place, k in enumerate((1, 4, 2, 0, 3)):
        shown = tile(sheet, place, 2)
        assert shown.max() == 255
        row, column = np.unravel_index(shown.argmax(), shown.shape)
        assert np.hypot(column / 4 - 16 - 8 * np.cos(k), row / 4 - 16 - 8 * np.sin(k)) < 1.5
    assert (tile(sheet, 5, 2) == 255).all(), "nothing after the last"


def test_averages_without_content_are_drawn() -> None:
    images = torch.zeros(2, 200, 200)
    images[1] = torch.nan
    picture = class_picture(ClassAverages(images, torch.tensor([0, 0])))
    assert picture.size == (2 * (TILE_PX + GAP_PX) + GAP_PX, TILE_PX + LABEL_PX + 2 * GAP_PX)
