"""The best few of every particle's candidate poses, those on their way to one maximum counted once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ralib.conventions import wrap_deg


def shortlist(row: Tensor, pose: Tensor, n: int, same: tuple[float, float] | None = None) -> tuple[Tensor, Tensor]:
    """The n candidates with the highest score of each particle, best first: row (n, b) and pose (n, b, 4).

    row   (c, b) which template
    pose  (c, b, 4): psi in degrees, x and y in pixels, score
    same  degrees and pixels: of candidates of one template closer than this only the best keeps its score; the
          others come last, at minus infinity
    """
    if pose.is_cuda:
        from ralib.kernels.pose_search.shortlist_triton import shortlist_triton

        return shortlist_triton(row, pose, n, same)
    return shortlist_plain(row, pose, n, same)


def shortlist_plain(
    row: Tensor, pose: Tensor, n: int, same: tuple[float, float] | None = None
) -> tuple[Tensor, Tensor]:
    """The plain form of `shortlist`."""
    psi, x, y, score = pose.unbind(-1)
    score = torch.where(score.isnan(), -math.inf, score)
    if same is not None:
        near = row[:, None] == row
        near &= wrap_deg(psi[:, None] - psi).abs() < same[0]
        near &= ((x[:, None] - x).abs() < same[1]) & ((y[:, None] - y).abs() < same[1])
        number = torch.arange(len(score), device=score.device)[:, None, None]
        better = (score > score[:, None]) | ((score == score[:, None]) & (number.transpose(0, 1) < number))
        score = torch.where((near & better).any(1), -math.inf, score)
    score, at = (part[:n] for part in score.sort(dim=0, descending=True, stable=True))
    kept = pose.gather(0, at[..., None].expand(-1, -1, 4))
    return row.gather(0, at), torch.cat([kept[..., :3], score[..., None]], dim=-1)
