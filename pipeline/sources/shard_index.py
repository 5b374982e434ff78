"""What each shard of an input holds, output in OUTPUT."""

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
from imagemill.pipeline.store_failures import STORE_FAILURES, reason
from imagemill.pipeline.store_listing import Entry

log = logging.getLogger("imagemill.run")
FOLDER = "shards"
"""Below OUTPUT: what each shard was found to hold, by its path, so that no night opens it again before it changes."""
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
"""JSON of how many members of each kind a shard has that are no images, in an index's metadata."""
SHARD_STATE_KEY = b"state"
"""Version of the index, etag and size of the shard that it is of, in its metadata."""
INDEX_VERSION = 2
"""Raised when shards are found to hold more, or other things, than before: older indexes are made anew."""


def index_shard(
    form: ShardFormat, store: Store, config: SourceConfig, entry: Entry, output: Store | None, store_indexes: bool
) -> list[ListedEntry]:
    """What a shard holds, by its index in OUTPUT, or by reading it."""
    if problem := reject_unreadable(entry):
        return [problem]
    identity = f"{entry.path}\n{config.model_dump_json()}"
    state = f"{INDEX_VERSION}\n{entry.etag}\n{entry.size}".encode()
    path = f"{FOLDER}/{hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()}.parquet"
    if output and output.exists(path):
        data = output.read(path)
        try:
            table = pq.read_table(pa.BufferReader(data))
            about = table.schema.metadata
            if about[SHARD_STATE_KEY] == state:
                kinds = Counter[str](json.loads(about[OTHER_KINDS_KEY]))
                return [*(ListedImage(**row) for row in table.to_pylist()), *kinds.elements()]
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError):
            log.warning("%s: damaged; the shard is read again", output.uri(path))
    try:
        found = list(form.index(store, entry.path, config))
    except STORE_FAILURES as e:
        return [ListedImage(entry.path, entry.size, entry.etag, entry.path, problem=f"{UNREADABLE_SHARD}: {reason(e)}")]
    if output and store_indexes:
        images = [asdict(image) for image in found if isinstance(image, ListedImage)]
        others = Counter(kind for kind in found if isinstance(kind, str))
        metadata = {OTHER_KINDS_KEY: json.dumps(others).encode(), SHARD_STATE_KEY: state}
        table = pa.Table.from_pylist(images, INDEX_SCHEMA.with_metadata(metadata))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        output.write(path, sink.getvalue().to_pybytes())
    return found


def delete_indexes(output: Store) -> None:
    """Throw away what shards were found to hold, so that the next listing opens them again."""
    for entry in list(output.entries(FOLDER)):
        output.delete(entry.path)
