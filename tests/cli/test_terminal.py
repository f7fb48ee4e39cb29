"""What a run shows on a real pseudo-terminal, on an emulated screen: nothing wrapped, nothing left, no silence."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from ralib.cli import main
from ralib.cli.commands.select import _check_automatic
from ralib.cli.common import at_work
from ralib.cli.terminal import class_table, iteration_line
from ralib.io import write_mrcs
from ralib.kernels import rotate_shift_images

pyte = pytest.importorskip("pyte", reason="pyte is not installed: pip install pyte")

ROWS = 40
SILENCE_S = 2.0


@dataclass(frozen=True)
class Shown:
    """A finished command: its status, the lines a person can scroll through, and when output came (s)."""

    status: int
    lines: list[str]
    raw: bytes
    moments: list[float]

    @property
    def silence_s(self) -> float:
        return float(np.diff([0.0, *self.moments]).max())


def on_terminal(columns: int, folder: Path, *arguments: object, interrupted_at: str | None = None) -> Shown:
    """`ralib` in a folder, on a pseudo-terminal of that width; Ctrl-C is typed once when a text has appeared."""
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "ralib", *map(str, arguments)],
        stdin=terminal, stdout=terminal, stderr=terminal, env=environment, cwd=folder, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(terminal)
    screen = pyte.HistoryScreen(columns, ROWS, history=5000)
    stream, raw, moments = pyte.ByteStream(screen), b"", []
    while True:
        ready, _, _ = select.select([control], [], [], 0.05)
        if ready:
            try:
                part = os.read(control, 1 << 16)
            except OSError:  # Linux's way to say that the other side has closed
                break
            moments.append(time.monotonic() - started)
            stream.feed(part)
            raw += part
            if interrupted_at is not None and interrupted_at in "\n".join(screen.display):
                interrupted_at = None
                os.write(control, b"\x03")
        elif process.poll() is not None:
            break
    status = process.wait()
    os.close(control)
    above = ["".join(row[x].data for x in range(columns)) for row in screen.history.top]
    lines = [line.rstrip() for line in [*above, *screen.display]]
    return Shown(status, lines, raw, [*moments, time.monotonic() - started])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 particles of two shapes in noise, 32 px, 3 A/px."""
    folder = tmp_path_factory.mktemp("stack")
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(32.0) - 16, torch.arange(32.0) - 16, indexing="ij")
    first = torch.exp(-((x - 4) ** 2 + y**2) / 20) + torch.exp(-((x + 5) ** 2 + (y - 2) ** 2) / 8)
    second = torch.exp(-(x**2 + (y - 5) ** 2) / 8) + torch.exp(-((x - 3) ** 2 + (y + 4) ** 2) / 14)
    shape = torch.stack([first, second])[torch.arange(300) % 2]
    psi = 360 * torch.rand(300, generator=generator)
    turned = rotate_shift_images(shape, psi, torch.zeros(300, 2), torch.zeros(300, dtype=torch.bool))
    images = turned + 0.5 * torch.randn(turned.shape, generator=generator)
    write_mrcs(folder / "p.mrcs", images.numpy(), 3.0)
    return folder / "p.mrcs"


def check_screen(shown: Shown, columns: int, out: Path) -> None:
    """Nothing wrapped by the terminal, no 'nan', no bar left, and log.txt says the same, whole.

    Of an iteration a screen of less than 100 columns may show the first figures only.
    """
    assert shown.status == 0, "\n".join(shown.lines)
    text = "\n".join(shown.lines)
    assert "nan" not in text.lower().split()
    assert "Warning" not in text
    for rubbish in ("━", "loading", "0:00:0", "⠋", "\x1b"):
        assert rubbish not in text, text
    assert b"\xe2\x94\x81" in shown.raw, "there was no progress bar"
    log = (out / "log.txt").read_text().splitlines()
    joined = " ".join(text.split())
    for line in log:
        told = ", ".join(line.split(", ")[:2]) if line.startswith("iteration") and columns < 100 else line
        assert " ".join(told.split()) in joined, line
    # A line that the terminal broke ends in its last column, and goes on without the indent of a folded one.
    for line, following in zip(shown.lines, shown.lines[1:], strict=False):
        assert len(line) < columns or not following or following.startswith("  "), (line, following)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [100, 80])
