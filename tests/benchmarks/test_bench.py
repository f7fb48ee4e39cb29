"""`ralib bench`: curves, peers and the table; times are the bench's own business."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ralib.benchmarks import curves, peers
from ralib.benchmarks.engine import Case
from ralib.cli import main
from ralib.types import RalibError

SMALL = Case("small", 2, 1, box=24, outer_radius=8)


def test_curves_are_written_point_by_point(tmp_path: Path, monkeypatch, capsys) -> None:
    values = {"particles": (8, 16), "references": (1, 2), "shift range": (1, 2)}
    monkeypatch.setattr(curves, "parity_fraction", lambda *_: 1.0)
    monkeypatch.setattr(curves, "CPU_SWEEP", curves.Sweep(SMALL, 16, values))
    assert main(["bench", "--curves", "--device=cpu", "--parity-particles=4", "--repeats=1", f"--out={tmp_path}"]) == 0
    told = capsys.readouterr().out
    assert told.count(" ms\n") == 6
    assert told.count("time grows as") == 3
    (file,) = tmp_path.glob("curves-*.json")
    rows = json.loads(file.read_text())["rows"]
    assert [r["x"] for r in rows[:6]] == [8, 16, 1, 2, 9, 25]
    assert rows[1]["ours"] == rows[3]["ours"] == rows[4]["ours"], "the point in the middle is measured once"


def test_no_curve_without_parity(monkeypatch) -> None:
    monkeypatch.setattr(curves, "parity_fraction", lambda *_: 0.99)
    sweep = curves.Sweep(SMALL, 8, {"particles": (8,)})
    (row,) = curves.run_curves(sweep, torch.device("cpu"), n_parity=4, repeats=1, say=lambda _: None)
    assert row["ours"] is None
    assert curves.slopes([row]) == []


def test_slope_of_what_doubles() -> None:
    rows = [{"curve": "particles", "x": x, "ours": 3.0 * x**2} for x in (10, 20, 40)]
    assert curves.slopes(rows)[0]["ours"] == pytest.approx(2.0)


@pytest.mark.skipif(shutil.which("relion_refine") is None, reason="needs relion_refine (Debian: apt install relion)")
def test_relion_is_timed_on_the_same_particles(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(peers, "peer_sizes", lambda _: (6, 24))
    row = peers.peer_row(peers.PEERS[0], Case("small", 2, 2, box=48, outer_radius=18), tmp_path)
    assert row["other"] > 0, row
    assert row["ours"] is None
    assert int(row["parity"].split(" %")[0]) >= 90
    assert row["command"][0] == "relion_refine"


def test_a_program_that_fails_is_told(tmp_path: Path, monkeypatch) -> None:
    def broken(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "first line\nno licence\n")

    monkeypatch.setattr(peers.subprocess, "run", broken)
    monkeypatch.setattr(peers, "peer_sizes", lambda _: (2, 4))
    row = peers.peer_row(peers.PEERS[1], SMALL, tmp_path)
    assert row["other"] is None
    assert row["parity"] == "sxmref_ali2d.py failed: no licence"
    with pytest.raises(RalibError):
        peers.run_peer(peers.PEERS[1], SMALL, tmp_path, 2)
