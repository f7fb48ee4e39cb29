"""Text files of every origin: byte order marks, line ends of three systems, names that are not UTF-8.

Bytes that are not UTF-8 (a name in Latin-1) become lone surrogates (PEP 383), as in Python's own file names, and are
written back as the same bytes.
"""

from __future__ import annotations

import codecs
import warnings
from pathlib import Path

import numpy as np

from ralib.types import RalibError

ERRORS = "surrogateescape"
_UNPACK = "unpack it first"
_PACKED = {
    b"\x1f\x8b": f"it is compressed by gzip: {_UNPACK}",
    b"BZh": f"it is compressed by bzip2: {_UNPACK}",
    b"\xfd7zXZ": f"it is compressed by xz: {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"it is compressed by zstd: {_UNPACK}",
    b"PK\x03\x04": f"it is a zip archive: {_UNPACK}",
    b"version https://git-lfs": "it is a pointer of Git LFS: fetch the file itself ('git lfs pull')",
    b"<!DOCTYPE": "it is a page of the web: download the file itself",
    b"<html": "it is a page of the web: download the file itself",
}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def packed(raw: bytes) -> str:
    """Return what a file is by its first bytes, where that is none of its own kind: compressed, or a mere pointer.

    Parameters
    ----------
    raw : bytes
        First bytes of the file.

    Returns
    -------
    str
        What it is and what to do; '' where nothing is known of it.
    """
    return next((what for start, what in _PACKED.items() if raw.startswith(start)), "")


def read_text(path: Path, kind: str) -> str:
    """Read a file, with newlines as line ends and without byte order marks.

    Parameters
    ----------
    path : Path
        The file.
    kind : str
        Its kind, for errors.

    Returns
    -------
    str
        The text.

    Raises
    ------
    RalibError
        If it cannot be read or holds binary data.
    """
    try:
        if not path.is_file():  # a named pipe would wait for ever
            raise RalibError(f"cannot read {path}: {'it is no ordinary file' if path.exists() else 'no such file'}")
        raw = path.read_bytes()
    except OSError as error:
        raise RalibError(f"cannot read {path}: {error.strerror}") from error
    return decode(raw, f"{path} is no {kind}")


def decode(raw: bytes, refusal: str) -> str:
    """Decode text as `read_text` does.

    Parameters
    ----------
    raw : bytes
        Bytes.
    refusal : str
        Beginning of the error.

    Returns
    -------
    str
        The text.

    Raises
    ------
    RalibError
        If it is binary data.
    """
    if raw.startswith(_UTF16):
        try:
            text = raw.decode("utf-16")
        except UnicodeDecodeError as error:
            raise RalibError(f"{refusal}: it begins like UTF-16 text, but is none") from error
    else:
        text = raw.decode("utf-8", errors=ERRORS)
    if "\0" in text or packed(raw):
        raise RalibError(f"{refusal}: {packed(raw) or 'it holds binary data'}")
    if "\ufeff" in text:
        text = text.replace("\ufeff", "")  # also within: files were joined
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def shown(content: str, longest: int = 60) -> str:
    """Return a piece of a file for an error: quoted, in one line.

    Parameters
    ----------
    content : str
        The piece.
    longest : int, default 60
        Characters at most.

    Returns
    -------
    str
        The quotation.
    """
    return repr(content.strip()[:longest])


def read_numbers(path: Path, kind: str) -> np.ndarray:
    """Read a table of numbers with blanks between them and comments after #.

    Parameters
    ----------
    path : Path
        The file.
    kind : str
        Its kind, for errors.

    Returns
    -------
    ndarray of shape (rows, columns)
        Numbers, float64.

    Raises
    ------
    RalibError
        If it is not such a table.
    """
    text = read_text(path, kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an empty table is a warning of numpy's
            return np.loadtxt(text.split("\n"), ndmin=2)
    except (ValueError, UserWarning, OverflowError) as error:
        raise RalibError(f"{path} is no {kind}: {' '.join(str(error).split())[:120]}") from error
