"""MRC stacks: every mode and byte order, lazily, and written so that other programs read them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import torch

from ralib.io import mrc, open_images, open_particles, open_stack, stack_writer, take, write_hdf, write_mrcs
from ralib.io.stacks import MAX_OPEN_FILES, FilesSource
from ralib.types import RalibError

IMAGES = np.random.default_rng(0).normal(0, 9, (5, 12, 12)).astype(np.float32)


@pytest.mark.parametrize(("mode", "dtype"), [(0, "i1"), (1, "i2"), (2, "f4"), (6, "u2"), (12, "f2")])
@pytest.mark.parametrize("order", ["<", ">"])
def test_mrc_modes_and_byte_orders_are_read(tmp_path: Path, mode: int, dtype: str, order: str) -> None:
    data = np.abs(IMAGES).astype(dtype)
    header = np.zeros((), dtype=mrc.HEADER_DTYPE.newbyteorder(order))
    for name, value in {
        "nx": 12,
        "ny": 12,
        "nz": 5,
        "mode": mode,
        "mx": 12,
        "cella": (18, 18, 18),
        "nsymbt": 64,
    }.items():
        header[name] = value
    path = tmp_path / "stack.mrc"
    path.write_bytes(header.tobytes() + bytes(64) + data.astype(order + dtype).tobytes())
    stack = open_stack(path)
    assert (stack.n_images, stack.box, stack.pixel_size_A) == (5, 12, 1.5)
    assert np.array_equal(stack.read(np.array([3, 0, 4])), data[[3, 0, 4]].astype(np.float32))


def test_mrc_imod_unsigned_bytes_are_read(tmp_path: Path) -> None:
    data = np.arange(144, dtype=np.uint8).reshape(1, 12, 12) + 100
    header = np.zeros((), dtype=mrc.HEADER_DTYPE.newbyteorder("<"))
    for name, value in {"nx": 12, "ny": 12, "nz": 1, "mode": 0}.items():
        header[name] = value
    raw = bytearray(header.tobytes())
    raw[152:160] = np.array([1146047817, 0], dtype="<i4").tobytes()
    (tmp_path / "imod.mrc").write_bytes(bytes(raw) + data.tobytes())
    assert np.array_equal(open_images(tmp_path / "imod.mrc"), data.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_mrc_written_stacks_are_valid(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "out.mrcs"
    write_mrcs(path, torch.tensor(IMAGES), 1.31, dtype=dtype)
    assert mrcfile.validate(str(path))
    with mrcfile.open(path) as file:
        assert file.is_image_stack()
        assert np.array_equal(file.data, IMAGES.astype(dtype))
        assert file.voxel_size.x == pytest.approx(1.31)
        assert file.header.rms == pytest.approx(IMAGES.astype(dtype).astype(np.float64).std(), rel=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["out.mrcs"]


def test_mrc_written_in_batches_is_the_same_file(tmp_path: Path) -> None:
    write_mrcs(tmp_path / "whole.mrcs", IMAGES, 2.0)
    with stack_writer(tmp_path / "batches.mrcs", 2.0) as stack:
        for part in (IMAGES[:2], IMAGES[2], IMAGES[3:]):
            stack.append(part)
    assert (tmp_path / "whole.mrcs").read_bytes() == (tmp_path / "batches.mrcs").read_bytes()


def test_mrc_real_stacks_are_read(shared_data: Path) -> None:
    for name, n, box in (("aspire_sample17/sample.mrcs", 17, 200), ("empiar10076_7/empiar_10076_7.mrc", 7, 320)):
        stack = open_stack(shared_data / "real" / name)
        assert (stack.n_images, stack.box, stack.pixel_size_A) == (n, box, None)
        with mrcfile.open(shared_data / "real" / name, permissive=True) as file:
            assert np.array_equal(stack.read(np.arange(n))[[2, 5]], file.data[[2, 5]])


def test_stacks_particles_over_many_files_are_read(tmp_path: Path) -> None:
    n_files = MAX_OPEN_FILES + 9
    rng = np.random.default_rng(1)
    images = rng.normal(size=(n_files, 3, 8, 8)).astype(np.float32)
    paths = [tmp_path / f"{i}.mrcs" for i in range(n_files)]
    for path, stack in zip(paths, images, strict=True):
        write_mrcs(path, stack, 1.0)
    file_index, slices = rng.integers(0, n_files, 400), rng.integers(0, 3, 400)
    source = FilesSource(paths, file_index, slices, open_stack)
    order = rng.permutation(400)
    assert np.array_equal(source.read(order), images[file_index[order], slices[order]])
    assert len(source._open) <= MAX_OPEN_FILES
    wrong = source.read(order[::-1].copy())
    assert not np.array_equal(wrong, images[file_index[order], slices[order]])

    failures: list[Exception] = []

    def hammer(seed: int) -> None:
        index = np.random.default_rng(seed).integers(0, 400, 300)
        try:
            assert np.array_equal(source.read(index), images[file_index[index], slices[index]])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_stacks_selection_keeps_its_images(tmp_path: Path) -> None:
    write_mrcs(tmp_path / "a.mrcs", IMAGES, 1.0)
    some = take(open_particles(tmp_path / "a.mrcs"), np.array([4, 1]))
    assert len(some) == 2
    assert np.array_equal(some.images.read(np.array([1, 0])), IMAGES[[1, 4]])
    assert np.array_equal(take(some, np.array([0])).images.read(np.array([0])), IMAGES[[4]])
    with pytest.raises(RalibError, match="no such selection"):
        take(some, np.array([2]))


def test_stacks_other_formats_are_read(shared_data: Path, tmp_path: Path) -> None:
    """SPIDER, IMAGIC and NumPy hold the same pixels in the same orientation as MRC."""
    folder = shared_data / "formats"
    expected = open_images(folder / "smallStack.mrcs")
    for suffix in (".stk", ".hed", ".img"):
        assert np.array_equal(open_images(folder / f"smallStack{suffix}"), expected)
    np.save(tmp_path / "stack.npy", expected.astype(np.float64))
    assert np.array_equal(open_images(tmp_path / "stack.npy"), expected)
    swapped = np.fromfile(folder / "smallStack.stk", "<f4").astype(">f4")
    swapped.tofile(tmp_path / "big.spi")
    assert np.array_equal(open_images(tmp_path / "big.spi"), expected)


def test_stacks_file_that_shrinks_while_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mrcs"
    write_mrcs(path, IMAGES, 1.0)
    stack = open_stack(path)
    with path.open("r+b") as file:
        file.truncate(1024 + 144 * 4)
    assert np.array_equal(stack.read(np.array([0])), IMAGES[:1])
    with pytest.raises(RalibError, match="shorter while it was read"):
        stack.read(np.array([4]))


def test_mrc_volume_is_said_and_a_stack_of_volumes_is_refused(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32)
    for name, data in (("volume.mrc", cube), ("stack.mrcs", IMAGES), ("volumes.mrcs", cube[None].repeat(2, 0))):
        with mrcfile.new(tmp_path / name) as file:
            file.set_data(data)
            if name == "stack.mrcs":
                file.set_image_stack()
    (warning,) = open_particles(tmp_path / "volume.mrc").warnings
    assert "is a volume by its header" in warning.what
    assert not open_particles(tmp_path / "stack.mrcs").warnings
    with pytest.raises(RalibError, match="stack of volumes"):
        open_particles(tmp_path / "volumes.mrcs")


@pytest.mark.parametrize("kind", ["npy", "npy of integers", "hdf", "compressed hdf", "imagic"])
def test_stacks_of_more_than_single_precision_keep_their_signal(kind: str, tmp_path: Path) -> None:
    """A constant of ten million times the signal: it is taken off in double precision, before rounding."""
    wide = IMAGES.astype(np.float64) / 9 + 1e7
    path = tmp_path / f"a.{'hed' if kind == 'imagic' else kind.split()[0] if 'hdf' not in kind else 'hdf'}"
    if kind == "npy":
        np.save(path, wide)
    elif kind == "npy of integers":
        np.save(path, np.round(wide * 100).astype("i4"))
    elif kind == "imagic":
        header = np.zeros((5, 256), dtype="<i4")
        header[:, 12:14], header[:, 14] = 12, int.from_bytes(b"LONG", "little")
        path.write_bytes(header.tobytes())
        path.with_suffix(".img").write_bytes(np.round(wide * 100).astype("<i4").tobytes())
    else:
        write_hdf(path, IMAGES)
        with h5py.File(path, "r+") as file:
            for i, image in enumerate(wide):
                group = file[f"MDF/images/{i}"]
                del group["image"]
                low, high = image.min(), image.max()
                group["image"] = image if kind == "hdf" else np.round((image - low) / (high - low) * 65535).astype("u2")
                if kind != "hdf":
                    for name, value in (("bits", np.int32(16)), ("min", low), ("max", high)):
                        group.attrs[f"EMAN.stored_render{name}"] = value
    read = open_particles(path).images.read(np.arange(5))
    centred = IMAGES - IMAGES.mean((1, 2), keepdims=True)
    assert np.corrcoef((read - read.mean((1, 2), keepdims=True)).ravel(), centred.ravel())[0, 1] > 0.9999


def test_stack_longer_than_its_header_counts_is_said(tmp_path: Path) -> None:
    """A stack that is still being appended, or whose header was not written again: its last images went unread."""
    images = np.random.default_rng(0).normal(size=(6, 16, 16)).astype(np.float32)
    path = tmp_path / "p.mrcs"
    write_mrcs(path, images, 2.0)
    assert not open_particles(path).warnings
    content = bytearray(path.read_bytes())
    content[8:12] = (4).to_bytes(4, "little")
    path.write_bytes(content)
    found = open_particles(path)
    assert len(found) == 4
    (warning,) = found.warnings
    assert "could hold 6 images, its header counts 4: only those are read" in warning.what
    path.write_bytes(content[: 1024 + 4 * 1024 + 1000])
    assert not open_particles(path).warnings, "a rest that is no image"


def test_array_in_fortran_order_is_refused_with_advice(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.asfortranarray(np.zeros((3, 8, 8), np.float32)))
    with pytest.raises(RalibError, match=r"Fortran order: save numpy\.ascontiguousarray"):
        open_particles(tmp_path / "p.npy")


@pytest.mark.parametrize("suffix", [".mrcs", ".hdf"])
def test_written_images_are_real_and_have_a_possible_pixel_size(tmp_path: Path, suffix: str) -> None:
    """Imaginary parts were dropped with a warning of NumPy; headers said -1 A and NaN."""
    path, images = tmp_path / f"c{suffix}", np.ones((2, 8, 8), dtype=np.float32)

    def written(images: Any, size_A: float | None) -> None:
        if suffix == ".hdf":
            write_hdf(path, images, pixel_size_A=size_A)
        else:
            write_mrcs(path, images, size_A)

    for wrong in (images + 1j, torch.tensor(images + 1j)):
        with pytest.raises(RalibError, match="real numbers, not complex64"):
            written(wrong, 1.0)
    for size_A in (-1.0, 0.0, float("nan"), float("inf")):
        with pytest.raises(RalibError, match="`pixel_size_A`"):
            written(images, size_A)
    assert not path.exists()
    written(torch.tensor(images), None)
    assert np.array_equal(open_images(path), images)
