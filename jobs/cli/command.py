"""The parts of a command that Typer lacks: old names of options, an option with an optional value, -v and -q."""

import inspect
import logging
import re
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

RETRY_FAILED = "--retry-failed"
ALL_CLASSES = "*"
"""The value of `--retry-failed` without a class."""
REJECT_CLASS = re.compile(r"[A-Z]\w*")
RENAMED = {"--retry": f"{RETRY_FAILED}={ALL_CLASSES}", "--run": "--run-id", "--address": "--dashboard"}
"""Old name of an option to its new name, for commands that have only the new one."""
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Log debug messages too.", show_default=False)]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Log only warnings and errors, and show no progress bars.")]


class Group(TyperGroup):
    """A group of commands whose help shows flags without a type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters that the help lists."""
        return without_types_of_flags(super().get_params(ctx))


class Command(TyperCommand):
    """A command that accepts the old names of its options, and `--retry-failed` with or without a class."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters that the help lists."""
        return without_types_of_flags(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrite arguments to options that Typer knows, and parse them."""
        flags = {flag for parameter in self.params for flag in parameter.opts}
        renamed = {old: new for old, new in RENAMED.items() if new.partition("=")[0] in flags and old not in flags}
        return super().parse_args(ctx, with_current_names(args, renamed))


def without_types_of_flags(parameters: list[Any]) -> list[Any]:
    """Remove the type of flags, which Typer shows as <bool> although a flag takes no value."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


def with_current_names(arguments: list[str], renamed: dict[str, str]) -> list[str]:
    """Replace old names of options, and give each `--retry-failed` an explicit value.

    The word after `--retry-failed` is its value if it looks like a class (TooManyPixels). The old `--retry` had no value,
    so the word after `--retry` is never a value.
    """
    result: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word == "--":
            return [*result, word, *words]
        flag, equals, value = word.partition("=")
        if word == RETRY_FAILED:
            has_class = words and REJECT_CLASS.fullmatch(words[0])
            result.append(f"{RETRY_FAILED}={words.pop(0) if has_class else ALL_CLASSES}")
        else:
            result.append(f"{renamed.get(flag, flag)}{equals}{value}")
    return result


def set_verbosity(verbose: bool, quiet: bool) -> None:
    """Set the log level. Progress bars are shown if informational messages are logged."""
    if verbose or quiet:
        logging.getLogger("imagemill").setLevel(logging.DEBUG if verbose else logging.WARNING)


def with_options(function: Callable[..., None], options: Iterable[inspect.Parameter]) -> Callable[..., None]:
    """Return a function with more options in its signature, which passes their values to `function` by keyword.

    The help lists the options after the parameters that the function requires, before those with a default.
    """

    @wraps(function)
    def command(**values: Any) -> None:
        function(**values)

    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    required = [parameter for parameter in own if parameter.default is inspect.Parameter.empty]
    set_parameters(command, [*required, *options, *(parameter for parameter in own if parameter not in required)])
    return command


def set_parameters(function: Callable[..., None], parameters: Iterable[inspect.Parameter]) -> None:
    """Replace the signature that Typer reads the options of a command from."""
    by_keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    function.__dict__["__signature__"] = inspect.Signature(by_keyword)


def option(name: str, annotation: Any, default: Any = False) -> inspect.Parameter:
    """Return an option as a parameter of a signature."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def register(app: typer.Typer, function: Callable[..., None], name: str, panel: str | None = None) -> None:
    """Add a function to the commands of an app, with -v and -q next to its own options."""

    @wraps(function)
    def command(*, verbose: bool, quiet: bool, **values: Any) -> None:
        set_verbosity(verbose, quiet)
        function(**values)

    parameters = inspect.signature(function).parameters.values()
    set_parameters(command, [*parameters, option("verbose", Verbose), option("quiet", Quiet)])
    summary = (function.__doc__ or "").partition("\n\n")[0]
    app.command(name, cls=Command, short_help=summary, rich_help_panel=panel)(command)
