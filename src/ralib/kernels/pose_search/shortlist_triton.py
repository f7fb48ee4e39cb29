"""Triton form of `shortlist`: one particle a program."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _wrapped(degrees):
    return degrees - 360.0 * tl.floor(degrees / 360.0 + 0.5)


@triton.jit(do_not_specialize=["n_candidates", "n_particles", "n_kept"])
def _shortlist(
    row, pose, row_out, pose_out, n_candidates, n_particles, n_kept, same_deg, same_px,
    DISTINCT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one particle. A candidate's place is the number of those before it; they are asked one by one."""
    particle = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    here = i < n_candidates
    at = i.to(tl.int64) * n_particles + particle
    template = tl.load(row + at, mask=here, other=-1)
    psi = tl.load(pose + 4 * at, mask=here, other=0.0)
    x = tl.load(pose + 4 * at + 1, mask=here, other=0.0)
    y = tl.load(pose + 4 * at + 2, mask=here, other=0.0)
    score = tl.load(pose + 4 * at + 3, mask=here, other=float("-inf"))
    score = tl.where(score == score, score, float("-inf"))
    if DISTINCT:
        lost = i < 0
        for j in range(n_candidates):
            other = tl.cast(j, tl.int64) * n_particles + particle
            near = template == tl.load(row + other)
            near &= tl.abs(_wrapped(psi - tl.load(pose + 4 * other))) < same_deg
            near &= tl.abs(x - tl.load(pose + 4 * other + 1)) < same_px
            near &= tl.abs(y - tl.load(pose + 4 * other + 2)) < same_px
            its = tl.load(pose + 4 * other + 3)
            lost |= near & ((its > score) | ((its == score) & (j < i)))
        score = tl.where(lost, float("-inf"), score)
    place = tl.zeros((BLOCK,), tl.int32)
    for j in range(n_candidates):
        its = tl.max(tl.where(i == j, score, float("-inf")), axis=0)
        place += ((its > score) | ((its == score) & (j < i))).to(tl.int32)
    kept = here & (place < n_kept)
    to = place.to(tl.int64) * n_particles + particle
    tl.store(row_out + to, template, mask=kept)
    tl.store(pose_out + 4 * to, psi, mask=kept)
    tl.store(pose_out + 4 * to + 1, x, mask=kept)
    tl.store(pose_out + 4 * to + 2, y, mask=kept)
    tl.store(pose_out + 4 * to + 3, score, mask=kept)


def shortlist_triton(row: Tensor, pose: Tensor, n: int, same: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    """See `shortlist.shortlist`."""
    n_candidates, n_particles = row.shape
    n = min(n, n_candidates)
    row_out, pose_out = row.new_empty(n, n_particles), pose.new_empty(n, n_particles, 4)
    block = max(16, triton.next_power_of_2(n_candidates))
    _shortlist[(n_particles,)](
        row.contiguous(), pose.contiguous(), row_out, pose_out, n_candidates, n_particles, n, *(same or (0.0, 0.0)),
        DISTINCT=same is not None, BLOCK=block, num_warps=1,
    )  # fmt: skip
    return row_out, pose_out
