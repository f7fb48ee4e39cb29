"""Several processes as one run: sharding, sums and broadcasts over torch.distributed.

The loops know only `Ranks`, and this module only torch. torchrun, or `launch`, starts the processes and gives each its
number; NCCL sums tensors on GPUs, gloo those in main memory. Each process has a heartbeat: when one ends early the
others end within half a minute, even if they wait for it inside a GPU's queue.
"""

from __future__ import annotations

import atexit
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from ralib.types import RalibError

BEAT_S = 1.0
LOST_S = 20.0
"""A rank is lost when its heartbeat stops for so long."""
GRACE_S = 8.0
"""What a rank has to end by itself after another failed, or after a signal."""
TIMEOUT = timedelta(hours=6)
"""Of one sum: rank 0 may be writing for long; a rank that hangs is detected by the heartbeat."""
_DONE, _FAILED = "done", "failed"


class RankLost(RuntimeError):  # noqa: N818 - it says what happened
    """Another process of this run has ended, so that this one cannot continue."""


class Ranks(Protocol):
    """The processes of a run as the loops use them; every method is called by all of them, in the same order.

    Attributes
    ----------
    rank : int
        Number of this process.
    size : int
        Number of processes.
    """

    rank: int
    size: int

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over the ranks, with the same bits on all of them."""
        ...

    def all_max_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its maximum over the ranks, element by element."""
        ...

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by that of rank 0."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks."""
        ...


class SingleProcess:
    """The only rank of a run of one process."""

    rank = 0
    size = 1

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Return the tensor unchanged."""
        return tensor

    def all_max_(self, tensor: Tensor) -> Tensor:
        """As `Ranks.all_max_`."""
        return tensor

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Return the tensor unchanged."""
        return tensor

    def barrier(self) -> None:
        """Return at once."""


class ProcessGroup:
    """Ranks over torch.distributed.

    Parameters
    ----------
    group : dist.ProcessGroup | None, optional
        A group that contains rank 0; by default all processes of the run.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over the ranks."""
        with _lost_rank_reported():
            dist.all_reduce(tensor, group=self._group)
        return tensor

    def all_max_(self, tensor: Tensor) -> Tensor:
        """As `Ranks.all_max_`."""
        with _lost_rank_reported():
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return tensor

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by that of rank 0."""
        with _lost_rank_reported():
            dist.broadcast(tensor, src=0, group=self._group)
        return tensor

    def barrier(self) -> None:
        """Wait for all ranks."""
        # A sum in main memory: it waits for the processes, and for no GPU.
        self.all_reduce_(torch.zeros(1))


class _lost_rank_reported:  # noqa: N801 - used as a statement
    """Convert errors of gloo and NCCL about a broken connection to RankLost."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            raise RankLost("another process of this run has ended; go on with `resume`") from error