def test_classify_on_a_terminal_wraps_nothing_and_leaves_nothing(stack: Path, tmp_path: Path, columns: int) -> None:
    shown = on_terminal(columns, tmp_path, "classify", stack, "out", "--seed", "1")
    check_screen(shown, columns, tmp_path / "out")
    text = "\n".join(shown.lines)
    assert "classes: 3 for 300 particles (--classes)" in text  # the default is told
    assert "particles: 300, box 32 px (96 A, 3 A/px)" in text
    check_order(shown, "particle diameter ", "iteration 1 ", "exchange 1: ", "sharpen: ", "class  particles")
    assert any(line.startswith("class  particles  resolution") for line in shown.lines)
    folded = [line for line in shown.lines if line.startswith("  ") and "classes between" not in line]
    assert not any(before.startswith("iteration") for before in _before(shown.lines, folded))


def _before(lines: list[str], folded: list[str]) -> list[str]:
    """The lines that stand above continued ones."""
    return [lines[i - 1] for i, line in enumerate(lines) if i and line in folded and not line[:6].strip().isdigit()]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [100, 80])
def test_mref_on_a_terminal_wraps_nothing_and_tells_the_measured_radius(
    stack: Path, tmp_path: Path, columns: int
) -> None:
    shown = on_terminal(columns, tmp_path, "mref", stack, 2, "out", "--maxit", 3)
    check_screen(shown, columns, tmp_path / "out")
    assert any("outer radius: " in line and "--ou" in line for line in shown.lines)


def check_order(shown: Shown, *begins: str) -> None:
    """A line that holds each text, the first such line of one before that of the next; findings once."""
    first = [next(i for i, line in enumerate(shown.lines) if text in line) for text in begins]
    assert first == sorted(first), dict(zip(begins, first, strict=True))
    for text in ("particle diameter ", "exchange 1: "):
        assert sum(text in line for line in shown.lines) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("columns", [100, 80])
def test_reffree_on_a_terminal_wraps_nothing_and_is_never_silent(stack: Path, tmp_path: Path, columns: int) -> None:
    shown = on_terminal(columns, tmp_path, "reffree", stack, "out")
    check_screen(shown, columns, tmp_path / "out")
    check_order(shown, "outer radius: ", "shift range: ", "iteration 1: ", "class  particles")
    assert (
        shown.silence_s <= 2 * SILENCE_S
    )  # of one run: `test_a_run_is_never_silent_for_long` takes the least of three


@pytest.mark.slow
def test_interrupt_on_a_terminal_leaves_no_bar(stack: Path, tmp_path: Path) -> None:
    options = ("--classes", 3, "--seed", 1)
    shown = on_terminal(80, tmp_path, "classify", stack, "out", *options, interrupted_at="iteration 10 ")
    text = "\n".join(shown.lines)
    assert shown.status == 130, text
    assert "iteration 24" not in text
    for rubbish in ("━", "left", "^C", "\x1b"):
        assert rubbish not in text, text
    assert "\nralib: stopping when this step is saved, in 20 s at most; again: at once\n" in text
    assert "\nralib: stopped by SIGINT; go on with: " in text


@pytest.mark.slow
def test_stability_runs_have_a_bar(stack: Path, tmp_path: Path) -> None:
    options = ("--classes", 2, "--quick", "--stability", 1)
    shown = on_terminal(100, tmp_path, "classify", stack, "out", *options)
    check_screen(shown, 100, tmp_path / "out")
    begun = shown.raw.rindex(b"run 1 from another start")
    assert b"stability 1 of 1" in shown.raw[begun:]
    assert b"\xe2\x94\x81" in shown.raw[begun:]


