"""Options of a command as one frozen dataclass: declared once, parsed by typer, passed whole, stored in run.yaml."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import OptionInfo

from ralib.types import RalibError

CONFIG_FILE = "run.yaml"
ALWAYS_HIDDEN = frozenset({"helical"})
"""Options that are there to be refused in words: neither help nor completion shows them."""
SEARCH, AVERAGES, CLASSES, RUNNING, FILES = "Search", "Averages and CTF", "Classes", "Running", "Files"
"""Panels of --help."""
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Options of one command; every field's type is Annotated with its typer.Option or Argument.

    `essential` names the fields that --help shows, --help-all shows all; `free_to_change` those that may differ between
    a run and its continuation.
    """

    essential: ClassVar[frozenset[str]] = frozenset()
    free_to_change: ClassVar[frozenset[str]] = frozenset({"device"})

    def record(self) -> dict[str, Any]:
        """Return the options as run.json and run.yaml hold them, with paths as text."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


class RunCommand(TyperCommand):
    """A command that also accepts older spellings of its options, which the help does not show."""

    older: ClassVar[dict[str, str]] = {
        "--K": "--classes",
        "--inner-radius": "--ir",
        "--outer-radius": "--ou",
        "--ring-step": "--rs",
        "--shift-range-y": "--yr",
        "--shift-step": "--ts",
        "--no-mirror": "--nomirror",
        "--ctf-correct": "--CTF",
        "--signal-to-noise": "--snr",
        "--user-function": "--function",
        "--centring": "--center",
        "--rand_seed": "--seed",
        "--rand-seed": "--seed",
        "--gpu-devices": "--gpu_devices",
        "--batch-size": "--batch",
        "--parity": "--sparx",
        "--apix": "--pixel-size",
        "--angpix": "--pixel-size",
        "--input-pixel-size": "--pixel-size",
        "--iterations": "--maxit",
        "--equal-sizes": "--EQ",
        "--discrete-angle": "--dst",
        "--random-method": "--random_method",
        "--fourier-variance": "--Fourvar",
        "--particle-diameter": "--diameter",
        "--particle_diameter": "--diameter",
        "--high-limit": "--resolution",
        "--ctf": "--output-ctf",
        "--no-ctf": "--ctf=off",
    }
    ctf_words: ClassVar[frozenset[str]] = frozenset({"auto", "on", "off", "none", "wiener", "flip", "flipped"})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace each older spelling in the arguments, except what follows `--`.

        Parameters
        ----------
        ctx : Any
            Context of the command.
        args : list[str]
            Arguments.

        Returns
        -------
        list[str]
            Remaining arguments.
        """
        known = {name for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        end = args.index("--") if "--" in args else len(args)
        if self.name == "analyze":  # where --ctf was a switch
            following = [*args[1:end], ""]
            args = [
                "--ctf=wiener" if a == "--ctf" and b not in self.ctf_words else a
                for a, b in zip(args[:end], following, strict=True)
            ] + args[end:]
        if self.name == "prepare" and any(a.partition("=")[0] in ("--pixel-size", "--apix") for a in args[:end]):
            typer.echo(
                "note: this is --to-pixel-size by its present name; that of the input is --input-pixel-size", err=True
            )
        return super().parse_args(ctx, [self._spelling(a, known) for a in args[:end]] + args[end:])

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete options that only --help-all shows, too.

        Parameters
        ----------
        ctx : Any
            Context of the command.
        incomplete : str
            The word to complete.

        Returns
        -------
        list[Any]
            Completions.
        """
        for parameter in self.params:
            if parameter.name not in ALWAYS_HIDDEN and getattr(parameter, "hidden", False):
                parameter.hidden = False  # type: ignore[attr-defined]
        return super().shell_complete(ctx, incomplete)

    def get_usage(self, ctx: Any) -> str:
        """Return the usage line, with single brackets around what may be left out and none around the rest.

        Parameters
        ----------
        ctx : Any
            Context of the command.

        Returns
        -------
        str
            The line.
        """
        usage = re.sub(r"\{([\w|]+)\}", r"\1", super().get_usage(ctx))
        return usage.replace("[[", "[").replace("]]...", "]").replace("]]", "]")

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page of help: what typer writes, on fewer lines.

        A default stands behind its sentence, not on a line of its own. A page that leaves options to --help-all has
        one panel of them, without their ranges.

        Parameters
        ----------
        ctx : Any
            Context of the command.
        formatter : Any
            Where typer writes plain text.
        """
        usage = self.get_usage(ctx)
        short = any(getattr(p, "hidden", False) and p.name not in ALWAYS_HIDDEN for p in self.params)
        page = copy.copy(self)
        page.params = [_on_one_line(parameter, ctx, short=short) for parameter in self.get_params(ctx)]
        page.get_params = lambda ctx: page.params  # type: ignore[method-assign]
        page.get_usage = lambda ctx: usage  # type: ignore[method-assign]
        super(RunCommand, page).format_help(ctx, formatter)

    def _spelling(self, argument: str, known: set[str]) -> str:
        name, equals, value = argument.partition("=")
        if name == "--shift-range":
            return ("--xr" if "--xr" in known else "--search") + equals + value
        if name in known:
            return argument
        if name in ("--CTF", "--ctf-correct") and "--CTF" not in known and "--ctf" in known:
            return "--ctf=wiener"
        newer = self.older.get(name, name)
        if newer == "--pixel-size" and "--to-pixel-size" in known:  # what prepare once called so
            newer = "--to-pixel-size"
        return newer + equals + value if newer.partition("=")[0] in known else argument


def _on_one_line(parameter: Any, ctx: Any, *, short: bool) -> Any:
    """A copy of a parameter for a page of help, whose sentence ends with its default."""
    shown = copy.copy(parameter)
    shown.required = False
    default = shown._extract_default_help_str(ctx=ctx)
    if default is not None and shown.show_default:
        text = shown._get_default_string(ctx=ctx, show_default_is_str=False, default_value=default)
        shown.help = f"{shown.help} [default: {text}]" if text else shown.help
    shown.show_default = False
    if short:
        shown.rich_help_panel = None
        shown._get_number_range_help_str = lambda: None
    elif parameter.name in ("help", "help_all", "config"):
        shown.rich_help_panel = "More"
    return shown


def command(app: typer.Typer, name: str, function: Callable[..., Any]) -> None:
    """Register a function as a command; its parameter annotated with a Settings class stands for that class's fields.

    Parameters
    ----------
    app : typer.Typer
        The app.
    name : str
        Name of the command.
    function : Callable[..., Any]
        The function.
    """
    app.command(name, cls=RunCommand)(expanded(function))


def with_short_help(app: typer.Typer, essential: Mapping[str, frozenset[str]], *, without: frozenset[str]) -> None:
    """Give every command that has no Settings --help-all and the older spellings.

    Parameters
    ----------
    app
        Its commands are changed.
    essential
        By command: the parameters that --help shows; all of a command that is not named.
    without
        Commands that hand unknown options on: they stay as they are.
    """
    for info in app.registered_commands:
        name, function = info.name or "", info.callback
        if name in without or function is None or (isinstance(info.cls, type) and issubclass(info.cls, RunCommand)):
            continue
        info.cls, info.callback = RunCommand, _with_help_all(function, essential.get(name))


def _with_help_all(function: Callable[..., Any], essential: frozenset[str] | None) -> Callable[..., None]:
    hints = get_type_hints(function, include_extras=True)
    parameters, further = [], set()
    for p in inspect.signature(function).parameters.values():
        base, *marks = get_args(hints[p.name]) if hasattr(hints[p.name], "__metadata__") else (hints[p.name],)
        as_default = isinstance(p.default, OptionInfo)  # the option stands where its default would
        option = copy.copy(p.default if as_default else next(iter(marks), None))
        if essential is not None and p.name not in essential and isinstance(option, OptionInfo) and not option.hidden:
            option.hidden = True
            further.add(p.name)
        if as_default:
            p = p.replace(default=option)
        parameters.append(p.replace(annotation=Annotated[base, option] if marks else base))
    parameters.append(_keyword("help_all", Annotated[bool, _help_all_option(frozenset(further))], default=False))

    @functools.wraps(function)
    def called(**given: Any) -> None:
        del given["help_all"]
        function(**given)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


def expanded(function: Callable[..., Any]) -> Callable[..., None]:
    """Return a function with a parameter for each field of its settings, and with --config and --help-all."""
    hints = get_type_hints(function, include_extras=True)
    before = [p for p in inspect.signature(function).parameters.values() if not _is_settings(hints[p.name])]
    (whole,) = (n for n, hint in hints.items() if _is_settings(hint))
    kind: type[Settings] = hints[whole]
    types = get_type_hints(kind, include_extras=True)
    parameters = [_parameter(f, types[f.name], shown=f.name in kind.essential) for f in fields(kind)]
    parameters += [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in before]
    further = frozenset(f.name for f in fields(kind) if f.name not in kind.essential)
    parameters += [
        _keyword("config", Annotated[Path | None, _config_option(_spellings(types, fields(kind)))]),
        _keyword("help_all", Annotated[bool, _help_all_option(further)], default=False),
    ]

    @functools.wraps(function)
    def called(**given: Any) -> None:
        del given["config"], given["help_all"]
        settings = kind(**{f.name: given.pop(f.name) for f in fields(kind)})
        function(**given, **{whole: settings})

    parameters.sort(key=lambda p: p.default is not inspect.Parameter.empty)  # stable: required ones first
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


def write_config(folder: Path, settings: Settings) -> None:
    """Write run.yaml, which `--config` of another run accepts.

    Parameters
    ----------
    folder : Path
        The folder.
    settings : Settings
        The options.
    """
    import yaml

    from ralib.io import write_text

    text = yaml.safe_dump(settings.record(), sort_keys=False, allow_unicode=True)
    write_text(
        folder / CONFIG_FILE, f"# The options of this run; the next takes them with --config {CONFIG_FILE}\n{text}"
    )


def read_config(path: Path, known: Mapping[str, str]) -> dict[str, Any]:
    """Read the options of a run.yaml.

    Parameters
    ----------
    path : Path
        The file.
    known : Mapping[str, str]
        Field of each name that an option may have in the file.

    Returns
    -------
    dict[str, Any]
        Values by field.

    Raises
    ------
    RalibError
        In one line for unknown names, options given twice, or malformed text.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RalibError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise RalibError(f"--config {path} must hold lines such as 'maxit: 10'")
    if unknown := sorted(str(name) for name in found if name not in known):
        names = sorted(set(known.values()))
        raise RalibError(f"--config {path}: {', '.join(unknown)} unknown: this command has {', '.join(names)}")
    named = [known[name] for name in found]
    if twice := sorted(name for name in found if named.count(known[name]) > 1):
        raise RalibError(f"--config {path}: {', '.join(twice)} are one option: leave one of them")
    if bad := [str(name) for name, value in found.items() if isinstance(value, dict | list)]:
        raise RalibError(f"--config {path}: {', '.join(bad)} must be one number, word or yes/no each")
    return {known[name]: value for name, value in found.items() if value is not None}


def _is_settings(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Settings)


def _keyword(name: str, hint: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _parameter(field: Field[Any], hint: Any, *, shown: bool) -> inspect.Parameter:
    """The command line's parameter of a field; options that are not essential are hidden from --help."""
    base, option = get_args(hint)
    if not shown and not isinstance(option, type(typer.Argument())):
        option = copy.copy(option)
        option.hidden = True
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return _keyword(field.name, Annotated[base, option], default)


def _spellings(hints: Mapping[str, Any], known: Iterable[Field[Any]]) -> dict[str, str]:
    """The field of each name in run.yaml: its own, and its option's as --help spells it, without the dashes."""
    own = {f.name: f.name for f in known}
    names: dict[str, str] = {}
    for name in own:
        _, option = get_args(hints[name])
        decls = (option.default, *(option.param_decls or ()))  # in Annotated the first name stands for a default
        words = (word for decl in decls if isinstance(decl, str) for word in decl.split("/"))
        names |= {word.lstrip("-"): name for word in words if word.startswith("--") and not word.startswith("--no-")}
    return names | own  # --ctf of mref is the field ctf_mode; its field ctf is --CTF


def _config_option(known: Mapping[str, str]) -> Any:
    def take(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            context.default_map = {**(context.default_map or {}), **read_config(path, known)}
        return path

    return typer.Option(
        "--config", metavar="FILE", callback=take, is_eager=True, rich_help_panel="More",
        help="Take options from the run.yaml of an earlier run; options given here take precedence.",
    )  # fmt: skip


def _help_all_option(further: frozenset[str]) -> Any:
    def show(context: typer.Context, wanted: bool) -> None:
        if wanted:
            for parameter in context.command.params:
                if parameter.name in further - ALWAYS_HIDDEN:
                    parameter.hidden = False  # type: ignore[attr-defined]
            typer.echo(context.get_help())
            raise typer.Exit

    return typer.Option(
        "--help-all", callback=show, is_eager=True, rich_help_panel="More", help="Show every option and exit."
    )
