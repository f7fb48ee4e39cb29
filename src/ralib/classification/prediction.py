"""Assignment of new particles to the classes of a finished classification, which stay unchanged.

An E-step with the final references and the noise as estimated by the run: first all shifts are searched, then those
next to the best one, then Newton steps, as in the schedule's last stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ralib.classification.model import Model
from ralib.classification.pose_search import refine_all, search_all
from ralib.classification.priors import class_prices
from ralib.classification.schedule import ClassificationSchedule
from ralib.classification.state import IterationSettings, State
from ralib.classification.whitening import WhitenedParticles
from ralib.types import ParticleSet, RalibError

NEWTON_STEPS = 2


@dataclass(frozen=True)
class FittedClasses:
    """Results of a classification that apply to new particles.

    Attributes
    ----------
    references : Tensor of shape (k, r, m)
        Angular orders of the masked class averages, complex64.
    price : Tensor of shape (k,)
        What the balance of class sizes adds to each class's fit.
    noise : sequence of Tensor of shape (R,)
        Factors by which the noise first measured was multiplied.
    mean_scale : Tensor of shape ()
        Contrast of the references.
    spread_px : Tensor of shape ()
        Standard deviation of the particles' origins, working pixels.
    radius_px, particle_radius_px : float
        Radius of the mask and of the particle, pixels of the input.
    box : int
        Size of the images, pixels.
    pixel_size_A : float or None
        Their pixel size, Angstrom.
    ctf : str, default 'off'
        Whether their CTF was corrected: 'on' or 'off'.
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
    ctf: str = "off"

    @classmethod
    def of(cls, schedule: ClassificationSchedule, state: State, particles: ParticleSet, ctf: str) -> FittedClasses:
        """Return the classes of a finished schedule.

        Parameters
        ----------
        schedule : ClassificationSchedule
            The schedule.
        state : State
            Its final state.
        particles : ParticleSet
            The particles classified.
        ctf : str
            Whether their CTF was corrected: 'on' or 'off'.

        Returns
        -------
        FittedClasses
            The classes.
        """
        assert schedule.references is not None
        whitened = schedule.model.particles
        return cls(
            references=schedule.references,
            price=class_prices(state.fit, 1.0, schedule.model.balance, schedule.model.shard),
            noise=tuple(schedule.noise),
            mean_scale=state.mean_scale,
            spread_px=state.spread_px,
            radius_px=whitened.radius_px / whitened.scale,
            particle_radius_px=whitened.particle_radius_px / whitened.scale,
            box=particles.box,
            pixel_size_A=particles.pixel_size_A,
            ctf=ctf,
        )

    def check(self, particles: ParticleSet, ctf: str) -> None:
        """Raise RalibError unless particles have the box, pixel size and CTF correction of the classes.

        Parameters
        ----------
        particles : ParticleSet
            New particles.
        ctf : str
            Whether their CTF is corrected: 'on' or 'off'.
        """
        if particles.box != self.box:
            raise RalibError(
                f"the particles are {particles.box} px, the classes {self.box} px: 'ralib prepare --box {self.box}'"
            )
        particles.check_pixel_size(self.pixel_size_A, "classes")
        if ctf != self.ctf:
            raise RalibError(
                "the classes were made with the CTF corrected, and these particles have none: open them from a file "
                "that has their CTF and pixel size"
                if self.ctf == "on"
                else "the classes were made without a CTF, and these particles have one: leave it out "
                "(`particles.replace(ctf=None)`), or fit with it"
            )

    def whitened(self, particles: WhitenedParticles) -> WhitenedParticles:
        """Return new particles weighted by the noise as estimated by the run."""
        for ratio in self.noise:
            particles = particles.with_noise(ratio)
        return particles

    def assign(self, model: Model, state: State) -> State:
        """Assign new particles to their best class at their best pose; the averages are unchanged.

        Parameters
        ----------
        model : Model
            The new particles, `whitened`.
        state : State
            What is known of them before.

        Returns
        -------
        State
            State with pose, class and fit (n, k).
        """
        rings = self.references.shape[1]
        state = replace(state, mean_scale=self.mean_scale, spread_px=self.spread_px)
        for wide in (True, False):
            found = search_all(model, self.references, state, IterationSettings(rings, 1.0, wide=wide))
            fit = model.fit(found, state)
            index = torch.argmax(fit + self.price, dim=1)
            pose = found.pick(index[None])
            if model.align and not wide:
                step = IterationSettings(rings, 1.0, newton=NEWTON_STEPS)
                pose, _ = refine_all(model, self.references, pose, index[None], step, state)
                fit = fit.scatter(1, index[:, None], model.fit(pose, state).T)
            state = replace(
                state,
                psi_deg=pose.psi_deg[0],
                origin_xy_px=pose.origin_xy_px[0],
                mirror=pose.mirror[0],
                class_index=index,
                fit=fit,
            )
        return state
