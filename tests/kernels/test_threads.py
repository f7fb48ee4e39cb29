"""Work over the cores of a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ralib.kernels.threads import Threads, all_on_cores, as_here, cores, on_cores, shares


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("parts", [0, 1, 2, 5])
def test_on_cores_gives_every_part_one_thread_of_pytorch(parts: int, two_threads: None) -> None:
    assert on_cores(lambda part: (part, torch.get_num_threads()), range(parts)) == [(i, 1) for i in range(parts)]
    assert torch.get_num_threads() == 2


def test_shares_cover_everything_in_two_parts_a_thread(two_threads: None) -> None:
    assert [list(range(10))[cut] for cut in shares(10)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_shares_are_as_many_for_each_thread_as_asked_for(two_threads: None) -> None:
    assert [list(range(5))[cut] for cut in shares(5, each=1)] == [[0, 1, 2], [3, 4]]
    assert shares(1, each=1) == [slice(0, 1)]


def test_all_on_cores_leaves_pytorch_one_thread(two_threads: None) -> None:
    with all_on_cores(torch.device("cpu")):
        assert (torch.get_num_threads(), cores()) == (1, 2)
    assert (torch.get_num_threads(), cores()) == (2, 2)


def test_threads_write_to_tensors_that_the_caller_made_in_inference_mode(two_threads: None) -> None:
    def fill(part: int) -> bool:
        out[part] = part + 1.0
        return torch.is_inference_mode_enabled()

    with torch.inference_mode():
        out = torch.zeros(4)
        assert on_cores(fill, range(4)) == [True] * 4
        assert out.tolist() == [1, 2, 3, 4]
    out = torch.zeros(4)
    assert on_cores(fill, range(4)) == [False] * 4


def test_what_another_thread_is_given_runs_as_here() -> None:
    mode = as_here(torch.is_inference_mode_enabled)
    with torch.inference_mode(), Threads(1) as threads:
        assert not mode()
        assert threads.submit(torch.is_inference_mode_enabled).result()
        assert threads.submit(as_here(mode)).result() is False
