"""Mutations that know the format: files that are well-formed here and mean something odd there.

Each takes a folder with a sound file, and a random generator, and rewrites the file; byte mutations may follow.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ralib.results.checkpoint import Checkpoint, load, save

ODD_NUMBERS = ["0", "-1", "1e999", "nan", "-inf", "<NA>", "None", "1e-300", "99999999999999999999", "00713", "72E45901"]
ODD_NUMBERS += [
    "1e38",
    "-1e38",
    "0x10",
    "1_000",
    "1,5",
    "2147483647",
    "2147483648",
    "''",
    '""',
    "#",
    "'a b'",
    "\ufeff1",
]
ODD_NAMES = ["1@a.mrcs", "a.mrcs", "0@a.mrcs", "9@a.mrcs", "1@", "@", "@a.mrcs", "1@b.mrcs", "-1@a.mrcs", "1@/dev/zero"]
ODD_NAMES += [
    "1@a.mrcs:mrcs",
    "data_x",
    "loop_",
    "_x",
    "1@" + "x" * 300,
    "1@\udcfc.mrcs",
    "1e3@a.mrcs",
    "1@p.star",
    "1@.",
]
LABELS = ["rlnImageName", "rlnDefocusU", "rlnVoltage", "rlnSphericalAberration", "rlnOpticsGroup", "rlnImagePixelSize"]
LABELS += [
    "rlnOriginXAngst",
    "rlnOriginX",
    "rlnAnglePsi",
    "rlnClassNumber",
    "ralibClass",
    "ralibMirror",
    "rlnImageSize",
]
LABELS += ["rlnImageDimensionality", "rlnMagnification", "rlnDetectorPixelSize", "rlnHelicalTubeID", "rlnPhaseShift"]
LABELS += ["rlnCtfDataArePhaseFlipped", "rlnCtfDataAreCtfPremultiplied", "rlnAmplitudeContrast", "rlnMicrographName"]
ODD_FLOATS = [0.0, -1.0, np.nan, np.inf, -np.inf, 1e-300, 1e300, 1e38, 3e5, 10.0, 2.0**31, 2.0**63, -(2.0**63)]
Random = np.random.Generator


def pick(rng: Random, items: list[Any] | tuple[Any, ...]) -> Any:
    return items[int(rng.integers(len(items)))]


def star(path: Path, rng: Random) -> None:
    """Values, labels, rows and blocks of a STAR file."""
    lines = path.read_text(errors="surrogateescape").split("\n")
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(lines)))
        words = lines[at].split()
        kind = int(rng.integers(8))
        if kind <= 2 and words:
            words[int(rng.integers(len(words)))] = pick(rng, ODD_NUMBERS if rng.random() < 0.6 else ODD_NAMES)
            lines[at] = " ".join(words)
        elif kind == 3:
            lines.insert(at, f"_{pick(rng, LABELS)} #1")
        elif kind == 4:
            lines.insert(at, pick(rng, ["data_", "data_optics", "loop_", "# x", "", "data_particles", "_rlnX 5", "'"]))
        elif kind == 5:
            del lines[at]
        elif kind == 6 and lines[at].startswith("_"):
            lines[at] = f"_{pick(rng, LABELS)} #2"
        else:
            lines.insert(at, lines[int(rng.integers(len(lines)))])
    end = pick(rng, ["\n", "\n", "\n", "\r\n", "\r"])
    path.write_text(end.join(lines), errors="surrogateescape", newline="")


def cs(path: Path, rng: Random) -> None:
    """Fields, their types and their values in a .cs file."""
    rows = np.load(path)
    names = list(rows.dtype.names)
    for _ in range(int(rng.integers(1, 4))):
        name, kind = pick(rng, names), int(rng.integers(5))
        if kind == 0 and len(names) > 1:
            names.remove(name)
            rows = rows[names].copy()
        elif kind == 1:
            other = pick(
                rng, ["f4", "f8", "u4", "i8", "S3", "U2", ("f4", (3,)), "u1", "?", "c8", "M8[s]", "V2", ("f4", (0,))]
            )
            described = [(n, other) if n == name else (n, rows.dtype[n]) for n in names]
            new = np.zeros(len(rows), dtype=described)
            for n in names:
                if n != name:
                    new[n] = rows[n]
            rows = new
        elif kind == 2 and rows.dtype[name].base.kind in "fiu":
            with np.errstate(all="ignore"):
                value = np.asarray(pick(rng, ODD_FLOATS)).astype(rows.dtype[name].base)
            rows[name][: int(rng.integers(1, len(rows) + 1))] = value
        elif kind == 3:
            rows = rows[: int(rng.integers(0, len(rows)))] if len(rows) > 1 else rows
            if not len(rows):
                break
        elif rows.dtype[name].kind == "S":
            rows[name][0] = pick(rng, [b"", b"\xff", b">x", b"/dev/zero", b"a.mrcs", b"x" * 200, b"."])
    with path.open("wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(rows), allow_pickle=False)


def hdf(path: Path, rng: Random) -> None:
    """Attributes, datasets, links and layouts of an EMAN2 stack."""
    with h5py.File(path, "r+") as file, contextlib.suppress(KeyError, RuntimeError, ValueError):
        for _ in range(int(rng.integers(1, 4))):
            group = file[f"MDF/images/{int(rng.integers(4))}"] if rng.random() < 0.9 else file["MDF/images"]
            kind = int(rng.integers(9))
            if kind <= 3:
                name = pick(rng, ["xform.align2d", "ctf", "ctf_applied", "apix_x", "assign", "stored_renderbits", "nx"])
                value = pick(
                    rng, [*ODD_FLOATS, "E1.7 0.1", "E" + "nan " * 8, "", b"\xff", np.zeros(0), np.zeros(9), 2**62]
                )
                value = pick(
                    rng, [value, value, np.array([1, 2]), np.zeros((100, 50)), np.array(["x", "y"], dtype="S1")]
                )
                group.attrs[f"EMAN.{name}"] = value
            elif kind == 4 and "image" in group:
                _other_pixels(group, rng)
            elif kind == 5 and "image" in group:
                del group["image"]
            elif kind == 6:
                _link(file, rng)
            elif kind == 7 and group.name != "/MDF/images":
                del file[group.name]
                break
            else:
                file.create_group(f"MDF/images/{pick(rng, ['7', '999999999', '-1', 'x', '00', '٣'])}".rstrip("\0"))
                break


def _other_pixels(group: h5py.Group, rng: Random) -> None:
    del group["image"]
    shape = pick(rng, [(8, 8), (1, 8, 8), (8, 9), (0, 0), (8,), (), (2, 8, 8), (30000, 30000), (40000, 4), (8, 8, 1)])
    dtype = pick(rng, ["f4", "f8", "i2", "u1", ">f4", "f2", "i8", "S4", "c8", "?", [("a", "f4")]])
    big = int(np.prod(shape, dtype=float)) > 10**6
    options: dict[str, Any] = (
        pick(rng, [{}, {"chunks": True, "compression": "gzip"}, {"chunks": True}]) if shape else {}
    )
    if big or 0 in shape:
        options = {"chunks": (64, 4)} if big else {}
    if rng.random() < 0.2 and shape and not options and not big and dtype == "f4":
        group.create_dataset("image", shape, dtype, external=[("/dev/zero", 0, 4096)])
        return
    made = group.create_dataset("image", shape, dtype, **options)
    if rng.random() < 0.5 and not big and shape == (8, 8) and made.dtype.kind in "fiu":
        made[()] = rng.normal(size=shape) * 50


def _link(file: h5py.File, rng: Random) -> None:
    where = pick(rng, ["MDF/images/1/image", "MDF/images/2", "MDF/images", "MDF"])
    if where in file:
        del file[where]
    file[where] = pick(
        rng, [h5py.SoftLink("/MDF/images/0/image"), h5py.SoftLink("/"), h5py.ExternalLink("/dev/zero", "/x")]
    )


def words(path: Path, rng: Random, *, kind: str, first: int, last: int) -> None:
    """Numbers in a binary header of words between two of them: MRC, SPIDER, IMAGIC."""
    raw = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 5))):
        at = 4 * int(rng.integers(first, last))
        with np.errstate(all="ignore"):
            value = np.asarray(pick(rng, [*ODD_FLOATS, 1, 2, 3, 4, 7, 8, 9, 12, 101, 1024, 65535, 20000])).astype(kind)
        raw[at : at + 4] = value.tobytes()
    path.write_bytes(bytes(raw))


def lst(path: Path, rng: Random) -> None:
    """Numbers, names and JSON parts of an EMAN2 list."""
    lines = path.read_text().split("\n")
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(lines)))
        parts = lines[at].split("\t")
        kind = int(rng.integers(5))
        if kind == 0:
            parts[0] = pick(rng, ODD_NUMBERS)
        elif kind == 1 and len(parts) > 1:
            parts[1] = pick(rng, ["b.mrcs", "", "/dev/zero", ".", "a.mrcs ", "a.lst", "x" * 300, "a.mrcs:mrcs"])
        elif kind == 2 and len(parts) > 2:
            parts[2] = pick(rng, ["{", "[]", "1", '{"xform.align2d":1}', '{"class":1e99}', "[" * 500, '{"class":"x"}'])
        elif kind == 3:
            parts = []
        else:
            parts = ["#LSX"]
        lines[at] = "\t".join(parts)
    path.write_text("\n".join(lines))


ODD_VALUES: list[Any] = [
    None, True, [], {}, "x", -1, 0, 1.5, 10**400, "nan", [1, "2"], [1.0], [True], {"a": 1}, [10**400], [0], [5], "1",
]  # fmt: skip


def _odd_place(value: Any, rng: Random) -> tuple[Any, Any]:
    """A table or list somewhere in a JSON value, and one of its keys; deeper places are as likely as higher ones."""
    places = []
    stack = [value]
    while stack:
        part = stack.pop()
        inside = list(part.items()) if isinstance(part, dict) else list(enumerate(part))
        places += [(part, key) for key, _ in inside]
        stack += [child for _, child in inside if isinstance(child, dict | list)]
    return pick(rng, places) if places else (value, None)


def in_json(value: Any, rng: Random, odd: list[Any] = ODD_VALUES) -> None:
    """Replace or remove one to three values of a JSON table, anywhere in it."""
    for _ in range(int(rng.integers(1, 4))):
        where, key = _odd_place(value, rng)
        if key is not None and rng.random() < 0.2:
            del where[key]
        elif key is not None:
            where[key] = copy.deepcopy(pick(rng, odd))  # or one edit would find itself in another


def json_file(path: Path, rng: Random) -> None:
    """Values of a JSON file, of another kind or gone; or its text in another form."""
    value = json.loads(path.read_text())
    in_json(value, rng)
    text = json.dumps(value)
    path.write_text(
        pick(rng, [text, text, text, text.replace("1", "NaN"), "\ufeff" + text, text * 2, f"[{text}]", "[" * 3000])
    )


def numbers_text(path: Path, rng: Random) -> None:
    """Numbers and rows of a table in text."""
    lines = path.read_text().split("\n")
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(lines)))
        values = lines[at].split()
        kind = int(rng.integers(4))
        if kind <= 1 and values:
            values[int(rng.integers(len(values)))] = pick(rng, ODD_NUMBERS)
            lines[at] = " ".join(values)
        elif kind == 2:
            del lines[at]
        else:
            lines.insert(at, pick(rng, ["", "# x", "1", lines[at] + " 7", "1e400"]))
        lines = lines or [""]
    path.write_text("\n".join(lines))


def checkpoint(path: Path, rng: Random) -> None:
    """Arrays and values of a checkpoint, whose digest is right again; or bytes of its archive."""
    saved = load(path)
    assert saved is not None
    arrays, meta = dict(saved.arrays), copy.deepcopy(saved.meta)
    for _ in range(int(rng.integers(1, 4))):
        name, kind = pick(rng, sorted(arrays)), int(rng.integers(5))
        array = np.atleast_1d(arrays[name])
        if kind == 0:
            del arrays[name]
        elif kind == 1:
            with warnings.catch_warnings(action="ignore"), contextlib.suppress(ValueError, OverflowError):  # no number
                arrays[name] = array.astype(pick(rng, ["f4", "f8", "i8", "u1", "?", "S3"]), casting="unsafe")
        elif kind == 2:
            arrays[name] = pick(rng, [array[:-1], array[None], array.ravel(), array[:0], np.zeros(())])
        elif kind == 3 and array.size and array.dtype.kind in "fiub":
            with np.errstate(all="ignore"):
                flat = array.copy().reshape(-1)
                flat[int(rng.integers(len(flat)))] = np.asarray(pick(rng, ODD_FLOATS)).astype(array.dtype)
                arrays[name] = flat.reshape(array.shape)
        else:
            in_json(meta, rng, [v for v in ODD_VALUES if v != 10**400])
        if not arrays:
            break
    save(path.parent, Checkpoint(saved.number, arrays, meta))
    if rng.random() < 0.3:
        payload = bytearray(path.read_bytes().partition(b"\n")[2])
        for _ in range(int(rng.integers(1, 4))):
            payload[int(rng.integers(len(payload)))] = int(rng.integers(256))
        path.write_bytes(hashlib.sha256(payload).hexdigest().encode() + b"\n" + bytes(payload))
