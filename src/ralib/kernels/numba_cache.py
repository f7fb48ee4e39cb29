"""Numba's cache of compiled functions, with a digest: damaged files are compiled anew, and a full disk is no error.

Numba itself trusts its files: a truncated one ends the program, a changed one can crash it.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from typing import Any, TypeVar

from numba.core.caching import FunctionCache, IndexDataCacheFile

F = TypeVar("F")
_DIGEST_BYTES = hashlib.sha256().digest_size
_log = logging.getLogger("ralib")


def kept(function: F) -> F:
    """A decorator above `numba.njit`, in the place of its option `cache`: keep what is compiled for the next run."""
    dispatcher: Any = function
    try:
        dispatcher._cache = _CheckedCache(dispatcher.py_func)
    except RuntimeError as error:  # there is no writable folder
        _log.warning("ralib: compiled kernels are not kept: %s", " ".join(str(error).split()))
    return function


class _CheckedFile(IndexDataCacheFile):
    """The files of one function."""

    def _load_index(self) -> dict[Any, str]:
        try:
            found = super()._load_index()
        except Exception:  # a pickle of damaged bytes raises anything
            return {}
        return found if isinstance(found, dict) else {}

    def _load_data(self, name: str) -> Any:
        with open(self._data_path(name), "rb") as file:
            digest, data = file.read(_DIGEST_BYTES), file.read()
        if hashlib.sha256(data).digest() != digest:
            raise FileNotFoundError(name)  # Numba compiles it anew
        return pickle.loads(data)

    def _save_data(self, name: str, data: Any) -> None:
        packed = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(packed).digest() + packed)


class _CheckedCache(FunctionCache):
    """The cache of one function; if its files cannot be read or written, the function is compiled."""

    warned = False

    def __init__(self, py_func: Any) -> None:
        super().__init__(py_func)
        locator = self._impl.locator
        self._cache_file = _CheckedFile(self._cache_path, self._impl.filename_base, locator.get_source_stamp())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # of another build of Numba or LLVM than it says
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            if not _CheckedCache.warned:
                _log.warning("ralib: compiled kernels are not kept in %s: %s", self._cache_path, error.strerror)
            _CheckedCache.warned = True
