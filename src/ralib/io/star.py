"""Reader and writer of STAR text: a loop is a DataFrame, a block of single values a dict of text; order is kept.

The dialects of RELION 1 to 5, cryoSPARC, Warp and others: blocks in any order, comments, tabs, quoted values, column
numbers or none after the names. Malformed text is an error that names its line.

The package has its own parser, although `starfile` (our tests' oracle) and gemmi read STAR files too: a particle file
with a wrong row must be refused with the line of that row, labels of other programs must come back letter by letter (a
hash 72E45901 is no number), and the time must be linear in the length of the file whatever it holds. `starfile` turns
every column that looks like numbers into numbers, and gemmi's CIF grammar refuses lines that RELION writes and reads.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ralib.io import text_table
from ralib.io.atomic import PathLike, write_text
from ralib.io.text import ERRORS, read_text, shown
from ralib.types import RalibError

Table = pd.DataFrame | dict[str, str]
MAX_COLUMNS = 10_000
AT_ONCE = 2**16
"""Rows that are formatted at once: a column is as wide as its longest value among them."""
LONG = 1000
"""Rows from which on it pays to look for what recurs in a column."""
_BLOCK = re.compile(
    r"^[ \t]*data_([^\s/]*)[ \t]*(?:#[^\n]*)?(?:\n|\Z)", re.MULTILINE
)  # a name with / is a path: a value
_COMMENT_LINES = re.compile(r"^[ \t]*#[^\n]*$", re.MULTILINE)
_QUOTED_TOKEN = re.compile(r"""(?:^|\s)['"]""", re.MULTILINE)
_COMMENT_TOKEN = re.compile(r"(?:^|\s)#", re.MULTILINE)
_TOKEN = re.compile(r"""'([^'\n]*)'(?=[ \t]|$)|"([^"\n]*)"(?=[ \t]|$)|([^ \t\f\v]+)""")
_WORD = re.compile(r"[^ \t\f\v]+")
_PLAIN = re.compile(r"""[^\s"'#_\0][^\s\0]*""")
_OWN_LABEL = re.compile(r"(?:rln|ralib|cs/)")
_TEXT_LABEL = re.compile(r"(name|path|file|label)$", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?|[+-]?(?:nan|NaN|inf|Inf)|<NA>")
_LEADING_ZERO = re.compile(r"[+-]?0\d")
_ROWS_WITH_LEADING_ZERO = re.compile(r"0(?<![^ \t\n+\-]0)\d[^\s@]*(?=\s|\Z)")  # the literal first: it is searched fast
_EXTRA = "\0"  # no column can have this name
_EXACT: dict[str, Any] = {} if int(pd.__version__.split(".")[0]) >= 3 else {"float_precision": "round_trip"}
_NAN = ["nan", "-nan", "NaN", "<NA>"]


def read_star(path: PathLike) -> dict[str, Table]:
    """Read all blocks of a STAR file by name (without `data_`), in their order.

    Columns of RELION and of this package (labels `rln...`, `ralib...`) that hold numbers become numbers; names, and all
    columns of other programs, stay text.

    Parameters
    ----------
    path : PathLike
        The file.

    Returns
    -------
    dict
        Tables by block name.

    Raises
    ------
    RalibError
        With the line of malformed text.
    """
    path = Path(path)
    return parse_star(read_text(path, "STAR file"), str(path))


def parse_star(text: str, where: str) -> dict[str, Table]:
    """Parse STAR text.

    Parameters
    ----------
    text : str
        The text.
    where : str
        Its origin, for errors.

    Returns
    -------
    dict
        Tables by block name.

    Raises
    ------
    RalibError
        With the line of malformed text.
    """
    heads = list(_BLOCK.finditer(text))
    if not heads:
        raise RalibError(f"{where} is no STAR file: it has no line beginning with data_")
    _no_junk(text[: heads[0].start()], where, 1)
    tables: dict[str, Table] = {}
    line = 1 + text.count("\n", 0, heads[0].start())
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        body = text[head.end() : following.start() if following else len(text)]
        if head[1] in tables:
            raise RalibError(f"{where} line {line}: a second block data_{head[1]}; rename or remove one of the two")
        line += head[0].count("\n")
        tables[head[1]] = _parse_block(body, where, line)
        line += body.count("\n")
    return tables


def one_row(block: Mapping[str, str]) -> pd.DataFrame:
    """Return a block of single values as the table of one row."""
    return pd.DataFrame({name: _typed(name, [value]) for name, value in block.items()})


def _no_junk(text: str, where: str, line: int) -> None:
    for number, content in enumerate(text.split("\n"), line):
        if content.strip() and not content.lstrip().startswith("#"):
            raise RalibError(f"{where} line {number}: {shown(content)} stands outside any table; remove it")


def _parse_block(body: str, where: str, line: int) -> Table:
    """Parse one block: `loop_`, names and rows, or lines of name and value; `line` is the number of its first line."""
    pairs: dict[str, str] = {}
    position = 0
    while position < len(body):
        end = body.find("\n", position)
        end = len(body) if end < 0 else end
        content = body[position:end].strip()
        position = end + 1
        if content == "loop_" or content.startswith(("loop_ ", "loop_\t", "loop_#")):
            if pairs:
                raise RalibError(
                    f"{where} line {line}: a loop_ after single values in one block; give it its own data_"
                )
            return _parse_loop(body, position, where, line + 1)
        if content and not content.startswith("#"):
            name, value = _parse_pair(content, where, line)
            if name in pairs:
                raise RalibError(f"{where} line {line}: the value _{name} is there twice; remove one")
            pairs[name] = value
        line += 1
    return pairs


def _parse_pair(content: str, where: str, line: int) -> tuple[str, str]:
    tokens = _tokens(content)
    named = bool(tokens) and tokens[0].startswith("_") and _is_unicode(tokens[0])
    if len(tokens) < 2 or not named or (len(tokens) > 2 and not tokens[2].startswith("#")):
        raise RalibError(f"{where} line {line}: {shown(content)} is neither a comment nor '_name value'; correct it")
    return tokens[0][1:], tokens[1]


def _parse_loop(body: str, position: int, where: str, line: int) -> pd.DataFrame:
    names: dict[str, None] = {}
    while position < len(body):
        end = body.find("\n", position)
        end = len(body) if end < 0 else end
        content = body[position:end].strip()
        words = _WORD.findall(content) if content.startswith("_") else []
        if words and (len(words) == 1 or words[1].startswith("#") or not names):
            if not _is_unicode(words[0]):
                raise RalibError(f"{where} line {line}: the column {shown(words[0])} is no text; the file is damaged")
            if words[0][1:] in names:
                raise RalibError(f"{where} line {line}: the column {words[0]} is there twice; remove one")
            names[words[0][1:]] = None
        elif content and not content.startswith("#"):
            break
        position, line = end + 1, line + 1
    if not names:
        raise RalibError(f"{where} line {line}: a loop_ without column names; the file is damaged")
    if len(names) > MAX_COLUMNS:
        raise RalibError(f"{where} line {line}: a table of {len(names)} columns; at most {MAX_COLUMNS} are read")
    return _parse_rows(body[position:], list(names), where, line)


def _parse_rows(rows: str, names: list[str], where: str, line: int) -> pd.DataFrame:
    """Parse the rows of a loop.

    The fast parser reads one column too many, so that a wrong row shows as a value there or as a gap in the last proper
    column; only then are the lines parsed one by one.
    """
    quick = (_COMMENT_LINES.sub("", rows) if "#" in rows else rows).rstrip()
    if not quick:
        return pd.DataFrame(columns=names, dtype=object)
    quoted = ("'" in quick or '"' in quick) and _QUOTED_TOKEN.search(quick)
    if quoted or ("#" in quick and _COMMENT_TOKEN.search(quick)) or not _is_unicode(quick):
        return _parse_rows_slowly(rows, names, where, line)
    exact = _ROWS_WITH_LEADING_ZERO.search(quick) is not None  # 00713 is no number
    table = _parse_quickly(quick, names, [n for n in names if exact or not _may_be_numbers(n)])
    if table is None:
        return _parse_rows_slowly(rows, names, where, line)
    overflown = [n for n in names if table[n].dtype.kind == "f" and np.isinf(table[n].to_numpy()).any()]
    if overflown:  # 72E45901 is no number, either
        table = _parse_quickly(quick, names, [n for n in names if exact or n in overflown or not _may_be_numbers(n)])
        assert table is not None
    for name in names if exact else overflown:
        if _may_be_numbers(name):
            table[name] = _typed(name, table[name].tolist())
    return table


def _parse_quickly(rows: str, names: list[str], text: list[str]) -> pd.DataFrame | None:
    """The rows by pandas' parser, the columns `text` as text; None where a row has too few or too many values."""
    as_text = set(text)
    missing = {n: _NAN for n in names if n not in as_text} | {_EXTRA: [""]}
    options: dict[str, Any] = {
        "dtype": dict.fromkeys(text, str), "keep_default_na": False, "na_values": missing, "low_memory": False,
        "quoting": csv.QUOTE_NONE, "encoding_errors": ERRORS, **_EXACT,
    }  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.BytesIO(rows.encode("utf-8", ERRORS)), sep=r"\s+", header=None, names=[*names, _EXTRA],
                index_col=False, **options,
            )  # fmt: skip
    except (ValueError, OverflowError, pd.errors.ParserWarning):  # pandas' ParserError is a ValueError
        return None
    last = table[names[-1]]
    short = last.isna().any() or (not pd.api.types.is_numeric_dtype(last) and (last == "").any())
    if short or table.pop(_EXTRA).notna().any():
        return None
    return table


def _parse_rows_slowly(rows: str, names: list[str], where: str, line: int) -> pd.DataFrame:
    """Row by row, for quotes and comments among the rows, and to name the line of a wrong row."""
    values: list[list[str]] = []
    for number, content in enumerate(rows.split("\n"), line):
        tokens = [] if content.lstrip().startswith("#") else _tokens(content)
        if len(tokens) > len(names) and tokens[len(names)].startswith("#"):
            tokens = tokens[: len(names)]
        if not tokens:
            continue
        if len(tokens) != len(names):
            raise RalibError(
                f"{where} line {number}: {len(tokens)} values where the table has {len(names)} columns "
                f"({shown(content)}); correct or remove that line"
                + (", or quote names that hold blanks" if len(tokens) > len(names) else "")
            )
        values.append(tokens)
    columns = zip(*values, strict=True) if values else [()] * len(names)
    return pd.DataFrame({name: _typed(name, list(column)) for name, column in zip(names, columns, strict=True)})


def _may_be_numbers(label: str) -> bool:
    return _OWN_LABEL.match(label) is not None and _TEXT_LABEL.search(label) is None


def _typed(label: str, values: list[Any]) -> pd.Series:
    """A column as numbers where it is one of ours and holds nothing else, else as the text it is."""
    series = text_column(values)
    if not _may_be_numbers(label) or not all(_NUMBER.fullmatch(v) and not _LEADING_ZERO.match(v) for v in values):
        return series
    for kind in (np.int64, np.uint64, np.float64):
        try:
            numbers = np.array([np.nan if v == "<NA>" else v for v in values], dtype=object).astype(kind)
        except (ValueError, OverflowError, TypeError):
            continue
        overflown = kind is np.float64 and any("n" not in v.lower() for v in np.array(values)[np.isinf(numbers)])
        return series if overflown else pd.Series(numbers)
    return series


def text_column(values: list[str]) -> pd.Series:
    """Return a column of text; pandas' own text type cannot hold names that are not UTF-8."""
    return pd.Series(values, dtype=str if all(map(_is_unicode, values)) else object)


def _is_unicode(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _tokens(content: str) -> list[str]:
    """The values of one line."""
    if "'" not in content and '"' not in content:
        return _WORD.findall(content)
    return [a or b or c for a, b, c in _TOKEN.findall(content)]


def write_star(path: PathLike, tables: Mapping[str, Table]) -> None:
    """Write blocks in order, complete or not at all; numbers are written so that they read back exactly.

    Parameters
    ----------
    path : PathLike
        The file.
    tables : mapping
        Tables by block name.
    """
    write_text(path, format_star(tables))


def format_star(tables: Mapping[str, Table]) -> str:
    """Return STAR text as RELION 3.1 and later write it."""
    return "".join(_format_block(name, table) for name, table in tables.items())


def _format_block(name: str, table: Table) -> str:
    head = f"\n# version 30001\n\ndata_{name}\n\n"
    if isinstance(table, dict):
        width = max((len(k) for k in table), default=0) + 1
        return head + "".join(f"_{k:<{width}} {_quoted(str(v)):>20}\n" for k, v in table.items()) + " \n"
    names = "".join(f"_{column} #{i} \n" for i, column in enumerate(table.columns, 1))
    parts = (table.iloc[first : first + AT_ONCE] for first in range(0, len(table), AT_ONCE))
    rows = (text_table.rows([_format_column(part[column]) for column in part.columns]) for part in parts)
    return f"{head}loop_ \n{names}{''.join(rows)} \n"


def _format_column(column: pd.Series) -> np.ndarray:
    """Bytes (n, w) of a column. Six decimals, as RELION writes, where they say it all, else as many as a number has."""
    values = column.to_numpy()
    if values.dtype.kind in "bi":
        return text_table.integers(values)
    if values.dtype.kind == "f" and text_table.has_six_decimals(values := values.astype(np.float64)):
        return text_table.decimals(values)
    if len(column) >= LONG and pd.api.types.infer_dtype(column, skipna=False) in ("string", "floating"):
        code, distinct = pd.factorize(column, use_na_sentinel=False)
        if 4 * len(distinct) <= len(column) and not _has_negative_zero(values):  # it would recur as 0.0
            return text_table.texts(list(map(_text, distinct.tolist())))[code]
    return text_table.texts(list(map(_text, values.tolist())))


def _has_negative_zero(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" and bool(((values == 0) & np.signbit(values)).any())


def _text(value: object) -> str:
    return _quoted(value) if isinstance(value, str) else str(value)


def unwritable(value: str) -> bool:
    """Return whether text cannot be a value of a STAR file: line breaks, or both kinds of quotes around blanks."""
    return any(c in value for c in "\n\r\0") or ('"' in value and "'" in value and not _PLAIN.fullmatch(value))


def _quoted(value: str) -> str:
    """Return text as one token, quoted where it is empty, has blanks, or would be read as a comment or a keyword."""
    if _PLAIN.fullmatch(value) and not value.startswith(("data_", "loop_")):
        return value
    value = re.sub(r"[\r\n\0]", " ", value)
    return f"'{value}'" if '"' in value else f'"{value}"'
