import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from imagemill.models.entropy_fitting import fit_entropy_model
from imagemill.pipeline.output.latent_symbols import iterate_latent_rows, read_latent
from imagemill.pipeline.output.run_history import RUN_ID
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.schema import (
    LatentError,
    image_id,
    new_run_id,
    pack_latent,
    part_name,
    reject_schema,
    result_schema,
    row_schema,
    unpack_latent,
    version_of,
)

SYMBOLS = hnp.arrays(np.int8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9), elements=st.integers(-128, 127))
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


def row(number: int, shape: tuple[int, int, int] = (4, 3, 5)) -> dict[str, Any]:
    symbols = np.random.default_rng(number).integers(-128, 128, shape).astype(np.int8)
    return {
        "image_id": image_id(f"{number}.jpg"),
        "version": version_of("abc", {})(f"etag {number}"),
        "source_uri": f"s3://bucket/ü/{number}.jpg",
        "rel_path": f"ü/{number}.jpg",
        "source_etag": f"etag {number}",
        "content_sha256": f"{number:064x}",
        "orig_width": 40 + number,
        "orig_height": 24,
        "exif_orientation": 6,
        "has_alpha": number % 2 == 0,
        "bit_depth": 8,
        "frames": 1,
        "task": "compress",
        "fence": 7,
        "encoded_at": datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
        "psnr_db": 30.5 + number,
        **pack_latent(symbols),
    }


def table_of(numbers: list[int]) -> pa.Table:
    return pa.Table.from_pylist([row(n) for n in numbers], result_schema({"psnr_db": float}, stores_latent=True))


@given(SYMBOLS)
def test_latent_round_trip_is_exact(symbols: np.ndarray) -> None:
    packed = pack_latent(symbols)
    unpacked = unpack_latent(packed["latent"], packed["latent_shape"], packed["latent_crc32"])
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, symbols)


@given(SYMBOLS)
def test_latent_round_trip_of_strided_arrays(symbols: np.ndarray) -> None:
    transposed = symbols.transpose(2, 0, 1)
    packed = pack_latent(transposed)
    np.testing.assert_array_equal(
        unpack_latent(packed["latent"], packed["latent_shape"], packed["latent_crc32"]), transposed
    )


