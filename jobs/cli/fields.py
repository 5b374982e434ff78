"""Build command-line options from the fields of pydantic models: name, type, help, range and default."""

import inspect
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from imagemill.jobs.cli.command import ALL_CLASSES, option

DOT = "__"
"""Replaces the dot of a key in the name of a Python parameter: pool__workers sets pool.workers."""
METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", bool: ""}
METAVAR_WIDTH = 16
"""Columns that leave enough room for the help text on a terminal of 80 columns."""


def field_option(
    model: type[BaseModel],
    key: str,
    *,
    group: str = "",
    flag: str | None = None,
    metavar: str | None = None,
    panel: str | None = None,
) -> inspect.Parameter:
    """Build the option that sets one field of a config.

    Args:
        model: the model that holds the field.
        key: dotted key of the field, such as `pool.workers`.
        group: dotted key of `model` in the config that the option sets, such as `params`.
        flag: the flag; default: the last part of the key. The flag of a list is in the singular and repeatable.
        metavar: name of the value in the help; default: derived from the type.
        panel: heading of the option in the help.
    """
    field = field_at(model, key)
    kind = command_line_type(field.annotation)
    if kind is None:
        raise TypeError(f"{key}: the command line has no type for {field.annotation}")
    is_list = get_origin(kind) is list
    name = key.rpartition(".")[2]
    choices = choices_of(field.annotation)
    declaration = typer.Option(
        flag or f"--{(name.removesuffix('s') if is_list else name).replace('_', '-')}",
        help=" ".join(filter(None, [field.description, limits_of(field), "Repeatable." if is_list else ""])),
        metavar=metavar or metavar_of(get_args(kind)[0] if is_list else kind, choices),
        autocompletion=(lambda incomplete: [c for c in choices if c.startswith(incomplete)]) if choices else None,
        rich_help_panel=panel,
    )
    default = None if field.is_required() or is_list or not isinstance(field.default, kind) else field.default
    key = f"{group}.{key}" if group else key
    return option(key.replace(".", DOT), Annotated[kind if default is not None else kind | None, declaration], default)


def field_at(model: type[BaseModel], key: str) -> FieldInfo:
    """Return the field that a dotted key names."""
    group, _, rest = key.partition(".")
    field = model.model_fields[group]
    return field_at(field.annotation, rest) if rest and isinstance(field.annotation, type) else field


def command_line_type(annotation: Any) -> Any:
    """Return the type of an option for a field; None if an option cannot express the field."""
    types = [kind for kind in members_of(annotation) if kind is not NoneType]
    if bool in types and len(types) > 1:
        return str  # a flag with an optional value
    kind = types[0]
    if get_origin(kind) is Literal:
        return str
    if get_origin(kind) is list:
        return kind
    return kind if kind in METAVARS else None


def members_of(annotation: Any) -> list[Any]:
    """Return the types of a union, or the type itself if the type is not a union, without constraints."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    return [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds]


def choices_of(annotation: Any) -> list[str]:
    """Return the values of a Literal; an empty list for other types."""
    return [str(value) for kind in members_of(annotation) if get_origin(kind) is Literal for value in get_args(kind)]


def metavar_of(kind: type, choices: list[str]) -> str:
    """Return the name of a value in the help: the choices if they are short enough for the column, else the type."""
    names = "|".join(choices)
    return names if names and len(names) <= METAVAR_WIDTH else METAVARS[kind]


def limits_of(field: FieldInfo) -> str:
    """Describe the range of a number; return an empty string without a range."""

    def limit(name: str) -> Any:
        return next((getattr(constraint, name) for constraint in field.metadata if hasattr(constraint, name)), None)

    low, high, below = limit("ge"), limit("le"), limit("lt")
    if low is None:
        return ""
    if high is not None:
        return f"Range: {low:,g} to {high:,g}."
    return f"Range: {low:g} to less than {below:g}." if below is not None else f"Minimum: {low:g}."


def given_flags(context: typer.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the command line sets, by the dotted key of the config that each sets."""
    flags = {}
    for name, value in values.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            flags[name.replace(DOT, ".")] = True if value == ALL_CLASSES else value
    return flags
