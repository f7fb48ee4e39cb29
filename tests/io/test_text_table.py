"""Columns of bytes are what Python's own formatting makes of each number."""

from __future__ import annotations

import numpy as np
import pytest

from ralib.io import text_table


def lines(column: np.ndarray) -> list[str]:
    return text_table.rows([column]).split("\n")[:-1]


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 180.0, 1e5, 9e8])
def test_decimals_are_those_of_python(scale: float) -> None:
    values = np.round(np.random.default_rng(1).uniform(-scale, scale, 2000), 6)
    values[:6] = 0.0, -0.0, 1e-6, -1e-6, 0.999999, -1.0
    assert text_table.has_six_decimals(values)
    expected = [f"{v:12.6f}" for v in values]
    width = max(map(len, expected))
    assert lines(text_table.decimals(values)) == [text.rjust(width) for text in expected]


@pytest.mark.parametrize("values", [[0.1234567], [1e9], [np.nan], [-np.inf], [1.0, 1 / 3]])
def test_decimals_refuse_what_six_do_not_say(values: list[float]) -> None:
    assert not text_table.has_six_decimals(np.array(values))


def test_rounded_formats_whatever_there_is() -> None:
    values = np.array([1 / 3, -2e-7, 4.0, 123.4567891])
    assert [float(line) for line in lines(text_table.rounded(values))] == [0.333333, 0.0, 4.0, 123.456789]
    assert lines(text_table.rounded(np.array([1 / 3, np.nan, 2e9]))) == [
        "0.333333         ",
        "nan              ",
        "2000000000.000000",
    ]


@pytest.mark.parametrize("most", [1, 10, 2**31, 2**62])
@pytest.mark.parametrize("width", [1, 12])
def test_integers_are_those_of_python(most: int, width: int) -> None:
    values = np.random.default_rng(2).integers(-most, most, 500)
    expected = [f"{v:{width}d}" for v in values]
    assert lines(text_table.integers(values, width)) == [text.rjust(max(map(len, expected))) for text in expected]


def test_integers_booleans_count() -> None:
    assert lines(text_table.integers(np.array([True, False]), width=1)) == ["1", "0"]


def test_rows_text_of_any_letters_comes_back() -> None:
    names = ["a", "Ångström", "\udcff", ""]
    text = text_table.rows([text_table.texts(names), text_table.integers(np.arange(4), width=1)])
    assert [line.rsplit(maxsplit=1) for line in text.split("\n")[:-1]] == [
        ["a", "0"],
        ["Ångström", "1"],
        ["\udcff", "2"],
        ["3"],
    ]


def test_rows_nothing_is_no_text() -> None:
    assert text_table.rows([]) == ""
    assert text_table.rows([text_table.texts([]), text_table.decimals(np.empty(0))]) == ""
