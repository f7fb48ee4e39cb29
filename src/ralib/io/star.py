"""STAR text <-> tables. A loop is a pandas DataFrame, a block of single values a dict of text; order is kept.

The dialects of RELION 1 to 5, cryoSPARC, Warp and friends: blocks in any order, comments, tabs, quoted
values, column numbers or none after the names. Junk is an error that names its line.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ralib.io.atomic import PathLike, write_text
from ralib.types import RalibError

Table = pd.DataFrame | dict[str, str]
_BLOCK = re.compile(r"^[ \t]*data_(\S*)[^\n]*\n?", re.MULTILINE)
_SINGLE_QUOTED = re.compile(r"(?:^|\s)'", re.MULTILINE)
_TOKEN = re.compile(r"""'([^']*)'(?=\s|$)|"([^"]*)"(?=\s|$)|(\S+)""")
_TEXT_COLUMN = re.compile(r"(name|path|file|label)$", re.IGNORECASE)
_PLAIN = re.compile(r"""[^\s"'#_\0][^\s\0]*""")
_EXTRA = "\0"  # no column can have this name
_EXACT: dict[str, Any] = {} if int(pd.__version__.split(".")[0]) >= 3 else {"float_precision": "round_trip"}
_NAN = ["nan", "-nan", "NaN", "<NA>"]


