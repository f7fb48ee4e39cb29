"""What real images add must not decide the classes: backgrounds, neighbours, beads, hot pixels, likeness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ralib.classes.evaluation import purity
from ralib.classification.classifier import Classifier
from ralib.classification.diameter import edge_px, measure_radius
from ralib.classification.memory_plan import Budget
from ralib.classification.outliers import find_outliers, image_features
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.classification.sharding import Shard
from ralib.classification.thinning import keep_most_useful
from ralib.classification.typical_class import weighted_median
from ralib.kernels import rotate_shift_images
from ralib.simulation.simulator import SimulationOptions, Simulator
from ralib.types import ArraySource, ParticleSet

BOX = 48
QUICK = ScheduleSettings(exchanges=1, final=3)


def simulated(n: int = 300, *, views: int = 3, snr: float = 0.2, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Images without a CTF, noise of variance 1, and the view of each."""
    simulator = Simulator(SimulationOptions(n_particles=n, box=BOX, snr=snr, seed=seed, n_views=views, ctf=False))
    return torch.cat(list(simulator.blocks())), simulator.truth.poses.class_index


def glow(n: int, strength: float, seed: int = 0) -> torch.Tensor:
    """Slow backgrounds (n, BOX, BOX) that leave the corners alone: a dome of a random height for each image."""
    c = (torch.arange(BOX, dtype=torch.float32) - BOX // 2) / (0.45 * BOX)
    dome = (1 - c.square() - c[:, None].square()).clamp_min(0)
    return strength * torch.randn(n, 1, 1, generator=torch.Generator().manual_seed(seed)) * dome


def test_backgrounds_make_no_classes() -> None:
    images, view = simulated(400, views=2)
    background = glow(400, 2.0)
    found = Classifier(n_classes=2, seed=1, plan=QUICK).fit(images + background).poses_.class_index
    level = (background[:, BOX // 2, BOX // 2] > 0).long()
    assert purity(found, view) > 0.95
    assert purity(found, level) < 0.65


def test_noise_is_what_classes_leave() -> None:
    """At first all power counts as noise; in the end the variance is that of the noise, which is 1."""
    images, _ = simulated(400, views=2, snr=0.5)
    particles = ParticleSet(ArraySource(images.numpy()))
    classifier = Classifier(n_classes=2, seed=1, plan=QUICK)
    classifier.n_classes_ = 2  # `fit` counts them before it loads
    shard = Shard.of_all(len(particles))
    whitened = classifier._load(particles, classifier._batches(particles, shard), shard)
    schedule, state = classifier._begin(particles, whitened, shard)
    at_first = whitened.grid.weight * whitened.grid.n_half / whitened.spectra.power[0] / whitened.scale**2
    schedule.run(state)
    whitened = schedule.model.particles
    left = whitened.grid.weight * whitened.grid.n_half / whitened.spectra.power[0] / whitened.scale**2
    inner = slice(2, whitened.grid.n_rings - 2)
    assert float(at_first[inner].max()) > 2
    assert float((left[inner] - 1).abs().mean()) < 0.15


def test_a_hot_pixel_changes_nothing() -> None:
    images, view = simulated()
    spoilt = images.clone()
    spoilt[5, 40, 7] = 1e6
    plain = Classifier(n_classes=3, seed=1, plan=QUICK).fit(images)
    hot = Classifier(n_classes=3, seed=1, plan=QUICK).fit(spoilt)
    assert hot.result_.diameter_A == pytest.approx(plain.result_.diameter_A, rel=0.05)
    others = torch.arange(len(view)) != 5
    assert purity(hot.poses_.class_index[others], view[others]) > 0.97
    assert float(hot.class_averages_.images.abs().max()) < 10


def test_beads_and_ice_are_outliers_and_particles_are_not() -> None:
    images, _ = simulated(400)
    c = torch.arange(BOX, dtype=torch.float32) - BOX // 2
    images[:8] += 15 * ((c - 8).square() + (c[:, None] + 3).square() < 30)  # gold beads
    images[8:16] = 0.2 * images[8:16] + 3 * torch.sin(c / 3)  # a bright crystal, whose background was normalised
    found = find_outliers(image_features(images), torch.ones(400, dtype=torch.bool))
    assert bool(found.found[:16].all())
    assert float(found.found[16:].float().mean()) < 0.03
    assert torch.equal(found.score > 4, found.found)


def crowded(n: int, diameter_px: int, seed: int = 0) -> ParticleSet:
    """Discs with a mark, each with two neighbours that nearly touch it."""
    g = torch.Generator().manual_seed(seed)
    box = 64
    c = torch.arange(box, dtype=torch.float32) - box // 2
    away = torch.hypot(c, c[:, None])
    mark = torch.exp(-((c - 5).square() + c[:, None].square()) / 12)
    disc = torch.sigmoid(1.5 * (diameter_px / 2 - away)) + 0.8 * mark
    wide = torch.nn.functional.pad(disc, (32,) * 4).expand(n, -1, -1).contiguous()
    psi, flip = 360 * torch.rand(n, generator=g), torch.zeros(n, dtype=torch.bool)
    images = rotate_shift_images(disc.expand(n, -1, -1).contiguous(), psi, torch.zeros(n, 2), flip, method="cubic")
    for _ in range(2):
        at = 2 * math.pi * torch.rand(n, generator=g)
        place = 1.1 * diameter_px * torch.stack([torch.cos(at), torch.sin(at)], dim=1)
        beside = rotate_shift_images(wide, torch.zeros(n), place, flip, method="cubic")
        images = images + beside[:, 32:-32, 32:-32]
    images = images + 1.5 * torch.randn(n, box, box, generator=g)
    return ParticleSet(ArraySource(images.numpy()))


def test_the_diameter_is_the_particles_and_not_its_neighbours() -> None:
    for diameter_px in (18, 26):  # 54 px is the largest that a box of 64 px allows
        particles = crowded(300, diameter_px)
        measured = measure_radius(
            particles, device=torch.device("cpu"), search_px=4.0, ctf="off", mirror=True, budget=Budget()
        )  # fmt: skip
        assert 2 * measured.radius_px == pytest.approx(diameter_px, rel=0.25)


def test_an_edge_is_the_fall_to_nothing_or_the_first_deep_minimum() -> None:
    assert edge_px(torch.tensor([1.0, 0.8, 0.4, 0.1, 0.0, 0.0])) == (pytest.approx(3.5), False)
    assert edge_px(torch.tensor([0.1, 0.7, 1.0, 0.5, 0.08, 0.6, 0.4])) == (4.0, True)  # a ring, and neighbours behind
    assert edge_px(torch.tensor([1.0, 0.4, 0.6, 0.5, 0.02, 0.0]))[0] > 3  # a shell in the particle is no edge


def test_alike_particles_fill_all_classes() -> None:
    """One round view: one class explains as much as eight, and yet none may be empty."""
    c = torch.arange(BOX, dtype=torch.float32) - BOX // 2
    ball = torch.exp(-(c.square() + c[:, None].square()) / 60)
    images = ball + 1.5 * torch.randn(240, BOX, BOX, generator=torch.Generator().manual_seed(0))
    result = Classifier(n_classes=8, seed=1, plan=QUICK).fit(images).result_
    sizes = torch.bincount(result.poses.class_index, minlength=8)
    assert len(result.averages.images) == 8
    assert int(sizes.min()) > 0
    assert int(sizes.sum()) == 240


def test_a_few_strong_classes_do_not_lift_what_is_typical() -> None:
    values = torch.tensor([[1.0, 4.0], [2.0, 5.0], [900.0, 6.0]])
    assert weighted_median(values, torch.tensor([5.0, 5.0, 1.0])).tolist() == [2.0, 5.0]
    assert weighted_median(values, torch.tensor([1.0, 1.0, 9.0])).tolist() == [900.0, 6.0]


def test_strong_junk_is_no_rare_view() -> None:
    """Nine views of a hundred particles; ten images ten times as strong lose ten times the nats without their class."""
    fit = torch.full((910, 10), 50.0)
    index = torch.arange(900) // 100
    fit[torch.arange(900), index] = 100.0
    fit[:900, 9] = 50.0
    fit[900:] = 900.0
    fit[900:, 9] = 1000.0
    kept = keep_most_useful(fit, 9).tolist()
    assert np.isin(np.arange(9), kept).all()


def test_edge_px_gap_to_neighbours_ends_the_particle() -> None:
    """The profile of real, crowded apoferritin: its gap is a thousandth above MINIMUM."""
    ring = [0.03, 0.04, 0.03, 0.01, 0.02, 0.17, 0.59, 1.0, 0.95, 0.44, 0.101, 0.36, 0.63, 0.45, 0.21, 0.10, 0.06, 0.04]
    assert edge_px(torch.tensor(ring)) == (10.0, True)
    hollow = [1.0, 0.8, 0.6, 0.45, 0.5, 0.4, 0.2, 0.02, 0.01]
    radius, crowded = edge_px(torch.tensor(hollow))
    assert 6 < radius < 7
    assert not crowded
