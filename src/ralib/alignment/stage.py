"""A stage of an alignment: a pose search, and the shift range that it is made for."""

from __future__ import annotations

from dataclasses import dataclass

from ralib.alignment.options import AlignmentOptions
from ralib.alignment.references import shift_limit_px
from ralib.alignment.search import MASK_EDGE_PX, PoseSearch
from ralib.types import Notice


@dataclass(frozen=True)
class Stage:
    """A pose search, and the shift range it was made for.

    Attributes
    ----------
    search : PoseSearch
        The search.
    shift_range_xy_px : tuple of float
        Shift range along x and y, pixels.
    """

    search: PoseSearch
    shift_range_xy_px: tuple[float, float]


def make_stage(
    options: AlignmentOptions, box: int, shift_range_xy_px: tuple[float, float], step_px: float | None
) -> tuple[Stage, list[Notice]]:
    """Make a pose search, with shifts limited so that the disc remains inside the box.

    Parameters
    ----------
    options : AlignmentOptions
        Options of the alignment, `checked`.
    box : int
        Image size, pixels.
    shift_range_xy_px : tuple of float
        Shift range along x and y, pixels.
    step_px : float or None
        Step of the shift grid, pixels; None as the templates need.

    Returns
    -------
    Stage
        The search and its shift range.
    list of Notice
        A notice where the range was cut.
    """
    outer_radius = float(options.outer_radius or 0)
    limit = shift_limit_px(box, outer_radius)
    span = (min(float(shift_range_xy_px[0]), limit), min(float(shift_range_xy_px[1]), limit))
    notices = []
    if (widest := max(shift_range_xy_px)) > limit:
        fitting = box // 2 - 1 - widest
        advice = f"give `outer_radius` {fitting:g} or less to search all of it"
        if fitting <= max(options.inner_radius, MASK_EDGE_PX):
            advice = f"that range is too large for a box of {box} px with any `outer_radius`: give a smaller one"
        notices.append(
            Notice(
                what=f"the shift range {widest:g} px was cut to {limit:g} px: a disc of radius "
                f"{outer_radius:g} px can move no further in a box of {box} px",
                where="`shift_range_xy_px`",
                remedy=advice,
            )
        )
    search = PoseSearch(
        box=box,
        outer_radius=outer_radius,
        inner_radius=options.inner_radius,
        shift_range_xy_px=span,
        shift_step_px=step_px,
        mirror=options.mirror,
        device=options.device,
    )
    return Stage(search, span), notices
