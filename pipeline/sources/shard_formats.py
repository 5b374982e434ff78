"""The formats of shards."""

from imagemill.pipeline.sources import parquet, tar
from imagemill.pipeline.sources.source import ShardFormat

FORMATS: dict[str, ShardFormat] = {"parquet": parquet.FORMAT, "tar": tar.FORMAT}


def shard_format(path: str) -> ShardFormat | None:
    return next((form for form in FORMATS.values() if path.lower().endswith(form.suffixes)), None)
