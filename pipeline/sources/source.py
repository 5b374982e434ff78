"""The types that all sources share: their config, the images they list, and the interface of a shard format."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from imagemill.pipeline.sources.selection import Selection, compile_pattern, select_by
from imagemill.pipeline.storage import Store

UNREADABLE_SHARD = "UnreadableShard"
"""Error class of a shard that its store could not deliver; the next run lists the shard again without `--retry-failed`."""

UNREADABLE_FOLDER = "UnreadableFolder"
"""Error class of a folder that cannot be listed. Every run tries to list it."""

CONTAINER_CLASSES = frozenset({UNREADABLE_FOLDER, UNREADABLE_SHARD, "CutShard", "BadShard", "UnreadColumn"})
"""Error classes of folders and shards that could not be read, or not to their end, so images in them may not be listed."""

SHARD_CHANGED = "ShardChanged"
"""Error class of a shard member whose bytes differ from the digest in the index of the shard."""


class SourceConfig(BaseModel):
    """Which images to read, and how to read shards and manifests. Columns without a name are found by their usual names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include: list[str] = Field(
        default_factory=list,
        description="Read only images whose names match one of these patterns, such as '*.jpg' or albums/2026/.",
    )
    exclude: list[str] = Field(
        default_factory=list, description="Do not read images whose names match one of these patterns, such as drafts/."
    )
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

    @property
    def selection(self) -> Selection:
        """The images that `include` and `exclude` select."""
        return select_by(tuple(self.include), tuple(self.exclude))

    @property
    def reading(self) -> str:
        """JSON of the keys that change what a shard contains, for the identity of its index."""
        return self.model_dump_json(exclude={"include", "exclude"})

    @field_validator("include", "exclude")
    @classmethod
    def check_patterns(cls, patterns: list[str]) -> list[str]:
        """Reject invalid patterns."""
        for pattern in patterns:
            compile_pattern(pattern)
        return patterns


@dataclass(frozen=True)
class ListedImage:
    """One image of an input."""

    rel_path: str
    """Name within the input; SHARD/MEMBER for a member of a shard."""
    size: int
    """Size of the encoded image in bytes; -1 if unknown, for an image behind a URL."""
    etag: str
    """Changes when the image changes: the store's etag of a file, or a digest of the bytes in a shard."""
    path: str
    """The file to read: the image itself, or the shard that contains the image."""
    offset: int | None = None
    """Position in the shard, which only the shard format interprets; None for an image in its own file."""
    base: str | None = None
    """Location that `path` is relative to, if that is not the input; empty for a URL."""
    problem: str | None = None
    """Why the image is rejected without being read, as `Class: reason`; None for a readable image."""
    mask_path: str | None = None
    """The file or shard that contains the mask; None without a mask."""
    mask_offset: int | None = None
    """Position of the mask in its shard, like `offset`."""
    mask_size: int | None = None
    """Size of the mask in bytes."""
    extra: str | None = None
    """JSON object of columns or sidecar files, for the column `extra`."""

    @property
    def error_class(self) -> str | None:
        """The class of `problem`; None for a readable image."""
        return split_problem(self.problem)[0] if self.problem else None


ListedEntry = ListedImage | str
"""An image, or the kind of a file or member that is not an image. Such files are counted and not read."""


def split_problem(problem: str) -> tuple[str, str]:
    """Return the error class and the reason of a `ListedImage.problem`."""
    error_class, _, why = problem.partition(": ")
    return error_class, why


def escape_name(name: str) -> str:
    """Return a file name that Arrow can store: bytes that are not UTF-8 become escape sequences."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class JsonNumber(str):
    """A number as it is written in a JSON text: 1.10 stays 1.10, and large numbers keep all digits."""


parse_json = json.JSONDecoder(parse_float=JsonNumber, parse_int=JsonNumber).decode
"""Parse a JSON text; numbers become JsonNumber. Raises ValueError or RecursionError."""


def to_json(value: Any) -> str:
    """Return a value as JSON. Values without a JSON form, such as dates and NaN, become strings."""
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
    """Return the JSON for the column `extra`; None if there is nothing to store."""
    # A JSON string can contain half of a surrogate pair, which UTF-8 cannot encode. It stays an escape sequence.
    return to_json(extra).encode("utf-8", "backslashreplace").decode() if extra else None


class ShardReader(Protocol):
    """Reads the images of one shard. Requests usually come in the order of the shard."""

    def read(self, offset: int, size: int) -> bytes:
        """Return the encoded image of `size` bytes at `offset` (see `ListedImage.offset`)."""


@dataclass(frozen=True)
class ShardFormat:
    """A shard format: its file suffixes, and two callables that take the store, the path of the shard and the config."""

    suffixes: tuple[str, ...]
    index: Callable[[Store, str, SourceConfig], Iterator[ListedEntry]]
    """List every image of a shard, and the kind of each other member. A damaged shard ends with one entry with a problem."""
    reader: Callable[[Store, str, SourceConfig], ShardReader]
    """Open a shard for reading its images."""
