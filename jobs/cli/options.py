"""Options that several commands have, and how they become a config: the YAML, then flags that were given, then --set."""

from typing import Annotated, Any

import typer

from imagemill.pipeline.config import RunConfig, read_yaml, set_value, validate
from imagemill.pipeline.storage import StorageConfig, Store

Config = Annotated[str | None, typer.Option("-c", "--config", help="YAML of the run", metavar="JOB.yaml")]
Storage = Annotated[str | None, typer.Option("-c", "--config", help="YAML with a storage block", metavar="JOB.yaml")]
INPUT_HELP = "folder, s3://bucket/prefix, shard or manifest (docs/inputs.md)"
Input = Annotated[str | None, typer.Option("--input", help=INPUT_HELP)]
Output = Annotated[str | None, typer.Option("--output", help="folder or s3://bucket/prefix")]
SET_HELP = "override a key of the YAML, as params.step=40; the value is YAML; may be repeated; wins over flags"
Set = Annotated[list[str] | None, typer.Option("--set", help=SET_HELP, metavar="KEY=VALUE")]
Limit = Annotated[int | None, typer.Option("--limit", help="do at most so many images", min=1)]
Retry = Annotated[
    bool | None, typer.Option("--retry-failed", "--retry", help="process rejected images again, and nothing else")
]
AllowNewInput = Annotated[
    bool | None,
    typer.Option("--allow-new-input", help="INPUT was moved or renamed: accept images that OUTPUT holds from another place"),
]
AcceptDamaged = Annotated[
    bool | None, typer.Option("--accept-damaged", help="keep damaged images, with damaged = true in their rows")
]
Reconstruct = Annotated[bool | None, typer.Option("--reconstruct", help="write the decoded images, as PNG")]
Address = Annotated[str | None, typer.Option("--address", help="a Ray cluster that exists")]
InputArgument = Annotated[str, typer.Argument(metavar="INPUT", help=INPUT_HELP)]
OutputArgument = Annotated[str, typer.Argument(metavar="OUTPUT", help="folder or s3://bucket/prefix")]
Run = Annotated[str | None, typer.Option("--run", help="rows of this run alone", metavar="ID")]
Checkpoint = Annotated[str | None, typer.Option("--checkpoint", help="bundled name, folder or URL")]
OVERWRITE_HELP = "replace files that imagemill did not write, or that were changed since"
Overwrite = Annotated[bool, typer.Option("--overwrite", help=OVERWRITE_HELP)]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]
Sheet = Annotated[str | None, typer.Option("--sheet", help="draw them into a picture", metavar="FILE.png")]


def merged(config: str | None, assignments: list[str] | None, flags: dict[str, Any]) -> dict[str, Any]:
    """The values of a YAML, then flags that were given, then --set; those of the flag `params` one by one."""
    values = read_yaml(config) if config else {}
    given = {key: value for key, value in flags.items() if value is not None}
    params = {key: value for key, value in given.pop("params", {}).items() if value is not None}
    if params and isinstance(values.get("params"), dict | None):
        given["params"] = (values.get("params") or {}) | params
    values |= given
    for assignment in assignments or []:
        set_value(values, assignment)
    return values


def effective(config: str | None, assignments: list[str] | None, **flags: Any) -> RunConfig:
    """The config of a run. Raises: ConfigError."""
    return validate(RunConfig, merged(config, assignments, flags), config or "command line")


def storage_of(config: str | None, origin: str) -> StorageConfig:
    """The storage block of a YAML. Raises: ConfigError."""
    values = read_yaml(config).get("storage") if config else None
    return validate(StorageConfig, values or {}, config or origin)


def store(url: str, config: str | None) -> Store:
    """A place, reached as the storage block of a YAML says."""
    return Store(url, storage_of(config, url))
