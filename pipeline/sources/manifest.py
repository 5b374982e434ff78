"""Manifests: CSV, JSON Lines or Parquet files with a column of paths and URLs of images.

CSV and JSON Lines are read as text, row by row: values never become numbers, and columns that are not needed are ignored.
"""

import codecs
import csv
import io
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.sources.addresses import WEB_SCHEMES
from imagemill.pipeline.sources.parquet_columns import check_carry, check_columns_exist, check_key, describe_columns, is_text
from imagemill.pipeline.sources.source import JsonNumber, ListedImage, SourceConfig, parse_json, to_extra, to_json
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import is_damage, reason, store_failures

URI_NAMES = ("uri", "url", "path", "file", "file_name", "filename", "image", "image_url", "source_uri")
USER_INFO = re.compile(r"[^/?#]*@")
"""User and password before the host of a URL."""
MAX_URI_CHARACTERS = 4096
"""Maximum length of a path or URL. A longer value is something else, such as the bytes of an image as text."""
LOCATED_AT_A_TIME = 10_000
"""Rows that are read before their images are looked up."""
THREADS = 32
"""Images that are looked up at the same time."""
Row = dict[str, Any]


def read_csv_rows(store: Store, path: str, config: SourceConfig) -> Iterator[Row]:
    """Yield every row of a CSV or TSV file. All values are text.

    Raises:
        ConfigError: when the file is empty or its columns do not match the config.
        ValueError: when the file is not valid CSV; the message names the line.
    """
    data = store.read(path)
    # The csv module's limit of 128 kB per field is a setting of the whole process. A manifest may exceed it.
    csv.field_size_limit(max(len(data), csv.field_size_limit()))
    # Windows programs write a byte order mark, and some of them UTF-16.
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    text = io.TextIOWrapper(io.BytesIO(data), encoding, newline="")
    lines = csv.reader(text, delimiter="\t" if path.lower().endswith(".tsv") else ",", strict=True)
    try:
        names = next(filter(None, lines), [])
        if not names:
            raise ConfigError(f"input {path}: the file is empty. The first line must contain the names of the columns")
        check_columns(names, path, config)
        for values in filter(None, lines):
            if len(values) != len(names):
                raise ValueError(f"{len(values)} values for {len(names)} columns. Put values with commas in quotes")
            yield dict(zip(names, values, strict=True))
    except UnicodeDecodeError:
        raise ValueError(f"not valid {encoding.removesuffix('-sig').upper()}. Save the file as UTF-8") from None
    except (csv.Error, ValueError) as e:
        raise ValueError(f"line {lines.line_num:,}: {describe_error(e)}") from None


def read_json_rows(store: Store, path: str, config: SourceConfig) -> Iterator[Row]:
    """Yield every object of a JSON Lines file. Objects may lack columns that others have.

    Raises:
        ConfigError: when the columns do not match the config.
        ValueError: when a line is not a JSON object; the message names the line.
    """
    data = store.read(path)

    def parse_lines() -> Iterator[Row]:
        for number, line in enumerate(io.BytesIO(data), 1):
            try:
                if text := line.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                    row = parse_json(text)
                    if not isinstance(row, dict):
                        raise ValueError("an object is expected")
                    yield row
            except (ValueError, RecursionError) as e:
                raise ValueError(f"line {number:,}: {describe_error(e)}") from None

    names = list(dict.fromkeys(name for row in parse_lines() for name in row))
    if names:
        check_columns(names, path, config)
    yield from parse_lines()


def read_parquet_rows(store: Store, path: str, config: SourceConfig) -> Iterator[Row]:
    """Yield every row of a Parquet file, with the columns that are needed.

    Raises:
        ConfigError: when the columns do not match the config, or no column of paths is text.
        OSError, pa.ArrowException, UnicodeError: when the file cannot be read.
    """
    with store.open(path) as file:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        check_columns(schema.names, path, config)
        check_carry(schema, path, config.carry or [])
        if config.key:
            check_key(schema, path, config.key)
        uris = uri_columns(schema.names, config)
        texts = [name for name in uris if is_text(schema.field(name).type)]
        if not texts:
            described = describe_columns(schema, uris)
            raise ConfigError(f"input {path}: {described}: a column of paths or URLs must be text")
        selected = dict.fromkeys([texts[0], *([config.key] if config.key else []), *(config.carry or ())])
        for batch in parquet.iter_batches(LOCATED_AT_A_TIME, columns=list(selected)):
            yield from batch.to_pylist()


MANIFEST_FORMATS: dict[str, Callable[[Store, str, SourceConfig], Iterator[Row]]] = {
    ".csv": read_csv_rows,
    ".jsonl": read_json_rows,
    ".ndjson": read_json_rows,
    ".parquet": read_parquet_rows,
    ".tsv": read_csv_rows,
}
"""The function that reads the rows of a manifest, by the suffix of its name."""


def is_manifest(path: str) -> bool:
    """Return whether a path has the suffix of a manifest."""
    return path.lower().endswith(tuple(MANIFEST_FORMATS))


def read_rows(store: Store, path: str, config: SourceConfig) -> Iterator[Row]:
    """Yield the rows of a manifest of any format.

    Raises:
        ConfigError: when the manifest is invalid or its columns do not match the config.
        OSError: when the store cannot deliver the file.
    """
    read = next(read for suffix, read in MANIFEST_FORMATS.items() if path.lower().endswith(suffix))
    try:
        yield from read(store, path, config)
    except (OSError, ValueError, pa.ArrowException) as e:
        if isinstance(e, OSError) and not is_damage(e):
            raise
        raise ConfigError(f"input {store.uri(path)}: cannot be read: {describe_error(e)}") from None


