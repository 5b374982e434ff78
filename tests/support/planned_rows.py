"""Committed rows by path and ETag, for tests of the plan."""

from typing import Any

import pyarrow as pa

from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.schema import image_id, part_name, reject_schema, result_schema, version_of
from imagemill.pipeline.storage import Store

SHA, PARAMS = "c" * 64, {"step": 32.0}


def etags(source: Store) -> dict[str, str]:
    return {e.path: e.etag for e in source.entries()}


def put(output: Store, folder: str, rows: list[dict[str, Any]]) -> None:
    schema = result_schema({"psnr_db": float}, stores_latent=True) if folder == "results" else reject_schema()
    table = pa.Table.from_pylist(rows, schema)
    output.write(f"{folder}/{part_name(table)}", parquet_bytes(table, 1))


def key(path: str, etag: str, sha: str = SHA, params: dict[str, Any] = PARAMS) -> dict[str, Any]:
    return {"image_id": image_id(path), "version": version_of(sha, params)(etag), "rel_path": path}