def read_star(path: PathLike) -> dict[str, Table]:
    """All blocks of a STAR file by name (without `data_`), in their order.

    Numbers become numbers, columns of names and paths stay text. Raises RalibError naming the line of any
    junk.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RalibError(f"cannot read {path}: {error.strerror}") from error
    if b"\0" in raw:
        raise RalibError(f"{path} is no STAR file: it holds binary data")
    text = raw.decode("utf-8", errors="replace")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return parse_star(text, str(path))


def parse_star(text: str, where: str) -> dict[str, Table]:
    """The blocks of STAR `text`; `where` names it in errors."""
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


def _no_junk(text: str, where: str, line: int) -> None:
    for number, content in enumerate(text.split("\n"), line):
        if content.strip() and not content.lstrip().startswith("#"):
            raise RalibError(f"{where} line {number}: {_shown(content)} stands outside any table; remove it")


def _parse_block(body: str, where: str, line: int) -> Table:
    """One block: `loop_` then names then rows, or lines of name and value. `line` is the number of its first
    line."""
    pairs: dict[str, str] = {}
    position = 0
    while position < len(body):
        end = body.find("\n", position)
        end = len(body) if end < 0 else end
        content = body[position:end].strip()
        position = end + 1
        if content == "loop_" or content.startswith("loop_ "):
            if pairs:
                raise RalibError(
                    f"{where} line {line}: a loop_ after single values in one block; give it its own data_"
                )
            return _parse_loop(body, position, where, line + 1)
        if content and not content.startswith("#"):
            name, value = _parse_pair(content, where, line)
            pairs[name] = value
        line += 1
    return pairs


def _parse_pair(content: str, where: str, line: int) -> tuple[str, str]:
    tokens = _tokens(content)
    if len(tokens) < 2 or not tokens[0].startswith("_") or (len(tokens) > 2 and not tokens[2].startswith("#")):
        raise RalibError(f"{where} line {line}: {_shown(content)} is neither a comment nor '_name value'; correct it")
    return tokens[0][1:], tokens[1]


def _parse_loop(body: str, position: int, where: str, line: int) -> pd.DataFrame:
    names: list[str] = []
    while position < len(body):
        end = body.find("\n", position)
        end = len(body) if end < 0 else end
        content = body[position:end].strip()
        if content.startswith("_"):
            names.append(content.split()[0][1:])
            if names[-1] in names[:-1]:
                raise RalibError(f"{where} line {line}: the column _{names[-1]} is there twice; remove one")
        elif content and not content.startswith("#"):
            break
        position, line = end + 1, line + 1
    if not names:
        raise RalibError(f"{where} line {line}: a loop_ without column names; the file is damaged")
    return _parse_rows(body[position:], names, where, line)


def _parse_rows(rows: str, names: list[str], where: str, line: int) -> pd.DataFrame:
    """The rows of a loop. The quick parser is asked for one column too many, so that a wrong row shows as a
    value there or as a gap in the last proper column; only then are the lines counted one by one."""
    rows = _without_last_comments(rows)
    if not rows:
        return pd.DataFrame(columns=names, dtype=object)
    if "#" in rows or ("'" in rows and _SINGLE_QUOTED.search(rows)):
        return _parse_rows_slowly(rows, names, where, line)
    text = {n: str for n in names if _TEXT_COLUMN.search(n)}
    missing = {n: _NAN for n in names if n not in text} | {_EXTRA: [""]}
    options = {"dtype": text, "keep_default_na": False, "na_values": missing, "low_memory": False, **_EXACT}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.BytesIO(rows.encode()), sep=r"\s+", header=None, names=[*names, _EXTRA], index_col=False, **options
            )
    except (ValueError, OverflowError, pd.errors.ParserWarning):  # pandas' ParserError is a ValueError
        return _parse_rows_slowly(rows, names, where, line)
    last = table[names[-1]]
    short = last.isna().any() or (not pd.api.types.is_numeric_dtype(last) and (last == "").any())
    if short or table.pop(_EXTRA).notna().any():
        return _parse_rows_slowly(rows, names, where, line)
    return table


def _without_last_comments(rows: str) -> str:
    """The comment before the next block is not one among the rows."""
    rows = rows.rstrip()
    while (last := rows[rows.rfind("\n") + 1 :].lstrip()).startswith("#"):
        rows = rows[: len(rows) - len(last)].rstrip()
    return rows


def _parse_rows_slowly(rows: str, names: list[str], where: str, line: int) -> pd.DataFrame:
    """Row by row, for single quotes and comments among the rows, and to name the line of a wrong row."""
    values: list[list[str]] = []
    for number, content in enumerate(rows.split("\n"), line):
        tokens = _tokens(content) if content.strip() and not content.lstrip().startswith("#") else []
        if len(tokens) > len(names) and tokens[len(names)].startswith("#"):
            tokens = tokens[: len(names)]
        if not tokens:
            continue
        if len(tokens) != len(names):
            raise RalibError(
                f"{where} line {number}: {len(tokens)} values where the table has {len(names)} columns "
                f"({_shown(content)}); correct or remove that line"
            )
        values.append(tokens)
    columns = {n: _as_numbers(n, [row[i] for row in values]) for i, n in enumerate(names)}
    return pd.DataFrame(columns)


def _as_numbers(name: str, values: list[str]) -> pd.Series:
    series = pd.Series(values)
    if _TEXT_COLUMN.search(name):
        return series
    for kind in (np.int64, np.uint64, np.float64):
        try:
            return pd.Series(np.array(values, dtype=object).astype(kind))
        except (ValueError, OverflowError, TypeError):
            continue
    return series


def _tokens(content: str) -> list[str]:
    return [a or b or c for a, b, c in _TOKEN.findall(content)]


def _shown(content: str) -> str:
    return repr(content.strip()[:60])


def write_star(path: PathLike, tables: Mapping[str, Table]) -> None:
    """Write the blocks in order, whole or not at all. Numbers are written so that they read back exactly."""
    write_text(path, format_star(tables))


def format_star(tables: Mapping[str, Table]) -> str:
    """STAR text as RELION 3.1 and later write it."""
    return "".join(_format_block(name, table) for name, table in tables.items())


def _format_block(name: str, table: Table) -> str:
    head = f"\n# version 30001\n\ndata_{name}\n\n"
    if isinstance(table, dict):
        width = max((len(k) for k in table), default=0) + 1
        return head + "".join(f"_{k:<{width}} {_quoted(str(v)):>20}\n" for k, v in table.items()) + " \n"
    names = "".join(f"_{column} #{i} \n" for i, column in enumerate(table.columns, 1))
    columns = [_format_column(table[column]) for column in table.columns]
    rows = "\n".join(map(" ".join, zip(*columns, strict=True)))
    return f"{head}loop_ \n{names}{rows}\n \n"


def _format_column(column: pd.Series) -> list[str]:
    """One text a row. Six decimals, as RELION writes, where they say it all, else as many as the number has."""
    values = column.to_numpy()
    if values.dtype == bool or values.dtype.kind in "iu":
        return [f"{v:12d}" for v in values.astype(np.int64 if values.dtype == bool else values.dtype).tolist()]
    if values.dtype.kind != "f":
        return [_quoted(v) if isinstance(v, str) else str(v) for v in column.tolist()]
    values = values.astype(np.float64)
    if (np.abs(values) < 1e9).all() and (np.round(values, 6) == values).all():
        return [f"{v:12.6f}" for v in values.tolist()]
    return [repr(v) for v in values.tolist()]


def _quoted(value: str) -> str:
    """Text as one token: quoted where it is empty, has blanks, or would be taken for a comment or a
    keyword."""
    if _PLAIN.fullmatch(value) and not value.startswith(("data_", "loop_")):
        return value
    value = re.sub(r"[\r\n\0]", " ", value)
    return f"'{value}'" if '"' in value else f'"{value}"'