def check_columns(names: list[str], path: str, config: SourceConfig) -> None:
    """Check that a manifest has the configured columns and a column of paths or URLs.

    Raises:
        ConfigError: when a column is missing or its name occurs twice.
    """
    for key, configured in (("uri", [config.uri]), ("key", [config.key]), ("carry", config.carry or [])):
        check_columns_exist(names, path, key, [name for name in configured if name])
    uris = uri_columns(names, config)
    if not uris:
        raise ConfigError(f"input {path}: no column of paths or URLs among {', '.join(names)}. Name it in source.uri")
    if names.count(uris[0]) > 1:
        raise ConfigError(f"input {path}: several columns are called {uris[0]}. Rename them")


def uri_columns(names: list[str], config: SourceConfig) -> list[str]:
    """Return the columns that may hold paths and URLs, the likeliest first."""
    return [name for name in ([config.uri] if config.uri else URI_NAMES) if name in names]


def describe_error(error: Exception) -> str:
    """Return the message of an error as one short line."""
    text = " ".join(str(error).split())[:200]
    return "a quote is opened and never closed" if text == "unexpected end of data" else text


def list_manifest(store: Store, path: str, config: SourceConfig) -> Iterator[ListedImage]:
    """List the image of every row, in order. Several images are looked up at the same time.

    Raises:
        ConfigError: when the file is not a valid manifest.
    """
    roots = [os.path.realpath(root) for root in (*([store.root] if store.local else []), *config.roots)]

    def locate(row: Row) -> ListedImage:
        uri = next((row[name] for name in uri_columns(list(row), config) if row[name] not in (None, "")), "")
        key = row.get(config.key) if config.key else None
        extra = to_extra({column: row.get(column) for column in config.carry or ()})
        text = uri.strip() if isinstance(uri, str) and not isinstance(uri, JsonNumber) else uri
        return locate_image(text, None if key is None else key_text(key), extra, store, roots, config)

    rows = read_rows(store, path, config)
    with ThreadPoolExecutor(THREADS) as pool:
        while batch := list(islice(rows, LOCATED_AT_A_TIME)):
            yield from pool.map(locate, batch)


def key_text(value: Any) -> str:
    """Return the value of a key column as the name of an image."""
    return value if isinstance(value, str) else to_json(value) if isinstance(value, dict | list) else str(value)


def locate_image(
    text: Any, name: str | None, extra: str | None, store: Store, roots: list[str], config: SourceConfig
) -> ListedImage:
    """Look up the image that a row of a manifest names.

    Args:
        text: the path or URL, or any other value that the row has in its place.
        name: name of the image from the key column; None to use the path.
        extra: as `ListedImage.extra`.
        store: the location of the manifest.
        roots: local folders that paths may lead to, with links resolved.
        config: how to read the manifest.

    Returns:
        The image. An image that does not exist or may not be read is listed with its problem.
    """
    if not isinstance(text, str) or isinstance(text, JsonNumber) or len(text) > MAX_URI_CHARACTERS:
        shown = to_json(text)
        kind = f"{len(shown):,} characters" if isinstance(text, str) and len(shown) > MAX_URI_CHARACTERS else "no text"
        shown = shown[:60]
        problem = f"BadName: a path or URL is expected, not {kind}: {shown}"
        return ListedImage(name or shown, 0, "refused", "", base="", problem=problem, extra=extra)
    scheme, separator, rest = text.partition("://")
    # The text before the host may contain a password, so it must not get into a row.
    user = USER_INFO.match(rest) if scheme != "file" else None
    if user:
        rest = rest[user.end() :]
        text = f"{scheme}://{rest}"
    # A refused image gets the same name as an accepted one, so that a later row replaces its reject.
    plain = (rest if separator else text).removeprefix("./")

    def refuse(problem: str) -> ListedImage:
        return ListedImage(name or plain or "empty row", 0, "refused", text, base="", problem=problem, extra=extra)

    if not text:
        return refuse("BadName: the row has no path or URL")
    if user:
        return refuse("NotAllowed: a URL must not contain a user and password")
    if separator and scheme in WEB_SCHEMES:
        if config.http == "refuse":
            return refuse("NotAllowed: http(s) URLs are refused unless source.http is public or any")
        # Requesting each URL before the run would take too long, so the URL is also the etag: its content must not change.
        return ListedImage(name or plain, -1, text, text, base="", extra=extra)
    try:
        if scheme == "s3" and separator:
            bucket, _, key = rest.partition("/")
            base, path = Store(f"s3://{bucket}", store.config), key
        elif not separator and not store.local:
            base, path = store, text
        elif not separator or scheme == "file":
            real = os.path.realpath(os.path.join(store.root, rest if separator else text))
            root = next((root for root in roots if real.startswith(os.path.join(root, ""))), None)
            if root is None:
                return refuse(f"NotAllowed: {text} is outside the manifest's folder. Add its folder to source.roots")
            base, path = Store(root), os.path.relpath(real, root)
            plain = path if PurePosixPath(plain).is_absolute() else plain
        else:
            return refuse(f"NotAllowed: the scheme {scheme} is not one of file, s3, http, https")
        entry = base.entry(path)
    except FileNotFoundError:
        return refuse("FileNotFound: the file does not exist")
    except store_failures(ConfigError, ValueError) as e:
        return refuse(f"NotReadable: {reason(e)}")
    return ListedImage(name or plain, entry.size, entry.etag, path, base=base.url, extra=extra)
