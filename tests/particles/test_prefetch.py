"""Images on their way to the device: the right ones, in the file's numbers, through few buffers, ahead of use."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from devices import needs_gpu
from ralib import io
from ralib.io.mrc import open_stack
from ralib.io.stacks import FilesSource
from ralib.particles import prefetch as loading
from ralib.particles.prefetch import Loader
from ralib.types import ArraySource, RalibError

CPU = torch.device("cpu")
N, BOX = 50, 16
IMAGES = np.random.default_rng(0).normal(size=(N, BOX, BOX)).astype(np.float32)
BLOCKS = [np.arange(0, 20), np.arange(20, 41), np.arange(41, N)]


@pytest.fixture
def few_small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BUFFER_BYTES", 3 * 4 * BOX**2)
    monkeypatch.setattr(loading, "BUFFERS", 2)


def loaded(source, **options) -> list[torch.Tensor]:
    return [images.float() for images, _ in Loader(source, CPU, **options).blocks(BLOCKS)]


@pytest.mark.usefixtures("few_small_buffers")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_loader_images_are_those_of_the_file(tmp_path: Path, dtype) -> None:
    io.write_mrcs(tmp_path / "p.mrcs", IMAGES, 1.0, dtype=dtype)
    expected = torch.from_numpy(IMAGES.astype(dtype).astype(np.float32))
    stack = open_stack(tmp_path / "p.mrcs")
    for staged in (True, False):
        loader = Loader(stack, CPU, staged=staged)
        blocks = [images for images, _ in loader.blocks(BLOCKS)]
        assert blocks[0].numpy().dtype == dtype, "numbers travel as the file has them"
        assert torch.equal(torch.cat(blocks).float(), expected)
        assert loader.reading.bytes == IMAGES.astype(dtype).nbytes
        assert loader._made == (2 if staged else 0)
    shuffled = np.random.default_rng(1).permutation(N)
    assert torch.equal(Loader(stack, CPU, staged=True).block(shuffled)[0].float(), expected[shuffled])
    assert not torch.equal(Loader(stack, CPU, staged=True).block(shuffled)[0].float(), expected)


@pytest.mark.usefixtures("few_small_buffers")
def test_loader_files_of_several_kinds_are_read(tmp_path: Path) -> None:
    halves = IMAGES.astype(np.float16).astype(np.float32)
    for name, dtype in (("a", np.float16), ("b", np.float32), ("c", np.float16)):
        io.write_mrcs(tmp_path / f"{name}.mrcs", halves, 1.0, dtype=dtype)
    rng = np.random.default_rng(2)
    which, part = np.sort(rng.integers(0, 2, N)), rng.integers(0, N, N)
    for names, expected in (("ab", np.float32), ("ac", np.float16)):
        source = FilesSource([tmp_path / f"{n}.mrcs" for n in names], which, part, open_stack)
        assert source.raw_dtype == expected
        assert np.array_equal(torch.cat(loaded(source, staged=True)).numpy(), halves[part])
        assert np.array_equal(source.taken(np.array([3, 1])).read(np.array([0, 1])), halves[part[[3, 1]]])


@pytest.mark.usefixtures("few_small_buffers")
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_loader_images_are_those_of_the_array(dtype) -> None:
    images, shuffled = IMAGES.astype(dtype), np.random.default_rng(1).permutation(N)
    expected = torch.from_numpy(images.astype(np.float32))
    for staged in (True, False):
        assert torch.equal(torch.cat(loaded(ArraySource(images), staged=staged)), expected)
        assert torch.equal(Loader(ArraySource(images), CPU, staged=staged).block(shuffled)[0], expected[shuffled])


class Plain:
    """A source of the user's own, which can do no more than read."""

    n_images, box = N, BOX

    def __init__(self) -> None:
        self.busy, self.reads = threading.Lock(), []

    def read(self, index: np.ndarray) -> np.ndarray:
        assert self.busy.acquire(blocking=False), "two readers at a time"
        self.reads.append(int(index[0]))
        time.sleep(0.001)
        self.busy.release()
        return IMAGES[index]


@pytest.mark.usefixtures("few_small_buffers")
def test_loader_other_sources_are_read_by_one_thread_at_a_time() -> None:
    assert torch.equal(torch.cat(loaded(Plain())), torch.from_numpy(IMAGES))


def test_loader_reads_a_few_blocks_ahead() -> None:
    source = Plain()
    blocks = Loader(source, CPU).blocks([np.array([i]) for i in range(20)])
    next(blocks)
    time.sleep(0.3)
    assert len(source.reads) == 2 + loading.READ_AHEAD, "the one taken, those waiting, and one in the reader's hand"
    blocks.close()
    assert not any(t.name == "ralib-read-ahead" for t in threading.enumerate())


def test_loader_error_of_a_reader_is_raised_in_the_consumer(tmp_path: Path) -> None:
    io.write_mrcs(tmp_path / "p.mrcs", IMAGES, 1.0)
    stack = open_stack(tmp_path / "p.mrcs")
    with (tmp_path / "p.mrcs").open("r+b") as file:
        file.truncate(1024 + 30 * 4 * BOX**2)
    blocks = Loader(stack, CPU, staged=True).blocks(BLOCKS)
    next(blocks)
    with pytest.raises(RalibError, match="has become shorter while it was read"):
        list(blocks)


@needs_gpu
def test_loader_cuda_copies_run_beside_the_computation(tmp_path: Path) -> None:
    io.write_mrcs(tmp_path / "p.mrcs", IMAGES, 1.0, dtype=np.float16)
    loader = Loader(open_stack(tmp_path / "p.mrcs"), torch.device("cuda"))
    seen = []
    for images, arrived in loader.blocks(BLOCKS * 20):
        torch.cuda.current_stream().wait_event(arrived)
        images.record_stream(torch.cuda.current_stream())
        seen.append(images.float().cpu())
    assert torch.equal(torch.cat(seen), torch.from_numpy(np.tile(IMAGES.astype(np.float16), (20, 1, 1))).float())
