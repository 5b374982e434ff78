"""Options that several commands share, and how a YAML file, flags and --set become a config."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from imagemill.jobs.cli.command import option, set_parameters
from imagemill.jobs.cli.fields import field_option, given_flags
from imagemill.pipeline.config import RunConfig, read_yaml, set_value, validate
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from imagemill.pipeline.user_code import permitted, read_user_code
from imagemill.pipeline.without_pandas import leave_out_pandas

PLACE = "a folder or s3://bucket/prefix"
INPUT_HELP = f"Read images from {PLACE}, a shard or a manifest."
OUTPUT_HELP = f"Write to {PLACE}."
READ_OUTPUT_HELP = f"Read the output of runs: {PLACE}."
SET_HELP = "Set any key of the YAML, such as params.step=40. The value is YAML. Repeatable; overrides flags."
OVERWRITE_HELP = "Replace files that imagemill did not write, or that changed since."
CHECKPOINT_HELP = "Use this checkpoint: a bundled name, a folder or a URL."
CODE_HELP = "Allow a checkpoint of your own network to run Python code from this folder, or code that is installed."
ADDRESS_HELP = "Run on the Ray cluster at this address, instead of on this machine alone."

Config = Annotated[str | None, typer.Option("-c", "--config", help="Read the config of the run.", metavar="JOB.yaml")]
Storage = Annotated[str | None, typer.Option("-c", "--config", help="Read the storage block.", metavar="JOB.yaml")]
Set = Annotated[list[str] | None, typer.Option("--set", help=SET_HELP, metavar="KEY=VALUE")]
Input = Annotated[str | None, typer.Option("--input", help=INPUT_HELP, metavar="INPUT")]
Output = Annotated[str | None, typer.Option("--output", help=OUTPUT_HELP, metavar="OUTPUT")]
InputArgument = Annotated[str, typer.Argument(metavar="INPUT", help=INPUT_HELP)]
OutputArgument = Annotated[str, typer.Argument(metavar="OUTPUT", help=OUTPUT_HELP)]
ReadOutput = Annotated[str, typer.Argument(metavar="OUTPUT", help=READ_OUTPUT_HELP)]
Address = Annotated[str | None, typer.Option("--address", help=ADDRESS_HELP, metavar="ADDRESS")]
RunId = Annotated[str | None, typer.Option("--run-id", help="Use only the rows of this run.", metavar="ID")]
Checkpoint = Annotated[str | None, typer.Option("--checkpoint", help=CHECKPOINT_HELP, metavar="NAME|FOLDER|URL")]
Code = Annotated[str | None, typer.Option("--code", help=CODE_HELP, metavar="FOLDER|installed")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help=OVERWRITE_HELP)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Sheet = Annotated[str | None, typer.Option("--sheet", help="Draw the images into one picture.", metavar="FILE.png")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what the run would do, like `imagemill plan`.")]

RUN, WORKERS = "Run options", "Workers"
FITTING_KEYS = ("image.resize", "image.crop")
RUN_KEYS: dict[str, dict[str, str]] = {
    "checkpoint": {"metavar": "NAME|FOLDER|URL", "panel": RUN},
    "code": {"metavar": "FOLDER|installed", "panel": RUN},
    "source.include": {"metavar": "GLOB", "panel": RUN},
    "source.exclude": {"metavar": "GLOB", "panel": RUN},
    "prefix": {"metavar": "NAME", "panel": RUN},
    "limit": {"metavar": "N", "panel": RUN},
    "limit_order": {"panel": RUN},
    "retry_failed": {"metavar": "[CLASS]", "panel": RUN},
    "allow_new_input": {"panel": RUN},
    "accept_damaged": {"panel": RUN},
    "strict": {"panel": RUN},
    "reconstruct": {"panel": RUN},
    "image.resize": {"metavar": "RULE", "panel": RUN},
    "image.crop": {"metavar": "RULE", "panel": RUN},
    "pool.workers": {"flag": "--workers", "metavar": "N", "panel": WORKERS},
    "pool.batch_size": {"metavar": "N", "panel": WORKERS},
    "pool.dtype": {"panel": WORKERS},
    "engine": {"panel": WORKERS},
    "address": {"metavar": "ADDRESS", "panel": WORKERS},
}
"""Keys of RunConfig that are options of every command that runs or plans a job, with the arguments of field_option."""


def run_options(*without: str) -> list[inspect.Parameter]:
    """Build the options that all commands over images share, except those of the keys in `without`."""
    return [field_option(RunConfig, key, **arguments) for key, arguments in RUN_KEYS.items() if key not in without]


def with_code(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the option --code, which permits the code of checkpoints while the command runs."""

    @wraps(function)
    def command(*, code: str | None, **values: Any) -> None:
        with permitted(read_user_code(code)):
            function(**values)

    set_parameters(command, [*inspect.signature(function).parameters.values(), option("code", Code, None)])
    return command


def merge_config(path: str | None, flags: dict[str, Any], assignments: list[str] | None) -> dict[str, Any]:
    """Return the values of a YAML file, overridden by flags (by dotted key, None if not given), then by --set."""
    values = read_yaml(path) if path else {}
    for key, value in flags.items():
        if value is not None:
            set_flag(values, key, value)
    for assignment in assignments or []:
        set_value(values, assignment)
    return values


def set_flag(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key. A group that is not a mapping stays unchanged, so that the validation reports the group."""
    *groups, name = key.split(".")
    for group in groups:
        if values.get(group) is None:
            values[group] = {}
        if not isinstance(values[group], dict):
            return
        values = values[group]
    values[name] = value


def run_config(
    context: typer.Context, path: str | None, assignments: list[str] | None, flags: dict[str, Any], **keys: Any
) -> RunConfig:
    """Build the config of a run from a YAML file, flags and --set.

    Args:
        context: knows which flags the command line sets. Defaults of other flags must not override the YAML file.
        path: the YAML file.
        assignments: the values of --set.
        flags: values of options that `run_options` and `field_option` declared.
        keys: values of further keys; None if not given.

    Raises:
        ConfigError: if the YAML file cannot be read, or the config is invalid.
    """
    values = merge_config(path, keys | given_flags(context, flags), assignments)
    return validate(RunConfig, values, path or "command line")


def storage_of(path: str | None, origin: str) -> StorageConfig:
    """Return the storage block of a YAML file, or the default one.

    Raises:
        ConfigError: if the YAML file cannot be read, or the block is invalid.
    """
    values = read_yaml(path).get("storage") if path else None
    return validate(StorageConfig, values or {}, path or origin)


def store_at(url: str, path: str | None) -> Store:
    """Return the store at a URL, with the storage block of a YAML file."""
    # Each command that reads an OUTPUT calls this function before it uses pyarrow.
    leave_out_pandas()
    return Store(url, storage_of(path, url))
