"""Images that hold less than their pixels could: filtered, enlarged, or without coarse detail by their CTF."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ralib.classes.evaluation import purity
from ralib.classification.classifier import Classifier
from ralib.classification.recorded_detail import recorded_per_px, spread_batches
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.images.fourier import fourier_resize, frequency_grid
from ralib.simulation.simulator import SimulationOptions, Simulator
from ralib.types import ArraySource, ParticleSet

SHORT = ScheduleSettings(exchanges=1, final=3)
CUT = 0.2
"""Cycles per pixel."""


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(SimulationOptions(n_particles=400, box=48, snr=0.1, seed=3, n_views=4))


@pytest.fixture(scope="module")
def particles(simulator: Simulator) -> ParticleSet:
    images, truth = torch.cat(list(simulator.blocks())).numpy(), simulator.truth
    return ParticleSet(ArraySource(images), simulator.pixel_size_A, truth.ctf, group=truth.micrograph)


def filtered(particles: ParticleSet) -> ParticleSet:
    """The particles without what is finer than CUT."""
    images = torch.from_numpy(particles.images.read(np.arange(len(particles))))
    kx, ky = frequency_grid(particles.box)
    kept = torch.fft.rfft2(images) * (torch.hypot(kx, ky) < CUT)
    return particles.replace(images=ArraySource(torch.fft.irfft2(kept, s=images.shape[1:]).numpy()))


def test_recorded_detail_of_filtered_and_enlarged_images_ends_where_they_do(particles: ParticleSet) -> None:
    def ends(of: ParticleSet) -> float:
        return recorded_per_px(spread_batches(of, 500, torch.device("cpu")))

    assert ends(particles) == 0.5
    assert ends(filtered(particles)) == pytest.approx(CUT, abs=1 / 48)
    images = fourier_resize(torch.from_numpy(particles.images.read(np.arange(100))), 72)
    assert ends(ParticleSet(ArraySource(images.numpy()))) == pytest.approx(1 / 3, abs=2 / 72)


def test_classifier_filtered_images_are_compared_no_further_and_it_says_so(
    particles: ParticleSet, simulator: Simulator
) -> None:
    found = Classifier(n_classes=4, seed=5, plan=SHORT).fit(filtered(particles))
    assert purity(found.poses_.class_index, simulator.truth.poses.class_index) > 0.95
    assert any("hold next to nothing finer than" in line for line in found.result_.log)
    frc = found.class_averages_.frc
    assert frc is not None
    assert float(frc[:, int(48 * (CUT + 0.03)) :].abs().max()) == 0.0
    assert min(row["resolution_px"] for row in found.classes_) > 1 / (CUT + 0.03)


def test_classifier_amplitude_contrast_of_zero_does_not_mislead(particles: ParticleSet, simulator: Simulator) -> None:
    assert particles.ctf is not None
    none = replace(particles.ctf, amplitude_contrast=0 * particles.ctf.amplitude_contrast)
    found = Classifier(n_classes=4, seed=5, plan=SHORT).fit(particles.replace(ctf=none))
    usual = Classifier(n_classes=4, seed=5, plan=SHORT).fit(particles)
    assert purity(found.poses_.class_index, simulator.truth.poses.class_index) > 0.95
    assert found.result_.diameter_A == pytest.approx(usual.result_.diameter_A, rel=0.15)
    assert any("amplitude contrast of 0, as 400 particles have it" in w.what for w in found.warnings_)
    assert not any("amplitude contrast" in w.what for w in usual.warnings_)
    without = Classifier(n_classes=4, seed=5, plan=SHORT, ctf="off").fit(particles.replace(ctf=none))
    assert not any("amplitude contrast" in w.what for w in without.warnings_)
