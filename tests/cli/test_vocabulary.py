"""The command line as a whole: one vocabulary with older spellings, pages of help, completion, run.yaml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
import yaml
from packaging.version import Version
from typer.testing import CliRunner

from ralib.cli import app, main
from ralib.cli.parsing import length, length_px
from ralib.io import open_particles, write_mrcs
from ralib.types import RalibError

GROUP: Any = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)
OLDER_TYPER = Version(typer.__version__) < Version("0.29")
SCREEN_LINES = 45 if OLDER_TYPER else 40
"""Older versions write INTEGER RANGE [x>=0] where newer ones write <int>, and sentences wrap."""


def help_page(command: str, option: str = "--help") -> str:
    done = CliRunner().invoke(app, [command, option], env={"COLUMNS": "100", "TERM": "dumb"})
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_fits_a_screen(command: str) -> None:
    page = help_page(command)
    assert len(page.rstrip().splitlines()) <= SCREEN_LINES
    assert max(map(len, page.splitlines())) <= 100


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("relion", "external")])
def test_help_all_shows_every_option(command: str) -> None:
    page = help_page(command, "--help-all")
    shown = [p for p in GROUP.commands[command].params if p.name not in ("helical", "pipeline_control")]
    for parameter in shown:
        if parameter.opts[0].startswith("--"):
            assert parameter.opts[0] in page, parameter.name


def test_usage_names_arguments_as_the_page_below_it_does() -> None:
    assert "Usage: ralib select [OPTIONS] RUN [SELECTION] [OUT] " in help_page("select")
    assert "Usage: ralib mref [OPTIONS] STACK REFERENCES OUTDIR [MASK] " in help_page("mref")


def test_help_says_a_default_once_behind_its_sentence() -> None:
    for page in (help_page("mref"), help_page("mref", "--help-all")):
        assert page.count("Seed of all random numbers. [default: 1000]") == 1


def test_help_all_shows_more_where_help_is_short() -> None:
    assert "--coloured-noise" in help_page("simulate", "--help-all")
    assert "--coloured-noise" not in help_page("simulate")


def options(command: str) -> set[str]:
    return {name for p in GROUP.commands[command].params for name in p.opts}


@pytest.mark.parametrize("command", ["mref", "reffree", "classify", "watch"])
def test_runs_share_the_words_for_ctf_pixel_size_and_device(command: str) -> None:
    assert {"--ctf", "--pixel-size", "--device", "--seed", "--batch", "--datadir"} <= options(command)


@pytest.mark.parametrize("command", ["mref", "reffree", "classify"])
def test_runs_take_the_diameter_in_angstrom(command: str) -> None:
    assert "--diameter" in options(command)


@pytest.mark.parametrize(
    ("command", "given", "expected"),
    [
        ("average", ["--CTF"], {"mode": "wiener"}),
        ("average", ["--ctf-correct"], {"mode": "wiener"}),
        ("average", ["--ctf", "on"], {"mode": "on"}),
        ("analyze", ["--ctf"], {"ctf": "wiener"}),
        ("analyze", ["--no-ctf"], {"ctf": "off"}),
        ("analyze", ["--ctf", "off"], {"ctf": "off"}),
        ("simulate", ["--no-ctf"], {"ctf": False}),
        ("simulate", ["--ctf"], {"ctf": True}),
        ("denoise", ["--ctf", "corrected"], {"ctf": "corrected"}),
        ("mref", ["--CTF"], {"ctf": True}),
        ("mref", ["--apix", "2"], {"pixel_size": 2.0}),
        ("mref", ["--angpix=2"], {"pixel_size": 2.0}),
        ("mref", ["--particle_diameter", "150"], {"diameter": 150.0}),
        ("mref", ["--outer-radius", "20"], {"ou": 20}),
        ("classify", ["--K", "7"], {"classes": 7}),
        ("transform", ["--input-pixel-size", "2"], {"pixel_size": 2.0}),
        ("prepare", ["--pixel-size", "2"], {"to_pixel_size": 2.0, "input_pixel_size": None}),
        ("prepare", ["--apix", "2"], {"to_pixel_size": 2.0, "input_pixel_size": None}),
        ("classify", ["--particle_diameter", "150"], {"diameter": 150.0}),
    ],
)
def test_older_spellings_are_understood(command: str, given: list[str], expected: dict[str, Any]) -> None:
    parser = GROUP.commands[command]
    needed = ["x"] * sum(p.param_type_name == "argument" and p.required for p in parser.params)
    context = parser.make_context(command, [*needed, *given], resilient_parsing=False)
    assert {name: context.params[name] for name in expected} == expected


def test_ctf_words_mean_the_same_everywhere() -> None:
    from ralib.cli.commands.classify import ClassifySettings
    from ralib.cli.parsing import ctf_choice

    assert ctf_choice(False, "on") == ctf_choice(True, None) == "wiener"
    assert ctf_choice(False, "none") == "off"
    assert ClassifySettings(ctf="wiener").ctf_mode() == ClassifySettings(ctf="on").ctf_mode() == "on"
    with pytest.raises(RalibError, match="'banana' is unknown: choose auto, wiener, off or flipped"):
        ClassifySettings(ctf="banana").ctf_mode()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stack") / "p.mrcs"
    write_mrcs(path, np.random.default_rng(0).standard_normal((40, 32, 32)).astype(np.float32), 2.0)
    return path


def test_mref_takes_a_diameter_in_angstrom(stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["mref", str(stack), "2", str(tmp_path / "a"), "--maxit", "1", "--no-report"]
    assert main([*run, "--diameter", "40"]) == 0
    assert "outer radius: 10 px" in capsys.readouterr().out
    assert main(["mref", str(stack), "2", str(tmp_path / "b"), "--diameter", "40", "--ou", "9"]) == 2
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["mref", "reffree", "classify", "average", "transform", "watch"])
def test_pixel_size_is_that_of_the_input_in_every_command(command: str) -> None:
    (option,) = [p for p in GROUP.commands[command].params if "--pixel-size" in p.opts]
    assert "A/px" in option.help
    assert "crop" not in option.help


def test_prepare_says_that_its_pixel_size_has_another_name(
    stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, notes in (("--pixel-size", 1), ("--to-pixel-size", 0)):
        out = tmp_path / f"{notes}.mrcs"
        assert main(["prepare", str(stack), str(out), option, "4"]) == 0
        assert capsys.readouterr().err.count("--to-pixel-size") == notes
        assert open_particles(out).pixel_size_A == 4.0


@pytest.mark.parametrize(("given", "px"), [("3", 3.0), ("3px", 3.0), ("3 px", 3.0), ("6A", 3.0), ("6 Å", 3.0)])
def test_a_length_is_in_pixels_or_has_its_unit(given: str, px: float) -> None:
    assert length_px("--xr", length(given), 2.0) == px


@pytest.mark.parametrize("given", ["", "A", "3nm", "3AA", "nan", "inf A"])
def test_a_malformed_length_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="is no length"):
        length(given)
    with pytest.raises(RalibError, match=r"--xr .* is no length"):
        length_px("--xr", given, 2.0)


def test_lengths_in_angstrom_make_the_same_run_as_in_pixels(stack: Path, tmp_path: Path) -> None:
    found = []
    for unit, ou, xr in (("px", "11", "1"), ("A", "22A", "2A")):
        out = tmp_path / unit
        run = ["mref", str(stack), "2", str(out), "--ou", ou, "--xr", xr, "--maxit", "1", "--no-report"]
        assert main(run) == 0
        found.append(open_particles(out / "particles.star").poses)
        assert yaml.safe_load((out / "run.yaml").read_text())["xr"] == (1 if unit == "px" else "2A")
    assert found[0].psi_deg.tolist() == found[1].psi_deg.tolist()


def test_stages_in_angstrom_are_those_in_pixels() -> None:
    from ralib.cli.parsing import shift_ranges

    assert shift_ranges("8A 4 A, 1", "-1", None, 2.0) == shift_ranges("4 2 1", None, None)
    with pytest.raises(RalibError, match=r"--xr 8A is in A, .* give it with --pixel-size"):
        shift_ranges("8A", None, None, None)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("mref", ["--xr", "--yr", "--ts", "--ou"]),
        ("reffree", ["--xr", "--yr", "--ts", "--ou"]),
        ("classify", ["--search"]),
        ("denoise", ["--radius"]),
        ("neighbours", ["--radius"]),
    ],
)
def test_help_of_a_length_says_both_units(command: str, names: list[str]) -> None:
    texts = {p.opts[0]: p.help for p in GROUP.commands[command].params}
    for name in names:
        assert "px" in texts[name]
        assert "A" in texts[name].split("[default")[0]


def test_run_yaml_of_a_run_makes_the_same_run(stack: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    given = ["--ou", "11", "--xr", "1", "--maxit", "2", "--seed", "7", "--center", "0", "--no-report"]
    assert main(["mref", str(stack), "2", str(first), *given]) == 0
    assert main(["mref", str(stack), "2", str(second), "--config", str(first / "run.yaml"), "--no-report"]) == 0
    settings = [yaml.safe_load((folder / "run.yaml").read_text()) for folder in (first, second)]
    assert settings[0] == settings[1]
    assert settings[0]["seed"] == 7
    poses = [open_particles(folder / "particles.star").poses for folder in (first, second)]
    assert poses[0] is not None
    assert poses[1] is not None
    assert poses[0].psi_deg.tolist() == poses[1].psi_deg.tolist()
    third = tmp_path / "third"
    assert main(["mref", str(stack), "2", str(third), "--config", str(first / "run.yaml"), "--seed", "8"]) == 0
    assert yaml.safe_load((third / "run.yaml").read_text())["seed"] == 8


def test_a_written_config_may_spell_options_as_the_help_does(
    stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("ou: 11\nEQ: yes\npixel-size: 2.5\nmaxit: 1\nxr: 2A\n")
    words = ["mref", str(stack), "2", str(tmp_path / "run"), "--config", str(config), "--no-report"]
    assert main(words) == 0
    taken = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert (taken["equal"], taken["pixel_size"], taken["xr"]) == (True, 2.5, "2A")
    config.write_text("EQ: yes\nequal: no\n")
    assert main(words) == 2
    assert "EQ, equal are one option" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_options(shell: str) -> None:
    """What the shell's completion script asks of the program, and what it gets."""
    words = {"bash": {"COMP_WORDS": "ralib cla", "COMP_CWORD": "1"}, "zsh": {"_TYPER_COMPLETE_ARGS": "ralib cla"}}
    asked = words.get(shell, {"_TYPER_COMPLETE_ARGS": "ralib cla", "_TYPER_COMPLETE_FISH_ACTION": "get-args"})
    import os

    environment = {**os.environ, "_RALIB_COMPLETE": f"complete_{shell}", **asked}
    done = subprocess.run(
        [sys.executable, "-m", "ralib"], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert "classify" in done.stdout
    assert "Traceback" not in done.stderr


def test_completion_knows_options_that_the_short_help_leaves_out() -> None:
    command = GROUP.commands["select"]
    context = command.make_context("select", ["RUN"], resilient_parsing=True)
    found = {item.value for item in command.shell_complete(context, "--min-")}
    assert {"--min-class-score", "--min-resolution", "--min-posterior"} <= found


@pytest.mark.parametrize(
    ("command", "option", "typed", "expected"),
    [
        ("classify", "ctf", "", {"auto", "wiener", "off", "flipped"}),
        ("watch", "ctf", "f", {"flipped"}),
        ("mref", "ctf_mode", "", {"off", "wiener", "flip"}),
        ("average", "mode", "w", {"wiener"}),
        ("denoise", "ctf", "c", {"corrected"}),
        ("analyze", "clustering", "g", {"gamma-sup"}),
        ("prepare", "normalise", "", {"background", "variance", "none"}),
    ],
)
def test_completion_knows_the_words_an_option_takes(command: str, option: str, typed: str, expected: set[str]) -> None:
    context = GROUP.commands[command].make_context(command, ["x", "y", "z"], resilient_parsing=True)
    (parameter,) = (p for p in GROUP.commands[command].params if p.name == option)
    assert {item.value for item in parameter.shell_complete(context, typed)} == expected
