"""The compiled forms of SPARX's search and transformation, against the same in PyTorch."""

from __future__ import annotations

import pytest
import torch

from ralib.simulation.simulator import simulate_particles
from ralib.sparx import resample
from ralib.sparx.rings import make_rings
from ralib.sparx.search import ReferenceRings

BOX = 48


@pytest.mark.parametrize(
    ("references", "mode", "last", "options", "range_px", "step_px"),
    [
        (5, "F", 19, {"normalise": True}, 2.0, 1.0),
        (1, "F", 17, {"normalise": False}, 1.0, 0.5),
        (2, "F", 19, {"normalise": False, "mirror": False}, 3.0, 1.0),
        (3, "F", 19, {"normalise": False, "delta_deg": 6.0}, 2.0, 1.0),
        (1, "H", 14, {"normalise": False, "mirror": False}, 0.0, 1.0),
        (4, "F", 1, {"normalise": True}, 1.0, 1.0),
    ],
)
def test_compiled_search_finds_what_pytorch_finds(
    references: int, mode: str, last: int, options: dict[str, bool], range_px: float, step_px: float
) -> None:
    images, _, views = simulate_particles(
        37, BOX, n_views=references, n_references=references, shift_sd_px=1.0, snr=0.2, seed=5, ctf=False
    )
    images[0] = 0.0  # an empty image has no spread
    centre = torch.randn(37, 2, generator=torch.Generator().manual_seed(1)).double() * 3
    target = ReferenceRings(views, make_rings(1, last, mode=mode), **options)
    assert target.compiled is not None
    found = target.search(images, centre, (range_px, range_px), step_px)
    target.compiled = None
    expected = target.search(images, centre, (range_px, range_px), step_px)
    torch.testing.assert_close(found.peak[1:], expected.peak[1:], rtol=1e-5, atol=0.0)
    assert torch.equal(found.reference[1:], expected.reference[1:])
    assert torch.equal(found.params[1:, 3], expected.params[1:, 3])
    turned = torch.remainder(found.params[1:, 0] - expected.params[1:, 0] + 180.0, 360.0) - 180.0
    assert turned.abs().max() < 1e-2
    assert (found.params[1:, 1:3] - expected.params[1:, 1:3]).abs().max() < 1e-3
    assert found.peak[0] == expected.peak[0] == 0.0


def test_compiled_search_does_not_depend_on_the_particles_beside() -> None:
    images, _, views = simulate_particles(21, BOX, n_views=3, n_references=3, snr=0.2, seed=6, ctf=False)
    target = ReferenceRings(views, make_rings(1, 18), normalise=True)
    centre = torch.zeros(21, 2, dtype=torch.float64)
    together = target.search(images, centre, (2.0, 2.0), 1.0)
    alone = target.search(images[7:8], centre[7:8], (2.0, 2.0), 1.0)
    assert torch.equal(together.params[7:8], alone.params)
    assert torch.equal(together.peak[7:8], alone.peak)


@pytest.mark.parametrize("box", [16, 47, 64])
def test_compiled_rot_shift2d_gives_the_same_bits(box: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(box)
    images = torch.randn(40, box, box, generator=generator)
    rows = torch.rand(40, 4, generator=generator, dtype=torch.float64)
    rows[:, 0] = rows[:, 0] * 720.0 - 360.0
    rows[:8, 0] = torch.arange(8) * 90.0 - 180.0  # whole pixels, where the kernel jumps
    rows[:, 1:3] = (rows[:, 1:3] - 0.5) * box
    rows[:12, 1:3] = rows[:12, 1:3].round()
    rows[20:24, 1] = 3.0 * box
    rows[:, 3] = rows[:, 3].round()
    found = resample.rot_shift2D(images, rows)
    monkeypatch.setattr(resample, "COMPILED", None)
    assert torch.equal(found, resample.rot_shift2D(images, rows))
