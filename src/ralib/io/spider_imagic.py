"""SPIDER stacks (.spi, .stk) and IMAGIC pairs (.hed + .img), both byte orders."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ralib.io.atomic import PathLike
from ralib.io.raw_stack import RawStack
from ralib.io.stack_file import MAX_BOX, RawLayout
from ralib.types import RalibError

_IMAGIC_TYPES = {b"REAL": "f4", b"INTG": "i2", b"PACK": "u1", b"LONG": "i4"}
_IMAGIC_HEADER = 1024


def open_spider(path: PathLike) -> RawStack:
    """Open a SPIDER image or stack: every image has its own header before its pixels."""
    path = Path(path)
    raw = _start(path, 256)
    for order in "<>":
        with np.errstate(invalid="ignore"):  # bytes of the other order may be signalling NaN
            head = np.frombuffer(raw, dtype=order + "f4").astype(np.float64)
        ny, nx, form, header_bytes = head[1], head[11], head[4], head[21]
        whole = all(v == np.floor(v) for v in (ny, nx, header_bytes))
        if form == 1 and whole and min(ny, nx) >= 1 and max(ny, nx) <= MAX_BOX and 0 < header_bytes < 1 << 20:
            break
    else:
        raise RalibError(f"{path} is no SPIDER image stack")
    stacked = head[23] != 0
    count = int(head[25]) if stacked and 0 <= head[25] < 2**31 else int(not stacked)
    size = float(head[37]) if 0 < head[37] < 1e4 else None
    header, pixels = int(header_bytes), int(nx * ny) * 4
    offset = header * (2 if stacked else 1)
    return RawStack(path, RawLayout(count, int(ny), int(nx), np.dtype(order + "f4"), offset, header + pixels, size))


def open_imagic(path: PathLike) -> RawStack:
    """Open an IMAGIC pair, named by either of its files."""
    path = Path(path)
    upper = path.suffix.isupper()
    header_path, pixel_path = (path.with_suffix(s.upper() if upper else s) for s in (".hed", ".img"))
    raw = _start(header_path, _IMAGIC_HEADER)
    for order in "<>":
        head = np.frombuffer(raw, dtype=order + "i4")
        ny, nx = int(head[12]), int(head[13])
        if 1 <= ny <= MAX_BOX and 1 <= nx <= MAX_BOX:
            break
    else:
        raise RalibError(f"{header_path} is no IMAGIC header")
    kind = _IMAGIC_TYPES.get(raw[56:60])
    if kind is None:
        raise RalibError(f"{header_path}: pixels of type {raw[56:60]!r} are not read (REAL, INTG, PACK, LONG are)")
    if not pixel_path.is_file():
        raise RalibError(f"{pixel_path} is missing: an IMAGIC stack is a .hed and a .img file of the same name")
    dtype = np.dtype(order + kind)
    count = header_path.stat().st_size // _IMAGIC_HEADER
    return RawStack(pixel_path, RawLayout(count, ny, nx, dtype, 0, ny * nx * dtype.itemsize))


def _start(path: Path, n_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(n_bytes)
    except OSError as error:
        raise RalibError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) < n_bytes:
        raise RalibError(f"{path} is too short ({len(raw)} bytes) to be an image stack")
    return raw
