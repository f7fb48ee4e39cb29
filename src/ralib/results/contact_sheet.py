"""Class averages as one picture, drawn without a plotting library, which would take longer to load."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ralib.types import ClassAverages

TILE_PX, LABEL_PX, GAP_PX = 128, 16, 6
CLIP_PERCENT = 0.1
"""A grey scale stretched to the very last hot pixel would hide everything else."""


def class_picture(averages: ClassAverages, columns: int = 10) -> Image.Image:
    """Draw the averages, the largest class first, each under its number and members and on its own grey scale.

    Parameters
    ----------
    averages : ClassAverages
        Class averages.
    columns : int, default 10
        Images in a row.

    Returns
    -------
    Image.Image
        The picture.
    """
    order = torch.argsort(averages.members, descending=True, stable=True).tolist()
    columns = max(1, min(columns, len(order)))
    rows = -(-len(order) // columns)
    tiles = averages.images.cpu().numpy()
    across, down = TILE_PX + GAP_PX, TILE_PX + LABEL_PX + GAP_PX
    sheet = Image.new("L", (columns * across + GAP_PX, rows * down + GAP_PX), 255)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, k in enumerate(order):
        x, y = GAP_PX + place % columns * across, GAP_PX + place // columns * down
        pen.text((x + TILE_PX / 2, y), f"{k + 1}: {int(averages.members[k])}", fill=0, font=font, anchor="ma")
        sheet.paste(_tile(tiles[k]), (x, y + LABEL_PX))
    return sheet


def _tile(image: np.ndarray) -> Image.Image:
    """One average (n, n) as a grey square; small boxes are enlarged smoothly, large ones reduced."""
    finite = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    low, high = np.percentile(finite, [CLIP_PERCENT, 100 - CLIP_PERCENT])
    levels = np.clip((finite - low) / max(float(high - low), 1e-12), 0, 1) * 255
    return Image.fromarray(levels.round().astype(np.uint8)).resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
