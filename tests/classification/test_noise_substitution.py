"""What alignment makes of noise is known, and taken off the FRC."""

from __future__ import annotations

import torch

from ralib.classification.classifier import Classifier
from ralib.classification.noise_substitution import corrected_frc
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.images.frc import masked_frc
from ralib.simulation.simulator import SimulationOptions, Simulator
from ralib.types import ClassAverages, as_particles

QUICK = ScheduleSettings(exchanges=0, final=2)
RADIUS_PX = 15.0


def frc_before_and_after(snr: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean FRC (r,) over the classes of simulated particles: of the halves as they are, and as the run tells it."""
    simulator = Simulator(SimulationOptions(n_particles=400, box=40, snr=snr, seed=2, n_views=4, ctf=False))
    images = torch.cat(list(simulator.blocks()))
    particles = as_particles(images).replace(pixel_size_A=1.0)
    found = Classifier(n_classes=4, seed=1, plan=QUICK, diameter_A=2 * RADIUS_PX).fit(particles).class_averages_
    assert isinstance(found, ClassAverages)
    assert found.frc is not None
    return masked_frc(found, RADIUS_PX).mean(0), found.frc.mean(0)


def test_frc_noise_aligned_to_its_averages_counts_as_noise() -> None:
    before, after = frc_before_and_after(1e-9)
    fine = slice(5, 9)  # beyond the coarse shape, within what was compared
    assert float(before[fine].mean()) > 0.5
    assert float(after[fine].mean()) < 0.15


def test_frc_strong_particles_keep_their_resolution() -> None:
    before, after = frc_before_and_after(0.3)
    assert int((before > 0.143).int().cumprod(0).sum()) - int((after > 0.143).int().cumprod(0).sum()) <= 1
    assert float((before - after)[:10].max()) < 0.08, "their own detail holds them in place"


def test_corrected_frc_classes_without_a_measurement_take_the_mean() -> None:
    frc = torch.full((3, 6), 0.5)
    per_particle = torch.tensor([[0.0, 0.0, 0.02, 0.04], [0.0, 0.0, 0.0, 0.0]])
    found = corrected_frc(frc, per_particle, torch.tensor([100, 100, 100]))
    seeming = torch.tensor([0.0, 0.0, 2.0, 4.0])
    noise = seeming / (2 + seeming)
    assert torch.allclose(found[0, :4], (0.5 - noise) / (1 - noise))
    assert torch.equal(found[1], frc[1])
    assert torch.equal(found[:, 4:], frc[:, 4:])
    assert torch.allclose(found[2, 2], torch.tensor(0.25))  # SSNR 1 of 2 seeming: noise 1 / 3, and 1 / 6 over 2 / 3
