"""A run's folder has one owner: of runs that begin at once exactly one goes on, and a dead owner is none."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from ralib.results import folder_lock
from ralib.results.folder_lock import LOCK
from ralib.results.run_directory import RunDirectory
from ralib.types import RalibError

TAKE = """
import sys, time
from pathlib import Path
from ralib.results.run_directory import RunDirectory
from ralib.types import RalibError
out = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    with RunDirectory(out) as directory:
        directory.write_record({"n": 1})
        time.sleep(float(sys.argv[2]))
    print("mine")
except RalibError:
    print("refused")
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_folder_of_runs_begun_at_once_exactly_one_goes_on(tmp_path: Path, seconds: float) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", TAKE, str(tmp_path / "out"), str(seconds)],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    said = []
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in started:
        said.append(process.communicate()[0].strip())
    assert sorted(said) == ["mine", "refused", "refused", "refused"]


def test_folder_lock_that_a_killed_process_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("")
    with RunDirectory(tmp_path):
        pass


def test_folder_lock_file_removed_between_opening_and_locking_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run ending at that moment does; the lock of a file without a name guards nothing."""
    lock, removed = fcntl.flock, []

    def late(file: object, operation: int) -> None:
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        lock(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_lock.fcntl, "flock", late)
    with RunDirectory(tmp_path), pytest.raises(RalibError, match="another ralib"):
        RunDirectory(tmp_path, resume=True)


def test_folder_on_a_file_system_without_locks_has_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "flock", none)
    with RunDirectory(tmp_path), pytest.raises(RalibError, match="another ralib"):
        RunDirectory(tmp_path, resume=True)
    (tmp_path / LOCK).write_text(f"{folder_lock.platform.node()} 999999999")
    with RunDirectory(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
