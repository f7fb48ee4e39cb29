"""The extent of a particle in its box, and the mask that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

from ralib.classification.whitening import MASK_MARGIN

CROWDED_MARGIN = 1.05
"""In place of MASK_MARGIN where neighbours begin at the particle's edge: of real apoferritin, a fifth of the classes
showed a neighbour each at 1.2, none at 1.05."""


@dataclass(frozen=True)
class ParticleExtent:
    """Extent of a particle, as measured (`diameter.measure_radius`) or as asked for; and how fine its images are.

    Attributes
    ----------
    radius_px : float
        Radius, pixels of the input.
    rim_px : float
        Radius that holds its faintest parts too.
    crowded : bool
        Whether neighbours begin directly beyond it.
    recorded_per_px : float, default 0.5
        Frequency beyond which the images hold nothing, cycles per pixel; see `recorded_detail`.
    """

    radius_px: float
    rim_px: float
    crowded: bool
    recorded_per_px: float = 0.5

    @property
    def mask_radius_px(self) -> float:
        """Radius of the mask: larger than the rim, unless it would hold neighbours."""
        return (CROWDED_MARGIN if self.crowded else MASK_MARGIN) * self.rim_px

    @classmethod
    def of_mask(cls, mask_radius_px: float) -> ParticleExtent:
        """Return the extent that a mask of a given radius is meant for."""
        return cls(mask_radius_px / MASK_MARGIN, mask_radius_px / MASK_MARGIN, crowded=False)
