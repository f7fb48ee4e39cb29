"""Views count as told apart where rings that were not compared support the poses; a blob's do not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ralib.classification.classifier import Classifier
from ralib.classification.pose_support import _some_of_each
from ralib.classification.quality import BLURRED, GOOD, GOOD_BUT_ROUND, ROUND, TOLD_APART, _verdict, typical_detail
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.simulation.simulator import SimulationOptions, Simulator

QUICK = ScheduleSettings(exchanges=0, final=2)


def row(support: float) -> dict[str, Any]:
    """Figures of a class that nothing else is wrong with."""
    return {
        "members": 100, "junk": 0.0, "sharpness": 1.0, "reproducibility": 0.9, "off_centre": 0.0, "off_centre_px": 0.0,
        "pose_support": support, "round_support": 0.0,
    }  # fmt: skip


def test_verdict_views_not_told_apart_is_not_good() -> None:
    blurred, clear = row(TOLD_APART - 0.1), row(TOLD_APART + 0.1)
    score, words = _verdict(blurred, typical_detail([blurred, clear]), believable=True, cause="")
    assert score == pytest.approx(0.5 + 0.5 * BLURRED)
    assert "not told apart" in words
    assert _verdict(clear, typical_detail([blurred, clear]), believable=True, cause="")[1].startswith("good")


def test_verdict_support_unknown_says_nothing_of_views() -> None:
    unknown = row(math.nan)
    assert _verdict(unknown, typical_detail([unknown]), believable=True, cause="") == (
        1.0,
        "good: detailed, reproducible, well centred",
    )


def test_verdict_round_class_is_good_but_its_rotation_is_said_to_be_unknown() -> None:
    shell = row(TOLD_APART - 0.1) | {"round_support": ROUND}
    assert _verdict(shell, typical_detail([shell]), believable=True, cause="") == (1.0, GOOD_BUT_ROUND)


def test_verdict_one_class_of_far_more_detail_makes_no_other_a_poor_one() -> None:
    sharp, poor = row(TOLD_APART + 2) | {"sharpness": 6.0}, row(TOLD_APART + 2) | {"sharpness": 0.4}
    rows = [sharp, poor, *(row(TOLD_APART + 2) for _ in range(5))]
    words = [_verdict(r, typical_detail(rows), believable=True, cause="")[1] for r in rows]
    assert words == [GOOD, "less detail than most classes", *[GOOD] * 5]


def test_verdict_class_of_three_particles_is_not_good() -> None:
    rows = [row(TOLD_APART + 2) | {"members": 3}, *(row(TOLD_APART + 2) for _ in range(4))]
    score, words = _verdict(rows[0], typical_detail(rows), believable=True, cause="")
    assert words == "only 3 particles: too few to tell"
    assert score < 0.75


@pytest.mark.parametrize("fault", [{"reproducibility": 0.06}, {"sharpness": 0.4}, {"off_centre": 0.5}])
def test_verdict_one_fault_ranks_a_class_below_all_good_ones(fault: dict[str, float]) -> None:
    rows = [row(TOLD_APART + 2) | fault, *(row(TOLD_APART + 2) for _ in range(4))]
    scores = [_verdict(r, typical_detail(rows), believable=True, cause="")[0] for r in rows]
    assert scores[0] < 0.75 < min(scores[1:])


def shells(n: int, box: int, generator: torch.Generator) -> torch.Tensor:
    """Images (n, box, box) of a thin round shell in noise: fine detail, and nothing that turns."""
    y, x = torch.meshgrid(*[torch.arange(box) - box // 2] * 2, indexing="ij")
    shell = torch.exp(-0.5 * ((torch.hypot(x.float(), y.float()) - 12) / 2) ** 2)
    return shell + torch.randn(n, box, box, generator=generator)


def blobs(n: int, box: int, generator: torch.Generator) -> torch.Tensor:
    """Images (n, box, box) of oval blobs in noise, of any direction and of unlike contrast and size: no detail."""
    y, x = torch.meshgrid(*[torch.arange(box) - box // 2] * 2, indexing="ij")
    turn, size, contrast = torch.rand(3, n, 1, 1, generator=generator)
    along = x * torch.cos(math.pi * turn) + y * torch.sin(math.pi * turn)
    across = y * torch.cos(math.pi * turn) - x * torch.sin(math.pi * turn)
    blob = torch.exp(-0.5 * ((along / 9) ** 2 + (across / 6) ** 2) / (0.8 + 0.4 * size) ** 2)
    return (0.3 + 1.2 * contrast) * blob + torch.randn(n, box, box, generator=generator)


def classified(images: torch.Tensor) -> tuple[list[dict[str, Any]], list[str]]:
    """Classes of more than 20 members, and warnings of a run."""
    result = Classifier(n_classes=4, seed=1, plan=QUICK).fit(images).result_
    assert result.stability["believable"]
    return [r for r in result.classes if r["members"] > 20], [w.what for w in result.warnings]


def test_classifier_views_of_a_molecule_are_told_apart_blobs_are_not() -> None:
    options = SimulationOptions(n_particles=300, box=48, snr=0.2, seed=3, n_views=4, ctf=False)
    classes, warnings = classified(torch.cat(list(Simulator(options).blocks())))
    assert min(r["pose_support"] for r in classes) > TOLD_APART
    assert not any("told apart" in w for w in warnings)
    classes, warnings = classified(blobs(300, 48, torch.Generator().manual_seed(0)))
    assert max(r["pose_support"] for r in classes) < TOLD_APART
    assert max(r["round_support"] for r in classes) < ROUND
    assert any("not told apart" in w for w in warnings)


def test_classifier_shells_are_round_and_no_blobs() -> None:
    classes, warnings = classified(shells(300, 48, torch.Generator().manual_seed(0)))
    assert max(r["pose_support"] for r in classes) < TOLD_APART
    assert min(r["round_support"] for r in classes) > ROUND
    assert not any("told apart" in w for w in warnings)


def test_some_of_each_takes_candidates_of_every_class_in_order() -> None:
    index = torch.arange(600) % 3
    index[::7] = -1
    chosen = _some_of_each(index, torch.arange(600) >= 30, 3, torch.Generator().manual_seed(0))
    assert torch.bincount(index[chosen]).tolist() == [50, 50, 50]
    assert (chosen >= 30).all()
    assert (chosen[1:] > chosen[:-1]).all()