@given(SYMBOLS, st.data())
def test_latent_checksum_detects_a_flipped_bit(symbols: np.ndarray, data: st.DataObject) -> None:
    packed = pack_latent(symbols)
    stored_latent = packed["latent"].copy()
    stored_latent[data.draw(st.integers(0, stored_latent.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(LatentError, match="crc32"):
        unpack_latent(stored_latent, packed["latent_shape"], packed["latent_crc32"])


@pytest.mark.parametrize("shape", [[2, 3, 5], [2, 3, 3], [2, 3], []], ids=str)
def test_latent_of_another_size_is_detected(shape: list[int]) -> None:
    packed = pack_latent(np.zeros((2, 3, 4), np.int8))
    with pytest.raises(LatentError, match="24 values"):
        unpack_latent(packed["latent"], shape, packed["latent_crc32"])


@given(st.dictionaries(st.text(max_size=5), SCALAR | st.dictionaries(st.text(max_size=3), SCALAR, max_size=3), max_size=5))
def test_version_ignores_parameter_order(parameters: dict[str, Any]) -> None:
    reordered_rows = {
        k: dict(reversed(list(v.items()))) if isinstance(v, dict) else v for k, v in reversed(list(parameters.items()))
    }
    assert version_of("digest", parameters)("etag") == version_of("digest", reordered_rows)("etag")


def test_version_changes_with_each_of_its_inputs() -> None:
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("e", "d", {"step": 32.0}),
        ("f", "d", {"step": 32.0}),
        ("e", "f", {"step": 32.0}),
        ("e", "d", {"step": 33.0}),
        ("e", "d", {"step": None}),
        ("e", "d", {"step": 32.0, "task": "x"}),
        ("e", "d", {}),
        ("ed", "", {}),
        ("", "ed", {}),
    ]
    assert len({version_of(sha, params)(etag) for etag, sha, params in calls}) == len(calls)


def test_image_ids_are_128_bit_and_stable() -> None:
    # Committed outputs contain these values. If one changed, every image of every output would be processed again.
    assert image_id("a/b.jpg") == "d60cd1dd0407a8c3e0ad03553f1d13ea"
    assert version_of("d", {"step": 32.0, "a": None})("e") == "07152b8d22827b28d8fcfc246280907e"


@given(st.permutations(range(6)))
@settings(max_examples=30)
def test_part_name_ignores_row_order(order: list[int]) -> None:
    assert part_name(table_of(order)) == part_name(table_of(list(range(6))))


def test_part_name_changes_with_rows() -> None:
    names = [part_name(table_of(numbers)) for numbers in ([0], [1], [0, 1], [0, 1, 2], [0, 0, 1])]
    assert len(set(names)) == len(names)


def test_part_name_ignores_other_columns() -> None:
    table = table_of([1, 2])
    assert part_name(table.drop_columns(["latent", "psnr_db"])) == part_name(table)


@pytest.mark.parametrize("level", [1, 19])
def test_part_reads_equal_in_arrow_and_duckdb(tmp_path: Path, level: int) -> None:
    table = table_of([0, 1, 2])
    path = tmp_path / part_name(table)
    path.write_bytes(parquet_bytes(table, level))
    latents = [row(n)["latent"].tolist() for n in range(3)]
    shared = ["image_id", "rel_path", "orig_width", "has_alpha", "psnr_db", "fence"]
    plain_rows = table.select(shared).to_pylist()

    assert pq.read_table(path).equals(table)
    database = duckdb.connect()
    relation = f"from read_parquet('{path}')"
    assert [r[0] for r in database.sql(f"select latent {relation}").fetchall()] == latents
    assert database.sql(f"select {', '.join(shared)} {relation}").fetchall() == [tuple(r.values()) for r in plain_rows]


@pytest.mark.external
@pytest.mark.parametrize("level", [1, 19])
def test_part_reads_equal_in_pandas_and_polars(tmp_path: Path, level: int) -> None:
    import pandas as pd
    import polars as pl

    table = table_of([0, 1, 2])
    path = tmp_path / part_name(table)
    path.write_bytes(parquet_bytes(table, level))
    latents = [row(n)["latent"].tolist() for n in range(3)]
    shared = ["image_id", "rel_path", "orig_width", "has_alpha", "psnr_db", "fence"]
    plain_rows = table.select(shared).to_pylist()
    frame = pd.read_parquet(path)
    assert [v.tolist() for v in frame["latent"]] == latents
    assert frame[shared].to_dict("records") == plain_rows
    polars = pl.read_parquet(path)
    assert polars["latent"].to_list() == latents
    assert polars.select(shared).to_dicts() == plain_rows
    assert polars["encoded_at"].to_list() == table["encoded_at"].to_pylist()


def test_latent_survives_a_part() -> None:
    unpacked = pq.read_table(io.BytesIO(parquet_bytes(table_of([3]), 3))).to_pylist()[0]
    expected = np.random.default_rng(3).integers(-128, 128, (4, 3, 5)).astype(np.int8)
    symbols = unpack_latent(np.asarray(unpacked["latent"], np.uint8), unpacked["latent_shape"], unpacked["latent_crc32"])
    np.testing.assert_array_equal(symbols, expected)


def test_payload_survives_a_part() -> None:
    symbols = np.random.default_rng(3).integers(-2, 3, (4, 3, 5)).astype(np.int8)
    model = fit_entropy_model([symbols] * 4)
    packed = pack_latent(symbols, model.encode(symbols))
    coded_row = {name: value for name, value in row(3).items() if name != "latent"} | packed
    schema = result_schema({"psnr_db": float}, stores_latent=True)
    two_rows = pa.Table.from_pylist([coded_row, row(4)], schema)
    first, second = iterate_latent_rows(pq.read_table(io.BytesIO(parquet_bytes(two_rows, 3))))
    assert first["latent"] is None
    assert second["latent_payload"] is None
    np.testing.assert_array_equal(read_latent(first, model), symbols)
    np.testing.assert_array_equal(read_latent(second, None), read_latent(next(iterate_latent_rows(table_of([4]))), None))
    invalid_changes = [
        {"latent_payload": None},
        {"latent_payload": first["latent_payload"][:-4]},
        {"latent_crc32": first["latent_crc32"] ^ 1},
        {"latent_shape": [4, 3, 4]},
        {"latent_shape": [4, 10**6, 10**6]},
        {"latent_shape": [3, 3, 5]},
        {"latent_shape": [60]},
        {"latent_shape": [4, 0, 5]},
    ]
    for change in invalid_changes:
        with pytest.raises(LatentError):
            read_latent(first | change, model)
    with pytest.raises(LatentError, match="no entropy tables"):
        read_latent(first, None)


def test_latent_too_large_for_a_list_is_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = np.random.default_rng(3).integers(-2, 3, (4, 3, 5)).astype(np.int8)
    monkeypatch.setattr("imagemill.pipeline.schema.LIST_VALUES", 59)
    large_row = {name: value for name, value in row(3).items() if name != "latent"} | pack_latent(symbols)
    schema = result_schema({"psnr_db": float}, stores_latent=True)
    [unpacked] = iterate_latent_rows(pq.read_table(io.BytesIO(parquet_bytes(pa.Table.from_pylist([large_row], schema), 3))))
    assert unpacked["latent"] is None
    np.testing.assert_array_equal(read_latent(unpacked, None), symbols)
    invalid_changes = [
        {"latent_zstd": None},
        {"latent_zstd": unpacked["latent_zstd"][:-4]},
        {"latent_zstd": b""},
        {"latent_crc32": unpacked["latent_crc32"] ^ 1},
        {"latent_shape": [4, 3, 4]},
        {"latent_shape": [10**12, 3, 5]},
        {"latent_shape": [60]},
    ]
    for change in invalid_changes:
        with pytest.raises(LatentError):
            read_latent(unpacked | change, None)
    monkeypatch.setattr("imagemill.pipeline.schema.LIST_VALUES", 60)
    assert "latent" in pack_latent(symbols)


def test_part_may_have_no_latents_or_no_rows() -> None:
    plain_table = pa.Table.from_pylist(
        [{"image_id": "a", "version": "b"}], result_schema({"sigma": float}, stores_latent=False)
    )
    for table in (plain_table, plain_table.slice(0, 0), table_of([])):
        assert pq.read_table(io.BytesIO(parquet_bytes(table, 3))).equals(table)


def test_part_needs_few_bytes_besides_its_rows() -> None:
    table = table_of(list(range(50)))
    data = parquet_bytes(table, 9)
    assert len(data) / len(table) < 300
    assert pq.read_schema(io.BytesIO(data)).equals(table.schema)


@pytest.mark.parametrize(("values", "groups"), [(1, 1), (4_000_000, 2), (10_000_000, 3)])
def test_row_groups_bound_the_values(monkeypatch: pytest.MonkeyPatch, values: int, groups: int) -> None:
    monkeypatch.setattr("imagemill.pipeline.parquet_part.GROUP_VALUES", 9_000)
    lists = pa.array([np.zeros(values // 1000, np.uint8)] * 3, pa.list_(pa.uint8()))
    data = parquet_bytes(pa.table({"latent": lists}), 1)
    assert pq.ParquetFile(io.BytesIO(data)).num_row_groups == groups


def test_row_holds_a_result_or_a_reject() -> None:
    for stores_latent in (False, True):
        combined_schema = row_schema({"psnr_db": float}, stores_latent)
        for schema in (result_schema({"psnr_db": float}, stores_latent), reject_schema()):
            for field in schema:
                assert combined_schema.field(field.name).equals(field)
        assert len(set(combined_schema.names)) == len(combined_schema.names)


def test_identities_of_older_outputs_are_stable() -> None:
    """If an identity, version or zero point changed, old outputs would be redone or misread."""
    assert image_id("a/ä.jpg") == "2caf2f2c91756d3e6794eb5c75398f6c"
    version = version_of("c" * 64, {"step": 26.0, "task": "compress"})("12-34")
    assert version == "f61af111f187648a8d1bbff2a00a36c1"
    assert pack_latent(np.array([[[-128, 0, 127]]], np.int8))["latent"].tolist() == [0, 128, 255]


def test_damaged_page_of_a_part_is_detected() -> None:
    data = bytearray(parquet_bytes(table_of(list(range(20))), 3))
    columns = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(0)
    latent = next(
        columns.column(n) for n in range(columns.num_columns) if columns.column(n).path_in_schema.startswith("latent.")
    )
    data[latent.data_page_offset + latent.total_compressed_size // 2] ^= 1
    with pytest.raises(OSError, match=r"checksum|CRC"):
        pq.ParquetFile(pa.BufferReader(bytes(data)), page_checksum_verification=True).read()


def test_run_ids_sort_in_the_order_of_their_runs() -> None:
    ids = [new_run_id() for _ in range(2000)]
    assert ids == sorted(ids)
    assert all(RUN_ID.fullmatch(run_id) for run_id in ids)
