"""Rows and rejects that tests commit to an output."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from imagemill.pipeline.output.parts import KEYS, columns_as_lists, list_parts, read_parts
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.schema import pack_latent, part_name, reject_schema, result_schema
from imagemill.pipeline.storage import Store

SCHEMA = result_schema({"psnr_db": float}, stores_latent=True)
DAY = datetime(2026, 1, 1, tzinfo=UTC)
Pair = tuple[str, str]


def row(pair: Pair, fence: int = 1, **fields: Any) -> dict[str, Any]:
    symbols = np.full((2, 3, 4), len(pair[0]), np.int8)
    facts = {"orig_width": 32, "orig_height": 24, "psnr_db": 30.0, "encoded_at": DAY}
    return {"image_id": pair[0], "version": pair[1], "fence": fence, **facts, **pack_latent(symbols)} | fields


def put(output: Store, rows: list[dict[str, Any]], name: str | None = None) -> str:
    table = pa.Table.from_pylist(rows, SCHEMA)
    path = f"results/{name or part_name(table)}"
    output.write(path, parquet_bytes(table, 1))
    return path


def reject(output: Store, *pairs: Pair, error_class: str = "BrokenImage") -> None:
    rows = [{"image_id": i, "version": v, "stage": "decode", "error_class": error_class} for i, v in pairs]
    table = pa.Table.from_pylist(rows, reject_schema())
    output.write(f"rejects/{part_name(table)}", parquet_bytes(table, 1))


def pairs_of(output: Store) -> list[Pair]:
    return sorted(zip(*columns_as_lists(read_parts(output, list_parts(output, "results"), KEYS), KEYS), strict=True))
