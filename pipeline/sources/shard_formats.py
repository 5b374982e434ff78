"""The table of shard formats. To add a format, write its file and add one row here."""

from imagemill.pipeline.sources import arrow, parquet, tar
from imagemill.pipeline.sources.source import ShardFormat

SHARD_FORMATS: dict[str, ShardFormat] = {
    "arrow": arrow.FORMAT,
    "parquet": parquet.FORMAT,
    "tar": tar.FORMAT,
}
"""Everything else looks shards up here: listings, workers, the check of INPUT, and the messages that name valid files."""


def shard_format(path: str) -> ShardFormat | None:
    """Return the format of the shard at a path, by its suffix; None if the file is not a shard."""
    name = path.lower()
    for form in SHARD_FORMATS.values():
        if name.endswith(form.suffixes):
            return form
    return None


def shard_suffixes() -> tuple[str, ...]:
    """Return the suffixes of all shard formats."""
    return tuple(suffix for form in SHARD_FORMATS.values() for suffix in form.suffixes)
