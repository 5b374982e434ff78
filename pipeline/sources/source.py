"""What every source gives: images by name, with what tells whether they changed and where their bytes lie."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from imagemill.pipeline.storage import Store

UNREADABLE_SHARD = "UnreadableShard"
"""The problem of a shard that its store did not give; the only one that the next run looks at by itself."""

SHARD_CHANGED = "ShardChanged"
"""A member that is not what the index of its shard says."""


class SourceConfig(BaseModel):
    """How to read shards and manifests. Columns without a name here are found by their usual names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str | None = Field(
        None,
        description="Parquet: read images from this column. Its type is binary, a struct with `bytes`, or lists of them.",
    )
    key: str | None = Field(None, description="Parquet, manifest: name images by this column.")
    uri: str | None = Field(None, description="Manifest: read paths and URLs from this column.")
    carry: list[str] | None = Field(
        None,
        description="Copy these columns, or sidecar files with these extensions, to `extra`. Default: sidecar json and txt.",
    )
    roots: list[str] = Field(
        default_factory=list, description="Manifest: also allow local files in these folders, not only next to the manifest."
    )
    http: Literal["refuse", "public", "any"] = Field(
        "refuse", description="Manifest: refuse http(s) URLs, allow those with public addresses, or allow any."
    )


@dataclass(frozen=True)
class ListedImage:
    """One image of an input."""

    rel_path: str
    """Its name within the input; in a shard SHARD/MEMBER."""
    size: int
    """Bytes of the encoded image."""
    etag: str
    """Differs when the image does: the store's etag of a file, a digest of the bytes in a shard."""
    path: str
    """The file to read: of the image, or of the shard that holds it."""
    offset: int | None = None
    """Where in the shard it is: a byte of the unpacked tar, a row of a Parquet file, an image of a row of lists."""
    base: str | None = None
    """The place that `path` is relative to, where it is not the input."""
    problem: str | None = None
    """Why it is a reject before it was read, as `Class: reason`."""
    mask_path: str | None = None
    """The file that holds its mask, where it has one; the mask's place in a shard as the image's."""
    mask_offset: int | None = None
    mask_size: int | None = None
    extra: str | None = None
    """JSON of what was carried along with it."""


ListedEntry = ListedImage | str
"""An image, or the kind of a file or member that is none: it is counted, not read."""


def escape_name(name: str) -> str:
    """A file's name as Arrow can hold it: bytes that are not UTF-8 are written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class JsonNumber(str):
    """A number of a JSON text, as it is written there: 1.10 stays 1.10, and no digit of a large one is lost."""


parse_json = json.JSONDecoder(parse_float=JsonNumber, parse_int=JsonNumber).decode
"""The content of a JSON text. Raises: ValueError, RecursionError."""


def to_json(value: Any) -> str:
    """A value as JSON; what JSON has no form for (a date, a NaN) as text."""
    if isinstance(value, JsonNumber):
        return value
    if isinstance(value, dict):
        return f"{{{', '.join(f'{to_json(str(key))}: {to_json(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(to_json, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        value = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return json.dumps(value, ensure_ascii=False, default=str)


def to_extra(extra: dict[str, Any]) -> str | None:
    """What goes along with an image as JSON; None for nothing."""
    # JSON can name half of a character, which UTF-8 cannot hold: it stays as it was named.
    return to_json(extra).encode("utf-8", "backslashreplace").decode() if extra else None


class ShardReader(Protocol):
    """The images of one shard, asked for in the order in which they lie there."""

    def read(self, offset: int, size: int) -> bytes: ...


@dataclass(frozen=True)
class ShardFormat:
    """One kind of shard; `index` and `reader` take the store, the shard's path in it, and the config."""

    suffixes: tuple[str, ...]
    index: Callable[[Store, str, SourceConfig], Iterator[ListedEntry]]
    """Every image of a shard, and the kind of each member that is none; a damaged end is the last image's problem."""
    reader: Callable[[Store, str, SourceConfig], ShardReader]
