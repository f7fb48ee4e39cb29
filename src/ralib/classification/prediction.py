"""New particles sorted into the classes of a finished classification, which stay as they are.

An E-step with the final references and the noise as the run left it: first all shifts are searched, then those next to
the best one, then Newton steps, as in the schedule's last stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ralib.classification.em import Model
from ralib.classification.priors import class_prices
from ralib.classification.schedule import ClassificationSchedule
from ralib.classification.state import IterationSettings, State
from ralib.classification.whitening import WhitenedParticles
from ralib.types import ParticleSet, RalibError

NEWTON_STEPS = 2


@dataclass(frozen=True)
class FittedClasses:
    """What a classification found that holds for particles it has not seen.

    Parameters
    ----------
    references : Tensor
        (k, r, m) complex64, angular orders of the masked class averages.
    price : Tensor
        (k,) what balance adds to each class's fit.
    noise : sequence of Tensor
        (R,) each: what the noise first measured was multiplied by.
    mean_scale, spread_px : Tensor
        () the references' contrast, and the standard deviation of the particles' places, working pixels.
    radius_px, particle_radius_px : float
        Of the mask and of the particle, pixels of the input.
    box : int
        Of the particles, pixels.
    pixel_size_A : float or None
        Of the particles.
    """

    references: Tensor
    price: Tensor
    noise: Sequence[Tensor]
    mean_scale: Tensor
    spread_px: Tensor
    radius_px: float
    particle_radius_px: float
    box: int
    pixel_size_A: float | None

    @classmethod
    def of(cls, schedule: ClassificationSchedule, state: State, particles: ParticleSet) -> FittedClasses:
        """The classes of a finished schedule."""
        assert schedule.references is not None
        field = schedule.model.field
        return cls(
            references=schedule.references,
            price=class_prices(state.fit, 1.0, schedule.model.balance),
            noise=tuple(schedule.noise),
            mean_scale=state.mean_scale,
            spread_px=state.spread_px,
            radius_px=field.radius_px / field.scale,
            particle_radius_px=field.particle_radius_px / field.scale,
            box=particles.box,
            pixel_size_A=particles.pixel_size_A,
        )

    def check(self, particles: ParticleSet) -> None:
        """RalibError unless the particles are of the box and pixel size that the classes are of."""
        if particles.box != self.box:
            raise RalibError(
                f"the particles are {particles.box} px, the classes {self.box} px: 'ralib prepare --box {self.box}'"
            )
        mine, theirs = self.pixel_size_A, particles.pixel_size_A
        if mine and theirs and abs(theirs / mine - 1) > 0.01:
            raise RalibError(f"the particles have {theirs:.4g} A/px, the classes {mine:.4g}: rescale the particles")

    def whitened(self, field: WhitenedParticles) -> WhitenedParticles:
        """New particles weighed against the noise as the run found it."""
        for ratio in self.noise:
            field = field.with_noise(ratio)
        return field

    def assign(self, model: Model, state: State) -> State:
        """The state of new particles, each with its best pose in its best class; the averages stay.

        Parameters
        ----------
        model : Model
            Of the new particles, `whitened`.
        state : State
            What is known of them before.

        Returns
        -------
        State
            With pose, class and fit (n, k).
        """
        rings = self.references.shape[1]
        state = replace(state, mean_scale=self.mean_scale, spread_px=self.spread_px)
        for wide in (True, False):
            found = model.expect(self.references, state, IterationSettings(rings, 1.0, wide=wide))
            fit = model.fit(found, state)
            index = torch.argmax(fit + self.price, dim=1)
            pose = found.pick(index)
            if model.align and not wide:
                step = IterationSettings(rings, 1.0, newton=NEWTON_STEPS)
                pose = model.refined(self.references, pose, index, step, None)
                fit = fit.scatter(1, index[:, None], model.fit(pose, state)[:, None])
            state = replace(
                state,
                psi_deg=pose.psi_deg,
                origin_xy_px=pose.origin_xy_px,
                mirror=pose.mirror,
                class_index=index,
                fit=fit,
            )
        return state