def shard(n: int, ranks: Ranks) -> range:
    """Return the contiguous block of 0..n-1 of this rank; blocks differ by at most one in length.

    Parameters
    ----------
    n : int
        Number of rows.
    ranks : Ranks
        The processes.

    Returns
    -------
    range
        The block.
    """
    return range(n * ranks.rank // ranks.size, n * (ranks.rank + 1) // ranks.size)


def gather_rows(part: Tensor, n: int, ranks: Ranks) -> Tensor:
    """Gather the rows of all ranks on every rank.

    Parameters
    ----------
    part : Tensor of shape (m, ...)
        Rows of this rank's shard.
    n : int
        Number of rows of all.
    ranks : Ranks
        The processes.

    Returns
    -------
    Tensor of shape (n, ...)
        All rows.
    """
    if ranks.size == 1:
        return part
    rows = shard(n, ranks)
    small = part.to(torch.uint8) if part.dtype == torch.bool else part
    whole = torch.zeros(n, *part.shape[1:], dtype=small.dtype, device=part.device)
    whole[rows.start : rows.stop] = small
    return ranks.all_reduce_(whole).to(part.dtype)


def launcher_number(name: str, default: int) -> int:
    """Return a number that the launcher sets in the environment.

    Parameters
    ----------
    name : str
        RANK, LOCAL_RANK, WORLD_SIZE or LOCAL_WORLD_SIZE.
    default : int
        Value where it is not set.

    Returns
    -------
    int
        The number.

    Raises
    ------
    RalibError
        If it is set to something else than a possible number.
    """
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or (int(text) < 1 and name.endswith("WORLD_SIZE")):
        raise RalibError(
            f"the environment variable {name} is {text!r}, no number of a launcher such as torchrun: unset it"
        )
    return int(text)


def launched() -> bool:
    """Return whether a launcher started this process as one of several."""
    return launcher_number("WORLD_SIZE", 1) > 1 and "RANK" in os.environ


def rank_to_show() -> int:
    """Return this process's rank for messages: 0 where the environment says nothing sensible."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdecimal() else 0


def join() -> Ranks:
    """Return the processes of this run: one, unless a launcher started more. They connect at the first call."""
    return _joined()[0] if launched() else SingleProcess()


@functools.cache
def _joined() -> tuple[ProcessGroup, _Heartbeat]:
    """torch.distributed has one world in a process, so that it is joined once."""
    store, rank, size = next(iter(rendezvous("env://")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    heartbeat = _Heartbeat(store, rank, size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    heartbeat.start()
    atexit.register(heartbeat.leave)
    return ProcessGroup(), heartbeat


def first_to_fail() -> bool:
    """Mark this rank as failed for the others, and return whether it is the first, which reports the reason."""
    return _joined()[1].fail() if _joined.cache_info().currsize else True


def launch(n: int, arguments: Sequence[str]) -> int:
    """Run `python -m ralib ARGUMENTS` as several processes of this machine by torchrun.

    Parameters
    ----------
    n : int
        Number of processes.
    arguments : sequence of str
        Arguments of the command line.

    Returns
    -------
    int
        Exit status.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // n)))
    try:
        run.main(["--standalone", f"--nproc-per-node={n}", "-m", "ralib", *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        print(f"ralib: rank {rank} was ended by {signal.Signals(-failure.exitcode).name}", file=sys.stderr)
        return 128 - failure.exitcode
    except SignalException as stop:
        return 128 + int(stop.sigval)
    return 0


class _Heartbeat(threading.Thread):
    """A thread that sends this rank's heartbeat and watches those of the others, over their common store."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        super().__init__(name="ralib-heartbeat", daemon=True)
        # A connection of its own: the main thread may be waiting in the other one.
        self._store, self._exit_store = store.clone(), store.clone()
        self.rank, self._others = rank, [r for r in range(size) if r != rank]
        self._stop = threading.Event()
        self._store.set(f"ralib/beat/{rank}", "0")

    def run(self) -> None:
        """Send and watch until the process ends."""
        heard: dict[int, tuple[str, float]] = {}
        count, failed_at = 0, None
        while not self._stop.wait(BEAT_S):
            count += 1
            try:
                self._store.set(f"ralib/beat/{self.rank}", str(count))
                beats = [b.decode() for b in self._store.multi_get([f"ralib/beat/{r}" for r in self._others])]
            except RuntimeError:
                self._end("the process that kept the run together has ended")
            now = time.monotonic()
            heard = {
                rank: heard[rank] if heard.get(rank, ("",))[0] == beat else (beat, now)
                for rank, beat in zip(self._others, beats, strict=True)
            }
            for rank, (beat, since) in heard.items():
                if beat not in (_DONE, _FAILED) and now - since > LOST_S:
                    self._end(f"nothing has been heard of rank {rank} for {LOST_S:.0f} s")
            if _FAILED in beats:
                failed_at = failed_at or now
                if now - failed_at > GRACE_S:
                    self._end("another process of this run has failed")

    def fail(self) -> bool:
        """Mark this rank as failed, and return whether no other had failed before."""
        self._stop.set()
        try:
            self._exit_store.set(f"ralib/beat/{self.rank}", _FAILED)
            return self._exit_store.add("ralib/failures", 1) == 1
        except RuntimeError:  # the store's process has ended: nothing to compare with
            return True

    def leave(self) -> None:
        """Mark a regular end of the process, and close the connections."""
        if self._stop.is_set():
            return
        self._stop.set()
        try:
            self._exit_store.set(f"ralib/beat/{self.rank}", _DONE)
            dist.destroy_process_group()
        except RuntimeError:
            return

    def _end(self, why: str) -> NoReturn:
        """End the process at once; its main thread may be waiting where nothing reaches it."""
        if self.fail():
            print(f"ralib: rank {self.rank}: {why}; go on from the last checkpoint", file=sys.stderr, flush=True)
        os._exit(1)
