"""STAR text: the dialects of RELION 1 to 5, exact round trips, junk named by its line, speed."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile

from ralib.io import star
from ralib.types import RalibError

SMALL = """
data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
1 "first group"

data_particles
# a comment
loop_
_rlnImageName #1
_rlnAnglePsi #2
_rlnOpticsGroup
1@a.mrcs\t 12.5\t1

2@a.mrcs   -3   1
# version 30001

data_general
_rlnNote 'two words'   # why not
_rlnBox   64
"""


def test_star_every_dialect_is_read(shared_data: Path) -> None:
    """All files of RELION 1 to 5 agree with the `starfile` package, and go round exactly."""
    files = sorted(shared_data.rglob("*.star"))
    assert len(files) > 10
    for path in files:
        tables = star.read_star(path)
        theirs = starfile.read(path, always_dict=True)
        assert [n for n, t in tables.items() if len(t)] == [n for n, t in theirs.items() if len(t)]
        for name, table in tables.items():
            if isinstance(table, pd.DataFrame):
                expected = theirs[name]
                assert list(table.columns) == list(expected.columns)
                for column in table.columns:
                    if pd.api.types.is_numeric_dtype(table[column]):
                        assert np.array_equal(table[column], expected[column].astype(float), equal_nan=True)
                    else:
                        assert table[column].tolist() == expected[column].astype(str).tolist()
        again = star.parse_star(star.format_star(tables), "again")
        for name, table in tables.items():
            same = table.equals(again[name]) if isinstance(table, pd.DataFrame) else table == again[name]
            assert same, (path, name)


def test_star_comments_tabs_quotes_and_single_values_are_read() -> None:
    tables = star.parse_star(SMALL, "small.star")
    assert list(tables) == ["optics", "particles", "general"]
    particles = tables["particles"]
    assert particles["rlnImageName"].tolist() == ["1@a.mrcs", "2@a.mrcs"]
    assert particles["rlnAnglePsi"].tolist() == [12.5, -3.0]
    assert tables["optics"]["rlnOpticsGroupName"].tolist() == ["first group"]
    assert tables["general"] == {"rlnNote": "two words", "rlnBox": "64"}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("2@a.mrcs   -3   1", "2@a.mrcs   -3", 17),
        ("2@a.mrcs   -3   1", "2@a.mrcs   -3  1 1", 17),
        ("2@a.mrcs   -3   1", "junk", 17),
        ("_rlnBox   64", "rlnBox   64", 22),
        ("_rlnBox   64", "_rlnBox", 22),
        ("_rlnAnglePsi #2", "_rlnImageName #2", 13),
        ("\ndata_optics", "what is this\n\ndata_optics", 1),
        ("data_general", "data_optics", 20),
    ],
)
def test_star_malformed_line_is_named(old: str, new: str, line: int) -> None:
    with pytest.raises(RalibError, match=rf"small.star line {line}:"):
        star.parse_star(SMALL.replace(old, new, 1), "small.star")


def test_star_fast_and_general_paths_agree(shared_data: Path) -> None:
    text = (shared_data / "meta/star31/ioSPI_test.star").read_text()
    quick = star.parse_star(text, "a")["particles"]
    slow = star.parse_star(text.replace("\n 3525.95", "\n# a comment in the rows\n 3525.95"), "b")["particles"]
    assert len(quick) == len(slow) == 452
    for column in quick.columns:
        assert quick[column].tolist() == slow[column].tolist(), column


@pytest.mark.parametrize("value", ["", "two words", "#1", "_x", "data_x", "it's", 'say "so"', "a\nb", "loop_"])
def test_star_awkward_text_round_trips(value: str) -> None:
    tables = {"particles": pd.DataFrame({"rlnImageName": [value, "x"], "rlnA": [1.5, 2.0]})}
    again = star.parse_star(star.format_star(tables), "again")["particles"]
    assert again["rlnImageName"].tolist() == [value.replace("\n", " "), "x"]


def test_star_numbers_round_trip_exactly() -> None:
    values = np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-100, 100)
    whole = np.array([2**64 - 1, 2**63, 5], dtype=np.uint64).repeat([1, 1, 198])
    columns = {"rlnA": values, "rlnB": whole, "rlnC": [np.nan, np.inf, *range(198)], "rlnD": values > 0}
    again = star.parse_star(star.format_star({"t": pd.DataFrame(columns)}), "again")["t"]
    assert np.array_equal(again["rlnA"], values)
    assert np.array_equal(again["rlnB"].astype(np.uint64), whole)
    assert np.isnan(again["rlnC"][0])
    assert np.isinf(again["rlnC"][1])
    assert again["rlnD"].tolist() == [int(v > 0) for v in values]


def test_star_hundred_thousand_rows_are_fast(tmp_path: Path) -> None:
    """A million rows open in seconds: here a tenth of them, in time of this process."""
    n = 100_000
    rng = np.random.default_rng(0)
    table = pd.DataFrame({f"rlnColumn{i}": rng.normal(size=n).round(6) for i in range(10)})
    table["rlnImageName"] = [f"{i % 100 + 1:06d}@Extract/job007/mic{i // 100:05d}.mrcs" for i in range(n)]
    star.write_star(tmp_path / "big.star", {"particles": table})
    start = time.process_time()
    again = star.read_star(tmp_path / "big.star")["particles"]
    assert time.process_time() - start < 5
    assert again["rlnColumn3"].equals(table["rlnColumn3"])


TEXTS = {
    "hash": ["72E45901", "72345901", "7234590E"],
    "wrpSourceHash": ["72E45901", "12E45901", "72345901"],
    "id": ["00713", "00714", "00013"],
    "session": ["250531_1", "250531_2", "250601_1"],
    "date": ["2025-05-31", "20250531", "2025.10"],
    "version": ["1.10", "1.9", "3.0"],
    "rlnSomeHash": ["72E45901", "1E400", "5"],
    "rlnTomoSerial": ["00713", "1", "2"],
}


@pytest.mark.parametrize("extra", ["", "# a comment\n", "1@d.mrcs 'a' b c d e f g 0001\n"])
def test_star_text_that_looks_like_numbers_round_trips(extra: str) -> None:
    names = ["rlnImageName", *TEXTS]
    rows = "".join(f"{i}@a.mrcs {' '.join(TEXTS[n][i] for n in TEXTS)}\n" for i in range(3))
    text = "data_particles\n\nloop_\n" + "".join(f"_{n}\n" for n in names) + rows + extra
    table = star.parse_star(text, "a")["particles"]
    again = star.parse_star(star.format_star({"particles": table}), "b")["particles"]
    for name, values in TEXTS.items():
        assert table[name].tolist()[:3] == again[name].tolist()[:3] == values


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"])
def test_star_byte_order_mark_is_removed(mark: bytes, tmp_path: Path) -> None:
    encoding = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}[mark]
    (tmp_path / "a.star").write_bytes(mark + SMALL.encode(encoding))
    assert list(star.read_star(tmp_path / "a.star")) == ["optics", "particles", "general"]


def test_star_rows_that_begin_like_a_block_or_a_label_are_rows() -> None:
    head = "data_particles\n\nloop_\n_rlnMicrographName #1\n_rlnAnglePsi #2\n"
    table = star.parse_star(head + "data_2021/m0.mrc 1\n_tilt/m1.mrc 2\ndata_x 3\n", "a")["particles"]
    assert table["rlnMicrographName"].tolist() == ["data_2021/m0.mrc", "_tilt/m1.mrc", "data_x"]
    assert table["rlnAnglePsi"].tolist() == [1, 2, 3]
    two = star.parse_star(head + "m.mrc 1\ndata_more # a remark\n_rlnBox 5\n", "b")
    assert two["more"] == {"rlnBox": "5"}


def test_star_open_quote_swallows_no_rows() -> None:
    head = "data_particles\n\nloop_\n_rlnImageName\n_rlnAnglePsi\n"
    table = star.parse_star(head + '"a@m 1\nb@m 2\n"c@m 3\n', "a")["particles"]
    assert table["rlnAnglePsi"].tolist() == [1, 2, 3]


def test_star_names_in_latin_1_keep_their_bytes(tmp_path: Path) -> None:
    raw = SMALL.encode().replace(b"1@a.mrcs", b"1@\xfc.mrcs")
    (tmp_path / "a.star").write_bytes(raw)
    star.write_star(tmp_path / "b.star", star.read_star(tmp_path / "a.star"))
    assert b"1@\xfc.mrcs" in (tmp_path / "b.star").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "data_\n\nloop_\n_rlnImageName\n1@p.mrcs\n" + "#\n" * 400_000,
        "data_\n\nloop_\n_rlnImageName\n" + "#\n1@p.mrcs\n" * 100_000,
        "data_\n\nloop_\n_rlnImageName\n_x\n"
        + "1@p#1.mrcs 5\n" * 60_000
        + "1@p.mrcs '5'\n"
        + "2@p.mrcs 5 # x\n" * 60_000,
        "data_\n\nloop_\n" + "".join(f"_c{i}\n" for i in range(9_000)) + "1 " * 9_000 + "\n",
        "data_\n" + "".join(f"_c{i} 1\n" for i in range(100_000)),
        "data_\n\nloop_\n_rlnImageName\n" + "' " * 200_000 + "\n",
        "".join(f"data_{i}\n" for i in range(50_000)),
    ],
    ids=["comments", "comments between", "slow rows", "columns", "values", "quotes", "blocks"],
)
def test_star_reading_time_is_linear_in_the_length(text: str) -> None:
    start = time.process_time()
    with contextlib.suppress(RalibError):  # two of them are none: what counts is the time
        star.parse_star(text, "a")
    assert time.process_time() - start < 5


def test_star_too_many_columns_are_refused_in_one_line() -> None:
    text = "data_\n\nloop_\n" + "".join(f"_c{i}\n" for i in range(100_000)) + "1 " * 100_000 + "\n"
    start = time.process_time()
    with pytest.raises(RalibError, match="100000 columns"):
        star.parse_star(text, "a")
    assert time.process_time() - start < 5


def test_format_star_many_rows_at_a_time_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i:06d}@{'long/' * (i % 7)}stack.mrcs" for i in range(1, 24)]
    table = pd.DataFrame({"rlnImageName": names, "rlnDefocusU": np.linspace(1, 2, 23), "rlnClassNumber": range(23)})
    whole = star.format_star({"particles": table})
    monkeypatch.setattr(star, "AT_ONCE", 5)
    parts = star.format_star({"particles": table})
    assert [line.split() for line in parts.splitlines()] == [line.split() for line in whole.splitlines()]
    pd.testing.assert_frame_equal(
        star.parse_star(parts, "parts")["particles"], star.parse_star(whole, "whole")["particles"]
    )
