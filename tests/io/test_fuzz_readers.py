"""A few hundred mutated files for each reader; `python -m tests.fuzz.run` reads 30,000 of each."""

from __future__ import annotations

import pytest

from fuzz.readers import READERS, Reader, fuzz


@pytest.mark.parametrize("name", READERS)
def test_readers_mutated_files_are_read_or_refused(name: str) -> None:
    reader = Reader(name, *READERS[name])
    reader.check(reader.seed)
    assert (reader.opened, reader.refused) == (1, 0)
    fuzz(reader, 200)
    assert reader.refused > 20  # the mutations do reach what matters
    reader.close()


def test_readers_harness_can_fail() -> None:
    """A reader that leaks another error, or takes too much memory, is caught."""
    make = READERS["params"][0]

    def wrong(_: object) -> None:
        raise KeyError("x")

    leaking = Reader("leaking", make, wrong)
    with pytest.raises(KeyError):
        leaking.check(b"x")
    hungry = Reader("hungry", make, lambda _: bytearray(5_000_000))
    with pytest.raises(AssertionError, match="bytes of memory"):
        hungry.check(b"x")
    leaking.close()
    hungry.close()
