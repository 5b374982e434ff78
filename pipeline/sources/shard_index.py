"""Indexes of shards: what each shard contains, stored in OUTPUT so that an unchanged shard is not read again."""

import hashlib
import json
import logging
from collections import Counter
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.pipeline.sources.folder import reject_unreadable
from imagemill.pipeline.sources.source import UNREADABLE_SHARD, ListedEntry, ListedImage, ShardFormat, SourceConfig
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures
from imagemill.pipeline.store_listing import Entry

log = logging.getLogger("imagemill.run")
FOLDER = "shards"
"""Folder in OUTPUT with one index per shard, named after a hash of the shard's path and the source config."""
INDEX_SCHEMA = pa.schema(
    [
        ("rel_path", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("base", pa.string()),
        ("problem", pa.string()),
        ("extra", pa.string()),
    ]
)
OTHER_KINDS_KEY = b"others"
"""Metadata key of an index: JSON with the number of members of each kind that are not images."""
SHARD_STATE_KEY = b"state"
"""Metadata key of an index: INDEX_VERSION, and the etag and size of the shard when it was indexed."""
INDEX_VERSION = 3
"""Raise this number if the index of a shard changes, so that older indexes are made again."""


def index_shard(
    form: ShardFormat, store: Store, config: SourceConfig, shard: Entry, output: Store | None, store_index: bool
) -> list[ListedEntry]:
    """List the contents of a shard, from its index in OUTPUT or by reading the shard.

    Args:
        form: the format of the shard.
        store: the location of the input.
        config: how to read shards.
        shard: the file of the shard.
        output: the OUTPUT, if there is one.
        store_index: whether to write an index that is missing or outdated.

    Returns:
        The images, and the kind of each other member. A shard that its store cannot deliver is one rejected image.
    """
    if rejected := reject_unreadable(shard, UNREADABLE_SHARD):
        return [rejected]
    identity = f"{shard.path}\n{config.reading}"
    path = f"{FOLDER}/{hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()}.parquet"
    state = f"{INDEX_VERSION}\n{shard.etag}\n{shard.size}".encode()
    if output and (entries := read_index(output, path, state)) is not None:
        return entries
    try:
        entries = list(form.index(store, shard.path, config))
    except store_failures() as e:
        problem = f"{UNREADABLE_SHARD}: {reason(e)}"
        return [ListedImage(shard.path, shard.size, shard.etag, shard.path, problem=problem)]
    if output and store_index:
        write_index(output, path, state, entries)
    return entries


def read_index(output: Store, path: str, state: bytes) -> list[ListedEntry] | None:
    """Read an index; return None if it is missing, damaged or of another state of the shard."""
    if not output.exists(path):
        return None
    data = output.read(path)
    try:
        table = pq.read_table(pa.BufferReader(data))
        metadata = table.schema.metadata
        if metadata[SHARD_STATE_KEY] != state:
            return None
        kinds = Counter[str](json.loads(metadata[OTHER_KINDS_KEY]))
        return [*(ListedImage(**row) for row in table.to_pylist()), *kinds.elements()]
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError):
        log.warning("%s: the index is damaged; the shard is read again", output.uri(path))
        return None


def write_index(output: Store, path: str, state: bytes, entries: list[ListedEntry]) -> None:
    """Write the index of a shard."""
    images = [asdict(entry) for entry in entries if isinstance(entry, ListedImage)]
    kinds = Counter(entry for entry in entries if isinstance(entry, str))
    metadata = {OTHER_KINDS_KEY: json.dumps(kinds).encode(), SHARD_STATE_KEY: state}
    table = pa.Table.from_pylist(images, INDEX_SCHEMA.with_metadata(metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    output.write(path, sink.getvalue().to_pybytes())


def delete_indexes(output: Store) -> None:
    """Delete all indexes, so that the next listing reads the shards again."""
    for entry in list(output.entries(FOLDER)):
        output.delete(entry.path)
