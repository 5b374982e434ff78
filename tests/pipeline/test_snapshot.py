"""Snapshots: newest rows, rows of one run or day, conditions, parts of older versions."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.output.parts import SUPERSEDED
from imagemill.pipeline.output.snapshot import newest_row_indexes, read_snapshot
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.schema import image_id, part_name, result_schema
from imagemill.pipeline.storage import Store

SCHEMA = result_schema({"psnr_db": float}, stores_latent=True)


def row(name: str, fence: int, **changes: Any) -> dict[str, Any]:
    columns = {"image_id": image_id(name), "rel_path": name, "version": f"v{fence}", "fence": fence, "run_id": f"run{fence}"}
    return (
        columns
        | {"task": "compress", "encoded_at": datetime(2026, 3, fence, 12, tzinfo=UTC), "psnr_db": 30.0 + fence}
        | changes
    )


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def put(output: Store, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> str:
    table = pa.Table.from_pylist(rows, schema)
    path = f"results/{part_name(table)}"
    output.write(path, parquet_bytes(table, 1))
    return path


def newest_fences(output: Store, **selection: Any) -> dict[str, int]:
    tables = read_snapshot(output, **selection).tables(["rel_path", "fence"])
    return {r["rel_path"]: r["fence"] for table in tables for r in table.to_pylist()}


def test_snapshot_errors_name_what_exists(output: Store) -> None:
    assert newest_fences(output, as_of="2026-02-28") == {}
    with pytest.raises(ConfigError, match=r"model small has no rows\. Models with rows: none"):
        read_snapshot(output, model="small")
    models = [{"model_id": name, "checkpoint_sha256": 32 * digit} for name, digit in (("one", "1a"), ("two", "2b"))]
    put(output, [row("a", 2, **models[0]), row("b", 3, **models[1])])
    for selection, message in (
        ({"run": "x"}, "run x has no rows. `imagemill status` lists the runs"),
        ({"model": "one", "run": "x"}, "run x has no rows. `imagemill status` lists the runs"),
        ({"model": "small"}, "model small has no rows. Models with rows: one 1a1a1a1a1a1a1a1a, two 2b2b2b2b2b2b2b2b$"),
        (
            {"as_of": "2026-03-01"},
            r"is as old as --as-of 2026-03-01. The oldest row is of 2026-03-02T12:00:00 \(UTC\)",
        ),
        ({"as_of": "2026-03-02", "model": "2b2b"}, "no row of model 2b2b is as old as --as-of 2026-03-02. The oldest row"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_snapshot(output, **selection)


def test_snapshot_returns_newest_or_selected_rows(output: Store) -> None:
    put(output, [row("a", 1), row("b", 1), row("c", 1)])
    put(output, [row("b", 2), row("d", 2)])
    put(output, [row("a", 3)])
    assert newest_fences(output) == {"a": 3, "b": 2, "c": 1, "d": 2}
    assert (read_snapshot(output).rows, len(read_snapshot(output))) == (6, 4)
    assert newest_fences(output, run="run2") == {"b": 2, "d": 2}
    assert newest_fences(output, as_of="2026-03-01") == {"a": 1, "b": 1, "c": 1}
    assert newest_fences(output, as_of="2026-03-02T12:00:00") == {"a": 1, "b": 2, "c": 1, "d": 2}
    assert newest_fences(output, as_of="2026-03-02T13:59:00+02:00") == {"a": 1, "b": 1, "c": 1}
    for selection_error in ({"as_of": "yesterday"}, {"run": "run7"}):
        with pytest.raises(ConfigError):
            read_snapshot(output, **selection_error)


def test_snapshot_drops_rows_with_overwritten_files(output: Store) -> None:
    file = {"output_uri": "images/x.png", "output_bytes": 9, "output_sha256": "0" * 64}
    put(output, [row("a", 1, **file), row("b", 1), row("c", 1, **file), row("d", 1, **file)])
    put(output, [row("c", 2, **file)])
    fence_table = pa.table({"image_id": [image_id(n) for n in "abc"], "fence": [2] * 3})
    output.write(f"runs/20260302T000000Z-abcdef/{SUPERSEDED}", parquet_bytes(fence_table, 1))
    assert newest_fences(output) == {"b": 1, "c": 2, "d": 1}
    assert read_snapshot(output).waiting == 1
    assert newest_fences(output, as_of="2026-03-01") == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert newest_fences(output, as_of="2026-03-02") == {"b": 1, "c": 2, "d": 1}


def test_snapshot_refuses_damaged_claims(output: Store) -> None:
    put(output, [row("a", 1, output_uri="images/x.png", output_bytes=9, output_sha256="0" * 64)])
    output.write(f"runs/20260302T000000Z-abcdef/{SUPERSEDED}", b"PAR1")
    with pytest.raises(StorageError, match=f"{SUPERSEDED}: damaged .*Restore it"):
        read_snapshot(output)


def test_snapshot_where_filters_rows(output: Store) -> None:
    put(output, [row("a", 1), row("b", 2)])
    put(output, [row("it's", 3)])
    whole = read_snapshot(output)
    assert len(whole.where("psnr_db >= 32")) == 2
    assert [t["rel_path"].to_pylist() for t in whole.where("rel_path = 'it''s'").tables(["rel_path"])] == [["it's"]]
    assert len(whole.where("PSNR_DB < (SELECT avg(psnr_db) FROM rows) -- below the mean")) == 1
    assert len(whole.where("false")) == 0
    for condition in (
        "psnr > 3",
        "psnr_db >",
        "1); DROP TABLE rows",
        "psnr_db = 'x'",
        "exists (from read_text('/etc/hostname'))",
    ):
        with pytest.raises(ConfigError, match="--where") as error:
            whole.where(condition)
        assert "\n" not in str(error.value)


def test_snapshot_fills_missing_columns_with_null(output: Store) -> None:
    older = pa.schema([field for field in SCHEMA if field.name not in ("latent_payload", "parameters")])
    put(output, [row("a", 1)], older)
    put(output, [row("b", 1, parameters="{}")])
    tables = pa.concat_tables(read_snapshot(output).tables(["rel_path", "parameters", "latent_payload"]))
    assert dict(zip(tables["rel_path"].to_pylist(), tables["parameters"].to_pylist(), strict=True)) == {"a": None, "b": "{}"}
    with pytest.raises(ConfigError, match=r"no column colour\. Its columns: image_id"):
        next(read_snapshot(output).tables(["colour"]))


def test_snapshot_of_empty_output_and_of_foreign_part(output: Store) -> None:
    assert len(read_snapshot(output)) == 0
    path = put(output, [row("a", 1) | {"image_id": "no identity"}])
    with pytest.raises(StorageError, match=path):
        read_snapshot(output)
    output.write(path, b"PAR1")
    with pytest.raises(StorageError, match=path):
        read_snapshot(output)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=12))
@settings(max_examples=100)
def test_newest_row_has_highest_token_then_time(rows: list[tuple[int, int, int]]) -> None:
    keys, fence, encoded = (np.array(column, np.int64) for column in zip(*rows, strict=True)) if rows else [np.empty(0)] * 3
    newest_places: dict[int, int] = {}
    for place, (key, *age) in enumerate(rows):
        if key not in newest_places or tuple(age) > rows[newest_places[key]][1:]:
            newest_places[key] = place
    assert newest_row_indexes([keys], fence, encoded).tolist() == sorted(newest_places.values())
