"""The pose search: every particle against every reference over rotations, mirror and shifts, then off the grid.

A reference, masked to the search's disc and scaled to unit norm, is the template T. The score of a pose is the inner
product of the particle with the posed template,

    S(psi, origin, mirror) = sum_p I(p) T(M(R(psi)(p + origin))),

band-limited to `max_frequency_per_px`. In polar Fourier samples (see `polar`) with angular orders a_m of the particle
and b_m of the template shifted by s in its own frame,

    S(psi) = sum_k w_k Re sum_m a_m(k) conj(b_m(k)) exp(-i m psi)        (mirrored: conj(b_m) replaced by b_m).

1. Grid: the sums over k are one matrix product per order, for all (reference, shift, mirror) and particles together;
   the sum over m and the maximum over psi are `ops.rotational_max`. Shifting templates, not particles, makes this
   cost independent of where each particle is centred.
2. The best few (reference, shift, mirror, psi) of each particle take Newton steps in (psi, x, y), exact in the shift
   and quadratic in psi; fewer go on after each step, and the best one wins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ralib.conventions import mirror_x, rotate_xy, wrap_deg
from ralib.ops.pose_moments import pose_moments
from ralib.ops.rotational_score import angular_tables, decode_angle_deg, rotational_max
from ralib.polar import PolarGrid
from ralib.types import Poses

FINE = 4
"""Fine angular steps per sample of the polar grid, where templates are tabulated for the Newton steps."""


@dataclass(frozen=True)
class Templates:
    """References ready for the search.

    orders    per shift ring: (m, g * 2, 2, 2 K) real rows for the matrix product, g = references x shifts, 2 = mirror
    table     (2 k, FINE, K, A + H) complex: plain, then mirrored templates, at fine rotations
    power     (k,) mean square of the band-limited template (1 means none was lost)
    """

    n_references: int
    n_orders: int
    first_radius: int
    rows: list[Tensor]
    table: Tensor


class PoseSearch:
    """Finds the best reference, rotation, mirror and shift of particles.

    box                    image size, pixels
    outer_radius           the templates' disc, pixels
    inner_radius           radius of a hole in it; 1 or less means none
    shift_range_xy_px      how far a particle may move from its centre, along x and y
    shift_step_px          grid step of the shifts; None chooses it from the band limit
    mirror                 whether mirrored poses are searched
    max_frequency_per_px   band limit of the score
    candidates             how many grid poses take the first, second, ... Newton step
    coarse_loss            power of the templates that the grid search may leave out
    """

    def __init__(
        self,
        *,
        box: int,
        outer_radius: float,
        inner_radius: float = 1,
        shift_range_xy_px: tuple[float, float] = (3.0, 3.0),
        shift_step_px: float | None = None,
        mirror: bool = True,
        max_frequency_per_px: float = 0.5,
        candidates: tuple[int, ...] = (12, 3, 1),
        coarse_loss: float = 0.003,
        device: torch.device | str = "cpu",
    ) -> None:
        self.box, self.outer_radius, self.inner_radius = box, float(outer_radius), float(inner_radius)
        self.shift_range_xy_px = shift_range_xy_px
        self.mirror = mirror
        self.candidates = candidates
        self.coarse_loss = coarse_loss
        self.device = torch.device(device)
        reach = math.hypot(*shift_range_xy_px)
        self.grid = PolarGrid.create(
            box,
            support_radius_px=self.outer_radius + min(reach, box / 2 - self.outer_radius) + 1,
            max_frequency_per_px=max_frequency_per_px,
            device=self.device,
        )
        self.shift_step_px = shift_step_px or 1.0
        self.rings = _shift_rings(shift_range_xy_px, self.shift_step_px, self.device)
        self.mask = ring_mask(box, self.inner_radius, self.outer_radius, device=self.device)
        fx, fy = (2 * math.pi * f for f in self.grid.frequency_xy())
        w = self.grid.weight[:, None].expand_as(fx)
        self._basis = torch.stack(
            [fx, fy, w, w * fx, w * fy, w * fx * fx, w * fx * fy, w * fy * fy]
        ).contiguous()
        self._templates: Templates | None = None

    def prepare(self, images: Tensor) -> Tensor:
        """Polar Fourier samples (b, K, H) of particle images (b, n, n); computed once, searched many times."""
        return self.grid.transform(images.to(self.device))

    def set_references(self, references: Tensor) -> None:
        """Take references (k, n, n): masked to the ring area, mean 0 and norm 1 there."""
        self.set_template_samples(self.grid.transform(self.templates(references)))

    def templates(self, references: Tensor) -> Tensor:
        """The masked, normalised templates (k, n, n) that particles are compared with."""
        refs = references.to(self.device, torch.float32)
        mean = (refs * self.mask).sum((1, 2), keepdim=True) / self.mask.sum()
        refs = (refs - mean) * self.mask
        norm = torch.linalg.vector_norm(refs, dim=(1, 2), keepdim=True)
        return refs / norm.clamp(min=1e-20)

    def set_template_samples(self, samples: Tensor) -> None:
        """Take templates as polar Fourier samples (k, K, H), as they are."""
        n_orders, first = self._extent(samples)
        rows = [self._rows(samples, shifts, n_orders, first) for shifts, _ in self.rings]
        self._templates = Templates(len(samples), n_orders, first, rows, self._fine_table(samples))

    def search(self, samples: Tensor, centre_xy_px: Tensor | None = None) -> Poses:
        """Best class and pose of each particle, given its samples (b, K, H) and the origin (b, 2) to search around."""
        return self._refined(samples, self._centre(samples, centre_xy_px), None)

    def search_within(
        self, samples: Tensor, class_index: Tensor, centre_xy_px: Tensor | None = None
    ) -> Poses:
        """Best pose of each particle in the class (b,) given."""
        return self._refined(samples, self._centre(samples, centre_xy_px), class_index)

    def scores(self, samples: Tensor, centre_xy_px: Tensor | None = None) -> Tensor:
        """Best score on the grid of each particle against each reference, (b, k)."""
        values = [v for v, _ in self._grid_values(samples, self._centre(samples, centre_xy_px))]
        best = torch.stack([v.flatten(1, 2).amax(1) for v in values])
        return best.amax(0).T

    # -- the grid ---------------------------------------------------------------------------------------------------

    def _extent(self, samples: Tensor) -> tuple[int, int]:
        """How many orders, and up to which radius, the grid search needs to lose less than `coarse_loss` of power."""
        spectrum = self.grid.angular_spectrum(samples, self.grid.n_angles // 2)
        power = (spectrum.abs() ** 2 * self.grid.weight[:, None]).sum(0)
        power = power / power.sum()
        by_order, by_radius = power.sum(0).cumsum(0), power.sum(1).cumsum(0)
        loss = 1 - 0.5 * self.coarse_loss
        n_orders = int((by_order < loss).sum()) + 1
        n_radii = int((by_radius < loss).sum()) + 1
        return 8 * math.ceil(n_orders / 8), n_radii

    def _rows(self, samples: Tensor, shifts: Tensor, n_orders: int, n_radii: int) -> Tensor:
        """Left factors of the grid's matrix products: (m, k * shifts * mirror * 2, 2 n_radii)."""
        moved = samples[:, None] * self.grid.shift_phase(-shifts)
        b = self.grid.angular_spectrum(moved, n_orders)[:, :, :n_radii]
        # Both halves of the circle, and +m and -m, count; order 0 stands alone.
        scale = self.grid.n_angles * self.grid.weight[:n_radii, None].expand(-1, n_orders).clone()
        scale[:, 0] *= 0.5
        b = (b * scale).permute(3, 0, 1, 2)
        re, im = b.real, b.imag
        plain = torch.stack([torch.cat([re, im], -1), torch.cat([-im, re], -1)], dim=3)
        flipped = torch.stack([torch.cat([re, -im], -1), torch.cat([im, re], -1)], dim=3)
        both = torch.stack([plain, flipped] if self.mirror else [plain], dim=3)
        return both.flatten(1, 4).contiguous()

    def _columns(self, samples: Tensor, n_orders: int, n_radii: int) -> Tensor:
        """Right factors of the grid's matrix products: (m, 2 n_radii, b)."""
        a = self.grid.angular_spectrum(samples[:, :n_radii], n_orders)
        return torch.cat([a.real, a.imag], dim=1).permute(2, 1, 0).contiguous()

    def _grid_values(self, samples: Tensor, centre: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per shift ring: best value over psi, and its code, of every (reference, shift, mirror) and particle."""
        t = self._ready()
        columns = self._columns(samples * self.grid.shift_phase(centre), t.n_orders, t.first_radius)
        n_half = self._n_half(t.n_orders)
        cosine, sine = angular_tables(t.n_orders, n_half, device=self.device, dtype=columns.dtype)
        out = []
        for rows, (shifts, _) in zip(t.rows, self.rings, strict=True):
            spectra = torch.bmm(rows, columns)
            spectra = spectra.view(t.n_orders, -1, 2, len(samples))
            penalty = self._penalty(shifts, n_half)
            value, code = rotational_max(spectra, cosine, sine, penalty)
            shape = (t.n_references, len(shifts), 1 + self.mirror, len(samples))
            out.append((value.view(shape), code.view(shape)))
        return out

    @staticmethod
    def _n_half(n_orders: int) -> int:
        """Grid angles over half a turn: 2.5 to the shortest angular wave."""
        return 16 * math.ceil(1.25 * n_orders / 16)

    def _penalty(self, shifts: Tensor, n_half: int) -> Tensor | None:
        """Minus infinity where a template shift, turned back to the particle, leaves the shift range."""
        limit = torch.tensor(self.shift_range_xy_px, device=self.device) + 0.5 * self.shift_step_px
        if bool((torch.linalg.vector_norm(shifts, dim=1) <= limit.min()).all()):
            return None
        psi = (torch.arange(n_half, device=self.device) + 0.5) * (180.0 / n_half)
        turns = torch.stack([psi, -psi])
        flips = torch.arange(1 + self.mirror, device=self.device) == 1
        s = mirror_x(shifts[:, None], flips)
        origin = rotate_xy(-turns[None, None], s[:, :, None, None])
        inside = (origin.abs() <= limit).all(-1)
        return torch.where(inside, 0.0, -math.inf).flatten(0, 1)

    # -- off the grid -----------------------------------------------------------------------------------------------

    def _refined(self, samples: Tensor, centre: Tensor, class_index: Tensor | None) -> Poses:
        t = self._ready()
        n = len(samples)
        values, codes, shifts = self._flat_candidates(samples, centre, class_index)
        k = min(self.candidates[0], values.shape[0])
        score, at = values.topk(k, dim=0)
        n_mirror = 1 + self.mirror
        psi = decode_angle_deg(codes.gather(0, at), self._n_half(t.n_orders))
        entry = at
        mirror = entry % n_mirror == 1
        reference = self._entry_reference[entry]
        s = shifts[entry]
        offset = rotate_xy(-psi, mirror_x(s, mirror))
        step = 360.0 / (FINE * self.grid.n_angles)
        state = _Candidates(
            particle=torch.arange(n, device=self.device).expand(k, n),
            row=reference + t.n_references * mirror,
            position=torch.round(psi / step).long(),
            offset=offset,
        )
        limit = torch.tensor(self.shift_range_xy_px, device=self.device) + 0.5 * self.shift_step_px
        limit = torch.where(torch.tensor(self.shift_range_xy_px, device=self.device) > 0, limit, 0.0)
        for i, _ in enumerate(self.candidates):
            psi, offset, score = self._newton(samples, centre, state, step, limit)
            keep = self.candidates[i + 1] if i + 1 < len(self.candidates) else 1
            best = score.topk(min(keep, len(score)), dim=0).indices
            state = _Candidates(
                particle=state.particle.gather(0, best),
                row=state.row.gather(0, best),
                position=torch.round(psi.gather(0, best) / step).long(),
                offset=offset.gather(0, best[..., None].expand(-1, -1, 2)),
            )
            psi, score = psi.gather(0, best), score.gather(0, best)
        row = state.row[0]
        return Poses(
            psi_deg=wrap_deg(psi[0]),
            origin_xy_px=centre + state.offset[0],
            mirror=row >= t.n_references,
            class_index=row % t.n_references,
            score=score[0],
        )

    def _flat_candidates(
        self, samples: Tensor, centre: Tensor, class_index: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Grid values and codes (e, b) of all rings in one list of entries, and the template shift (e, 2) of each."""
        t = self._ready()
        values, codes, shifts, reference = [], [], [], []
        n_mirror = 1 + self.mirror
        for (value, code), (ring, _) in zip(self._grid_values(samples, centre), self.rings, strict=True):
            if class_index is not None:
                other = torch.arange(t.n_references, device=self.device)[:, None] != class_index
                value = value.masked_fill(other[:, None, None], -math.inf)
            values.append(value.flatten(0, 2))
            codes.append(code.flatten(0, 2))
            shifts.append(ring[None, :, None].expand(t.n_references, -1, n_mirror, 2).reshape(-1, 2))
            index = torch.arange(t.n_references, device=self.device)
            reference.append(index[:, None, None].expand(-1, len(ring), n_mirror).reshape(-1))
        self._entry_reference = torch.cat(reference)
        return torch.cat(values), torch.cat(codes), torch.cat(shifts)

    def _newton(
        self, samples: Tensor, centre: Tensor, state: _Candidates, step_deg: float, limit: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One Newton step of every candidate: new psi_deg, new offset, and the score expected there."""
        t = self._ready()
        h = max(1, round(0.6 / step_deg))
        stencil = torch.tensor([-h, 0, h], device=self.device)
        flat = state.particle.flatten()
        three = flat.repeat_interleave(3)
        moments = pose_moments(
            samples,
            three,
            (centre[flat] + state.offset.flatten(0, 1)).repeat_interleave(3, dim=0),
            t.table,
            state.row.flatten().repeat_interleave(3),
            (state.position.flatten()[:, None] + stencil).flatten(),
            self._basis,
        ).view(*state.particle.shape, 3, 6)
        delta, gain = _newton_step(moments, h * step_deg)
        psi = state.position * step_deg + delta[..., 0]
        offset = torch.clamp(state.offset + delta[..., 1:], -limit, limit)
        return psi, offset, moments[..., 1, 0] + gain

    def _fine_table(self, samples: Tensor) -> Tensor:
        """Templates and their mirror images at FINE times as many rotations: (2 k, FINE, K, A + H)."""
        n_orders = self.grid.n_angles // 2
        b = self.grid.angular_spectrum(samples, n_orders)
        both = torch.cat([b, b.conj()]) if self.mirror else b
        m = torch.arange(n_orders, device=self.device)
        fraction = torch.arange(FINE, device=self.device) * (2 * math.pi / (FINE * self.grid.n_angles))
        turn = torch.polar(torch.ones(FINE, n_orders, device=self.device), fraction[:, None] * m)
        spectrum = both[:, None] * turn[:, None]
        # A real image: order -m is (-1)^m times the conjugate of order m.
        sign = 1.0 - 2.0 * (m[1:] % 2)
        negative = (spectrum[..., 1:].conj() * sign).flip(-1)
        full = torch.cat([spectrum, torch.zeros_like(spectrum[..., :1]), negative], dim=-1)
        circle = torch.fft.ifft(full, dim=-1, norm="forward")
        return torch.cat([circle, circle[..., : self.grid.n_angles // 2]], dim=-1).contiguous()

    def _centre(self, samples: Tensor, centre_xy_px: Tensor | None) -> Tensor:
        if centre_xy_px is None:
            return torch.zeros(len(samples), 2, device=self.device)
        return centre_xy_px.to(self.device, torch.float32)

    def _ready(self) -> Templates:
        if self._templates is None:
            raise RuntimeError("no references yet: call set_references first")
        return self._templates


@dataclass(frozen=True)
class _Candidates:
    """Poses under refinement, all (c, b): particle, table row, fine angular position; offset (c, b, 2)."""

    particle: Tensor
    row: Tensor
    position: Tensor
    offset: Tensor


def _newton_step(moments: Tensor, h_deg: float) -> tuple[Tensor, Tensor]:
    """Step (..., 3) in (psi degrees, x, y) to the maximum of the local quadratic, and the gain expected.

    moments (..., 3, 6) at psi - h, psi, psi + h. Where the quadratic has no maximum, curvatures are made negative.
    """
    below, here, above = moments.unbind(-2)
    scale = 1.0 / h_deg
    gradient = torch.stack(
        [0.5 * scale * (above[..., 0] - below[..., 0]), here[..., 1], here[..., 2]], dim=-1
    )
    psi_psi = scale**2 * (above[..., 0] - 2 * here[..., 0] + below[..., 0])
    psi_x = 0.5 * scale * (above[..., 1] - below[..., 1])
    psi_y = 0.5 * scale * (above[..., 2] - below[..., 2])
    hessian = torch.stack(
        [
            torch.stack([psi_psi, psi_x, psi_y], -1),
            torch.stack([psi_x, here[..., 3], here[..., 4]], -1),
            torch.stack([psi_y, here[..., 4], here[..., 5]], -1),
        ],
        dim=-2,
    )
    step = _solve_negative(hessian, gradient)
    bound = torch.tensor([1.5 * h_deg, 0.6, 0.6], device=moments.device)
    shrink = (bound / step.abs().clamp(min=1e-12)).amin(-1).clamp(max=1.0)
    step = step * shrink[..., None]
    gain = (gradient * step).sum(-1) + 0.5 * (step * (hessian @ step[..., None])[..., 0]).sum(-1)
    return step, gain.clamp(min=0)


def _solve_negative(hessian: Tensor, gradient: Tensor) -> Tensor:
    """-H^-1 g by 3 x 3 elimination, where H is negative definite; a diagonal step elsewhere."""
    a, b, c = -hessian[..., 0, 0], -hessian[..., 0, 1], -hessian[..., 0, 2]
    d, e, f = -hessian[..., 1, 1], -hessian[..., 1, 2], -hessian[..., 2, 2]
    c00, c01, c02 = d * f - e * e, c * e - b * f, b * e - c * d
    c11, c12, c22 = a * f - c * c, b * c - a * e, a * d - b * b
    det = a * c00 + b * c01 + c * c02
    g0, g1, g2 = gradient.unbind(-1)
    full = (
        torch.stack(
            [c00 * g0 + c01 * g1 + c02 * g2, c01 * g0 + c11 * g1 + c12 * g2, c02 * g0 + c12 * g1 + c22 * g2],
            dim=-1,
        )
        / torch.where(det == 0, 1, det)[..., None]
    )
    definite = (a > 0) & (c22 > 0) & (det > 1e-6 * (a * d * f).abs())
    diagonal = torch.stack([a, d, f], dim=-1).abs().clamp(min=1e-12)
    return torch.where(definite[..., None], full, gradient / diagonal)


def _shift_rings(
    range_xy_px: tuple[float, float], step_px: float, device: torch.device
) -> list[tuple[Tensor, bool]]:
    """Template shifts (s, 2) on a square grid that covers the shift range in any rotation.

    The first ring holds the shifts allowed at every rotation, the second the rest: those need a check of each angle.
    """
    reach = math.hypot(*range_xy_px) + 0.25 * step_px
    n = math.floor(reach / step_px)
    axis = torch.arange(-n, n + 1, device=device) * step_px
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    shifts = torch.stack([x.flatten(), y.flatten()], dim=1)
    length = torch.linalg.vector_norm(shifts, dim=1)
    shifts, length = shifts[length <= reach], length[length <= reach]
    free = length <= min(range_xy_px) + 0.5 * step_px
    rings = [(shifts[free], True), (shifts[~free], False)]
    return [(s, f) for s, f in rings if len(s)]


def ring_mask(
    box: int,
    inner_radius: float,
    outer_radius: float,
    *,
    device: torch.device | str = "cpu",
    soft_px: float = 3.0,
) -> Tensor:
    """A disc (n, n) of `outer_radius` with a cosine edge of `soft_px` inside it, and a hole of `inner_radius`."""
    axis = torch.arange(box, device=device, dtype=torch.float32) - box // 2
    r = torch.hypot(axis[:, None], axis[None, :])
    mask = 0.5 + 0.5 * torch.cos(math.pi * ((r - outer_radius + soft_px) / soft_px).clamp(0, 1))
    if inner_radius > 1:
        mask = mask * (r >= inner_radius)
    return mask