@pytest.mark.slow
def test_watch_on_a_terminal_is_like_every_run(stack: Path, tmp_path: Path) -> None:
    arriving = tmp_path / "arriving"
    arriving.mkdir()
    (arriving / "p.mrcs").write_bytes(stack.read_bytes())
    options = ("--classes", 2, "--poll-seconds", "0.2", "--idle-minutes", "0.05")
    shown = on_terminal(100, tmp_path, "watch", arriving, "out", *options)
    check_screen(shown, 100, tmp_path / "out")
    assert sum(line.startswith("particles: ") for line in shown.lines) == 1
    assert any(line.startswith("iteration ") for line in shown.lines)
    assert b"waiting for more" in shown.raw
    assert any(line.startswith("class  particles  resolution") for line in shown.lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [("classify", "--classes", 2), ("mref", 2), ("reffree",)], ids=["classify", "mref", "reffree"]
)
def test_a_run_is_never_silent_for_long(stack: Path, tmp_path: Path, command: tuple[object, ...]) -> None:
    """From the start, when PyTorch loads, to the end. The least of three: other programs use the machine as well."""
    silences = []
    for i in range(3):
        name, *arguments = command
        positional = [a for a in arguments if name == "mref"]
        options = [] if positional else arguments
        shown = on_terminal(100, tmp_path, name, stack, *positional, f"out{i}", *options)
        assert shown.status == 0, shown.lines
        silences.append(shown.silence_s)
        if silences[-1] <= SILENCE_S:
            break
    assert min(silences) <= SILENCE_S, silences


def test_log_goes_on_where_a_run_is_continued(stack: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["mref", str(stack), "2", str(out), "--ou", "12", "--no-report"]
    assert main([*given, "--maxit", "1"]) == 0
    before = (out / "log.txt").read_text()
    assert main([*given, "--maxit", "2", "--continue"]) == 0
    after = (out / "log.txt").read_text()
    assert after.startswith(before)
    assert "iteration 2/2" in after[len(before) :]
    assert "iteration 1/" not in after[len(before) :]


def test_iteration_line_stays_within_a_hundred_columns() -> None:
    row = {
        "iteration": 123, "stage": "exchange", "criterion": 12345.678, "smallest": 10, "largest": 99_999, "empty": 12,
        "class_sizes": [0] * 250, "median_resolution_px": 3.1, "median_resolution_A": 12.34, "pixel_error_px": 0.1234,
        "class_changes": 0.456, "seconds": 12.34,
    }  # fmt: skip
    line = iteration_line(row, 128)
    assert len(line) <= 100, (len(line), line)
    unknown = row | dict.fromkeys(("median_resolution_px", "pixel_error_px", "class_changes"), float("nan"))
    assert "nan" not in iteration_line(unknown, 128)


@pytest.mark.parametrize("columns", [60, 79, 99])
def test_iteration_line_keeps_what_fits_a_narrow_screen(columns: int) -> None:
    row = {
        "iteration": 12, "stage": "exchange", "criterion": 103.7, "smallest": 28, "largest": 182, "empty": 0,
        "class_sizes": [0] * 34, "median_resolution_px": 3.1, "median_resolution_A": 19.8, "pixel_error_px": 0.1234,
        "class_changes": 0.12, "seconds": 0.5,
    }  # fmt: skip
    line = iteration_line(row, 128, columns=columns)
    assert len(line) <= columns
    assert "34 classes of 28..182" in line
    assert ("changed 12%" in line) == (columns > 60)


def test_automatic_selection_of_many_classes_lists_those_that_lose_members(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"class": k, "members": 50, "kept": 49 if k != 7 else 3, "reason": f"reason {k}"} for k in range(1, 121)]
    _check_automatic({"classes": rows})
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["class   7: reason 7", "119 of 120 classes lose less than 10% of their members"]
    _check_automatic({"classes": rows[:20]})
    assert len(capsys.readouterr().out.splitlines()) == 20


def test_class_table_of_many_classes_counts_those_between() -> None:
    rows = [{"class": k, "members": k, "resolution_px": 4.0, "resolution_A": 12.0} for k in range(1, 121)]
    lines = class_table(rows, 64)
    assert len(lines) == 14
    assert "108 classes between these" in lines[7]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("terminal", [True, False])
def test_long_work_says_on_a_terminal_what_it_is(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with at_work("comparing"):
        pass
    assert ("comparing ..." in screen.getvalue()) == terminal
    assert bool(screen.getvalue()) == terminal
