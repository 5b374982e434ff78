"""A manifest: a CSV, JSON Lines or Parquet file with a column of paths and URLs, the images of anywhere."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from pipeline.errors import ConfigError
from pipeline.sources.source import Listed, SourceConfig, carried
from pipeline.sources.web import WEB
from pipeline.storage import Store
from pipeline.store_failures import STORE_FAILURES, is_damage, reason

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
URI_NAMES = ("uri", "url", "path", "file", "file_name", "filename", "image", "image_url", "source_uri")
USER = re.compile(r"[^/?#]*@")
"""What may stand before the host of an address."""
LOCATED_AT_A_TIME = 10_000
THREADS = 32


def table_of(store: Store, path: str, config: SourceConfig) -> pa.Table:
    """What names an image stays text as it is: `00012` is no number. Raises: ConfigError for a file that cannot be read."""
    texts = {name: pa.string() for name in (*URI_NAMES, config.uri, config.key) if name}
    try:
        with store.fs.open(store.full(path), "rb") as file:
            if path.lower().endswith(".parquet"):
                table = pq.read_table(file)
                # Text that is no UTF-8 would come up when a row is looked at.
                table.validate(full=True)
                return table
            if path.lower().endswith((".csv", ".tsv")):
                parse = pa.csv.ParseOptions(delimiter="\t" if path.lower().endswith(".tsv") else ",")
                convert = pa.csv.ConvertOptions(column_types=texts)
                return pa.csv.read_csv(file, parse_options=parse, convert_options=convert)
            table = pa.json.read_json(file)
            # Only text that was taken for times: a schema refuses numbers, and adds columns that are not there.
            times = [field.name for field in table.schema if field.name in texts and pa.types.is_timestamp(field.type)]
            if times:
                file.seek(0)
                schema = pa.schema([(name, texts[name]) for name in times])
                table = pa.json.read_json(file, parse_options=pa.json.ParseOptions(explicit_schema=schema))
            return table
    except (OSError, pa.ArrowException) as e:
        if not is_damage(e):
            raise
        raise ConfigError(f"input {store.uri(path)}: cannot be read: {' '.join(str(e).split())[:200]}") from None


def uri_column(names: list[str], path: str, config: SourceConfig) -> str:
    """Raises: ConfigError when there is none, or a column that the config names is not there."""
    for key in ("uri", "key"):
        if (name := getattr(config, key)) and name not in names:
            raise ConfigError(f"source.{key} = {name!r}; the columns of {path}: {', '.join(names)}")
    if missing := set(config.carry or ()) - set(names):
        raise ConfigError(f"source.carry = {sorted(missing)}; the columns of {path}: {', '.join(names)}")
    found = config.uri or next((name for name in URI_NAMES if name in names), None)
    if found is None:
        raise ConfigError(f"input {path}: no column of paths or URLs among {', '.join(names)}; name it in source.uri")
    return found


def list_manifest(store: Store, path: str, config: SourceConfig) -> Iterator[Listed]:
    """Every row, in order; what they name is looked at, 32 at a time. Raises: ConfigError for a file that is no manifest."""
    table = table_of(store, path, config)
    uri = uri_column(table.schema.names, path, config)
    columns = list(dict.fromkeys([uri, *([config.key] if config.key else []), *(config.carry or ())]))
    roots = [os.path.realpath(root) for root in (*([store.root] if store.local else []), *config.roots)]

    def look(row: dict[str, Any]) -> Listed:
        text = str(row[uri] or "").strip()
        name = str(row[config.key]) if config.key and row[config.key] is not None else None
        extra = carried({column: row[column] for column in config.carry or ()})
        return located(text, name, extra, store, roots, config)

    rows = (row for batch in table.select(columns).to_batches(LOCATED_AT_A_TIME) for row in batch.to_pylist())
    with ThreadPoolExecutor(THREADS) as pool:
        while some := list(islice(rows, LOCATED_AT_A_TIME)):
            yield from pool.map(look, some)


def located(text: str, name: str | None, extra: str | None, store: Store, roots: list[str], config: SourceConfig) -> Listed:
    """What a row of a manifest names; what may not be read, or is not there, is listed with its problem."""
    scheme, separator, rest = text.partition("://")
    # A row is not to hold what may be a password.
    user = USER.match(rest) if scheme != "file" else None
    if user:
        rest = rest[user.end() :]
        text = f"{scheme}://{rest}"
    # What it is called, be it refused or not: a row makes the reject of the same image good.
    plain = (rest if separator else text).removeprefix("./")

    def refused(problem: str) -> Listed:
        return Listed(name or plain or "empty row", 0, "refused", text, base="", problem=problem, extra=extra)

    if not text:
        return refused("BadName: the row names nothing")
    if user:
        return refused("NotAllowed: an address carries no user and password")
    if separator and scheme in WEB:
        if config.http == "refuse":
            return refused("NotAllowed: http(s) URLs are refused unless source.http is public or any")
        # No request for each URL before the run: what lies there is taken to stay as it is.
        return Listed(name or plain, -1, text, text, base="", extra=extra)
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
    return Listed(name or plain, entry.size, entry.etag, path, base=base.url, extra=extra)
