"""Library messages name the library's parameters; the command line names its options instead."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from ralib.cli import app, main
from ralib.cli.flags import FLAGS, FLAGS_OF_COMMAND, flagged, with_flags
from ralib.types import Notice

SOURCE = Path(__file__).resolve().parents[2] / "src" / "ralib"
ALLOWED = (
    "__main__.py",
    "sparx/stages.py",
    "benchmarks/peers.py",
    "benchmarks/record.py",
    "results/summary/diagnose.py",
)
"""The program, which reads its command line, where other programs' options are named, and the report's advice, which is
about a run of a command."""


@pytest.mark.parametrize(
    ("text", "command", "shown"),
    [
        ("`outer_radius` 30 px does not fit", "", "--ou 30 px does not fit"),
        ("use `ctf=off`", "classify", "use --ctf off"),
        ("give `ParticleSet.pixel_size_A`", "mref", "give --pixel-size"),
        ("give `ParticleSet.pixel_size_A`", "prepare", "give --input-pixel-size"),
        ("`pixel_size_A` 900 A is too coarse", "prepare", "--to-pixel-size 900 A is too coarse"),
        (
            "`unheard_of` stays, and so does 'ralib prepare --box'",
            "",
            "`unheard_of` stays, and so does 'ralib prepare --box'",
        ),
    ],
)
def test_with_flags_parameter_in_backticks_becomes_the_option(text: str, command: str, shown: str) -> None:
    assert with_flags(text, command) == shown


def test_flagged_notice_has_options_in_every_part() -> None:
    shown = flagged(Notice("`snr` is 0", "`snr`", "leave `snr` out"))
    assert shown == Notice("--snr is 0", "--snr", "leave --snr out")


def test_flags_every_option_exists() -> None:
    known = {
        option
        for command in get_command(app).commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    named = " ".join([*FLAGS.values(), *(flag for flags in FLAGS_OF_COMMAND.values() for flag in flags.values())])
    assert set(re.findall(r"--[\w-]+", named)) <= known


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a module that are no docstrings, each f-string as one text."""
    tree = ast.parse(path.read_text())
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in alone:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def test_library_messages_name_parameters_and_no_options() -> None:
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = str(path.relative_to(SOURCE))
        if name.startswith("cli/") or name in ALLOWED:
            continue
        for line, text in texts(path):
            said = re.sub(r"'ralib [^']*'(?: \(or to one scale with --to-pixel-size\))?", "", text)  # a command to run
            if re.search(r"(?<![\w-])--[A-Za-z]", said) and "nproc" not in said and said != "--standalone":
                wrong.append(f"{name}:{line}: {text}")
            unknown = {p for p in re.findall(r"`([A-Za-z_][\w.]*)(?:=[^`\s]+)?`", text) if p not in FLAGS}
            wrong += [f"{name}:{line}: `{parameter}` is no known parameter" for parameter in sorted(unknown)]
    assert not wrong, "\n".join(wrong)


def test_command_error_of_the_library_names_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(tmp_path / "s"), "--particles=40", "--box=32", "--device=cpu"]) == 0
    stack = str(tmp_path / "s/particles.mrcs")
    assert main(["classify", stack, str(tmp_path / "out"), "--balance=2", "--device=cpu"]) == 2
    assert capsys.readouterr().err == "ralib: --balance 2 must lie between 0 (free) and 1 (equal)\n"
