"""A stack that grows after a watch took it in: it is said, rows keep their poses, and the first version goes on."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from blobs import make
from ralib import io
from ralib.cli import main
from ralib.io import arrivals
from ralib.results.run_directory import load_run

OPTIONS = ["--K=1", "--poll-seconds=0.1", "--device=cpu", "--no-report"]


def test_watch_stack_that_grows_is_said_and_moves_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arrivals, "SETTLED_S", -1.0)
    images, folder, live = make(60, box=24, n_views=1, snr=2.0, seed=4).images, tmp_path / "in", tmp_path / "live"
    folder.mkdir()
    io.write_mrcs(folder / "a.mrcs", images[:20], 3.0)
    io.write_mrcs(folder / "b.mrcs", images[20:50], 3.0)
    first = live / "checkpoints" / "checkpoint_0001.ralib"

    def grow() -> None:
        while not first.is_file():
            time.sleep(0.05)
        io.write_mrcs(folder / "a.mrcs", images[np.r_[:20, 55:60]], 3.0)

    thread = threading.Thread(target=grow)
    thread.start()
    assert main(["watch", str(folder), str(live), *OPTIONS]) == 2
    thread.join()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "a.mrcs was taken in with" in line
    assert "has changed" in line
    before = load_run(live)
    assert len(before.poses) == 50
    assert main(["watch", str(folder), str(live), *OPTIONS, "--continue"]) == 2
    assert "has changed" in capsys.readouterr().err
    io.write_mrcs(folder / "a.mrcs", images[:20], 3.0)
    io.write_mrcs(folder / "c.mrcs", images[50:], 3.0)
    assert main(["watch", str(folder), str(live), *OPTIONS, "--continue", "--idle-minutes=0.001"]) == 0
    after = io.open_particles(live / "particles.star")
    assert np.array_equal(after.images.read(np.arange(60)), images.numpy() if torch.is_tensor(images) else images)
    run = load_run(live)
    turn = (run.poses.psi_deg[:50] - before.poses.psi_deg + 180) % 360 - 180
    assert float(turn.abs().median()) < 5
