"""A manifest: a CSV, JSON Lines or Parquet file with a column of paths and URLs, the images of anywhere.

CSV and JSON Lines are read as text, row by row: no value is taken for a number, and no column that is not asked for matters.
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
from imagemill.pipeline.sources.parquet_columns import check_carry, check_columns_exist, check_key, describe_columns, is_text
from imagemill.pipeline.sources.source import JsonNumber, ListedImage, SourceConfig, parse_json, to_extra, to_json
from imagemill.pipeline.sources.web import WEB_SCHEMES
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, is_damage, reason

URI_NAMES = ("uri", "url", "path", "file", "file_name", "filename", "image", "image_url", "source_uri")
USER_INFO = re.compile(r"[^/?#]*@")
"""What may stand before the host of an address."""
MAX_URI_CHARACTERS = 4096
"""Characters of a path or URL; what is longer is something else, such as the bytes of an image as text."""
LOCATED_AT_A_TIME = 10_000
THREADS = 32
Row = dict[str, Any]


def read_csv_rows(store: Store, path: str, config: SourceConfig) -> Iterator[Row]:
    """Every row of a CSV or TSV file, all values as the text that stands there. Raises: ConfigError, ValueError."""
    data = store.read(path)
    # The module's limit of 128 kB a field is one of the whole process, and none of a manifest.
    csv.field_size_limit(max(len(data), csv.field_size_limit()))
    # Programs of Windows begin a file with a mark, and some write UTF-16.
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    text = io.TextIOWrapper(io.BytesIO(data), encoding, newline="")
    lines = csv.reader(text, delimiter="\t" if path.lower().endswith(".tsv") else ",", strict=True)
    try:
        names = next(filter(None, lines), [])
        if not names:
            raise ConfigError(f"input {path}: it is empty: a first line with the names of columns is expected")
        check_columns(names, path, config)
        for values in filter(None, lines):
            if len(values) != len(names):
                raise ValueError(f"{len(values)} values, and {len(names)} columns: put values with commas in quotes")
            yield dict(zip(names, values, strict=True))
    except UnicodeDecodeError:
        raise ValueError(f"{encoding.removesuffix('-sig').upper()} is expected: save the file as UTF-8") from None
    except (csv.Error, ValueError) as e:
        raise ValueError(f"line {lines.line_num:,}: {describe_error(e)}") from None


def read_json_rows(store: Store, path: str, config: SourceConfig) -> Iterator[Row]:
    """Every object of a JSON Lines file; one may lack columns that others have. Raises: ConfigError, ValueError."""
    data = store.read(path)

    def objects() -> Iterator[Row]:
        for number, line in enumerate(io.BytesIO(data), 1):
            try:
                if text := line.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                    row = parse_json(text)
                    if not isinstance(row, dict):
                        raise ValueError("an object is expected")
                    yield row
            except (ValueError, RecursionError) as e:
                raise ValueError(f"line {number:,}: {describe_error(e)}") from None

    names = list(dict.fromkeys(name for row in objects() for name in row))
    if names:
        check_columns(names, path, config)
    yield from objects()


def read_parquet_rows(store: Store, path: str, config: SourceConfig) -> Iterator[Row]:
    """Every row of a Parquet file. Raises: ConfigError, OSError, pa.ArrowException, UnicodeError."""
    with store.fs.open(store.full(path), "rb") as file:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        check_columns(schema.names, path, config)
        check_carry(schema, path, config.carry or [])
        if config.key:
            check_key(schema, path, config.key)
        uris = uri_columns(schema.names, config)
        texts = [name for name in uris if is_text(schema.field(name).type)]
        if not texts:
            raise ConfigError(
                f"input {path}: a column of paths or URLs is of text, and not {describe_columns(schema, uris)}"
            )
        wanted = dict.fromkeys([texts[0], *([config.key] if config.key else []), *(config.carry or ())])
        for batch in parquet.iter_batches(LOCATED_AT_A_TIME, columns=list(wanted)):
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
    """Return the rows of a manifest of any format. Raises: ConfigError, ValueError, OSError, pa.ArrowException."""
    read = next(read for suffix, read in MANIFEST_FORMATS.items() if path.lower().endswith(suffix))
    return read(store, path, config)


def check_columns(names: list[str], path: str, config: SourceConfig) -> None:
    """Raises: ConfigError for a column that the config names and that is not there, or twice; and without one of paths."""
    for key, asked in (("uri", [config.uri]), ("key", [config.key]), ("carry", config.carry or [])):
        check_columns_exist(names, path, key, [name for name in asked if name])
    uris = uri_columns(names, config)
    if not uris:
        raise ConfigError(f"input {path}: no column of paths or URLs among {', '.join(names)}; name it in source.uri")
    if names.count(uris[0]) > 1:
        raise ConfigError(f"input {path}: several columns are called {uris[0]}: rename them")


def uri_columns(names: list[str], config: SourceConfig) -> list[str]:
    """The columns that may hold paths and URLs, the likeliest first."""
    return [name for name in ([config.uri] if config.uri else URI_NAMES) if name in names]


def describe_error(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return "a quote is opened and never closed" if text == "unexpected end of data" else text


def list_manifest(store: Store, path: str, config: SourceConfig) -> Iterator[ListedImage]:
    """Every row, in order; what they name is looked at, 32 at a time. Raises: ConfigError for a file that is no manifest."""
    roots = [os.path.realpath(root) for root in (*([store.root] if store.local else []), *config.roots)]

    def look(row: Row) -> ListedImage:
        uri = next((row[name] for name in uri_columns(list(row), config) if row[name] not in (None, "")), "")
        name = row.get(config.key) if config.key else None
        extra = to_extra({column: row.get(column) for column in config.carry or ()})
        text = uri.strip() if isinstance(uri, str) and not isinstance(uri, JsonNumber) else uri
        return locate_image(text, None if name is None else key_text(name), extra, store, roots, config)

    def rows() -> Iterator[Row]:
        try:
            yield from read_rows(store, path, config)
        except (OSError, ValueError, pa.ArrowException) as e:
            if isinstance(e, OSError) and not is_damage(e):
                raise
            raise ConfigError(f"input {store.uri(path)}: cannot be read: {describe_error(e)}") from None

    listed = rows()
    with ThreadPoolExecutor(THREADS) as pool:
        while some := list(islice(listed, LOCATED_AT_A_TIME)):
            yield from pool.map(look, some)


def key_text(value: Any) -> str:
    """What a key calls an image."""
    return value if isinstance(value, str) else to_json(value) if isinstance(value, dict | list) else str(value)


def locate_image(
    text: Any, name: str | None, extra: str | None, store: Store, roots: list[str], config: SourceConfig
) -> ListedImage:
    """What a row of a manifest names; what may not be read, or is not there, is listed with its problem."""
    if not isinstance(text, str) or isinstance(text, JsonNumber) or len(text) > MAX_URI_CHARACTERS:
        shown = to_json(text)
        what = f"{len(shown):,} characters" if isinstance(text, str) and len(shown) > MAX_URI_CHARACTERS else "no text"
        shown = shown[:60]
        problem = f"BadName: a path or URL is expected, not {what}: {shown}"
        return ListedImage(name or shown, 0, "refused", "", base="", problem=problem, extra=extra)
    scheme, separator, rest = text.partition("://")
    # A row is not to hold what may be a password.
    user = USER_INFO.match(rest) if scheme != "file" else None
    if user:
        rest = rest[user.end() :]
        text = f"{scheme}://{rest}"
    # What it is called, be it refused or not: a row makes the reject of the same image good.
    plain = (rest if separator else text).removeprefix("./")

    def refused(problem: str) -> ListedImage:
        return ListedImage(name or plain or "empty row", 0, "refused", text, base="", problem=problem, extra=extra)

    if not text:
        return refused("BadName: the row names nothing")
    if user:
        return refused("NotAllowed: an address carries no user and password")
    if separator and scheme in WEB_SCHEMES:
        if config.http == "refuse":
            return refused("NotAllowed: http(s) URLs are refused unless source.http is public or any")
        # No request for each URL before the run: what lies there is taken to stay as it is.
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
                return refused(f"NotAllowed: {text} lies outside the manifest's folder; name its folder in source.roots")
            base, path = Store(root), os.path.relpath(real, root)
            plain = path if PurePosixPath(plain).is_absolute() else plain
        else:
            return refused(f"NotAllowed: the scheme {scheme} is not one of file, s3, http, https")
        entry = base.entry(path)
    except FileNotFoundError:
        return refused("FileNotFound: it is not there")
    except (ConfigError, ValueError, *STORE_FAILURES) as e:
        return refused(f"NotReadable: {reason(e)}")
    return ListedImage(name or plain, entry.size, entry.etag, path, base=base.url, extra=extra)
