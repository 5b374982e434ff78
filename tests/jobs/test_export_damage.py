"""Damaged latents, parts and export records are named, left out and never reported as intact."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagemill.jobs.decode import decode_output
from imagemill.jobs.export import export, show_export
from imagemill.pipeline import read_latents
from imagemill.pipeline.errors import StorageError, VerificationError
from imagemill.pipeline.output.parts import list_parts
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.schema import part_name
from imagemill.pipeline.storage import Store
from tests.support.outputs import COUNT, compressed


def test_damaged_rows_are_named_and_left_out(tmp_path: Path, pieces: dict[str, np.ndarray]) -> None:
    output = compressed(tmp_path, pieces, rows_per_part=COUNT)
    [path] = list_parts(output, "results")
    table = pa.concat_tables(read_latents(output.url).state.tables(read_latents(output.url).state.schema.names))
    rows = table.to_pylist()
    rows[2]["latent"][7] ^= 1
    rows[4]["latent"] = rows[4]["latent"][:-1]
    rows[5]["latent_shape"] = None
    damaged_table = pa.Table.from_pylist(rows, table.schema)
    output.delete(path)
    output.write(f"results/{part_name(damaged_table)}", parquet_bytes(damaged_table, 3))
    record = export(output, Store(str(tmp_path / "export")))
    assert record["rows"] == COUNT - 3
    assert sorted(problem.split(":")[0] for problem in record["left_out"]) == ["2.png", "4.png", "5.png"]
    with pytest.raises(VerificationError, match=r"2\.png: latent does not match"):
        read_latents(output.url).numpy()
    with pytest.raises(VerificationError, match=r"2\.png"):
        decode_output(output, Store(str(tmp_path / "images")))
    assert len(list((tmp_path / "images").glob("*.png"))) == COUNT - 3
    # `decode` also refuses an export whose values were changed.
    [part] = (tmp_path / "export/latents").iterdir()
    values = pq.read_table(part)
    changed_values = [[value + 0.5 for value in row] if not n else row for n, row in enumerate(values["latent"].to_pylist())]
    column = pa.array(changed_values, values.schema.field("latent").type)
    pq.write_table(values.set_column(values.schema.get_field_index("latent"), "latent", column), part)
    with pytest.raises(VerificationError, match="latent"):
        decode_output(Store(str(tmp_path / "export")), Store(str(tmp_path / "again")))


def flip_page_bit(output: Store, path: str, column: str) -> bytes:
    """Return a part with one flipped bit in a column, which the page checksum detects."""
    data, group = bytearray(output.read(path)), pq.ParquetFile(output.full(path)).metadata.row_group(0)
    [place] = [n for n in range(group.num_columns) if group.column(n).path_in_schema == column]
    chunk = group.column(place)
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    data[start + chunk.total_compressed_size - 1] ^= 1
    return bytes(data)


def test_damaged_parts_are_named_and_left_out(tmp_path: Path, pieces: dict[str, np.ndarray]) -> None:
    output = compressed(tmp_path, pieces, rows_per_part=2)
    truncated_part, latent_part, model_part, intact_part = list_parts(output, "results")
    output.write(truncated_part, output.read(truncated_part)[:-100])
    output.write(latent_part, flip_page_bit(output, latent_part, "latent.list.element"))
    output.write(model_part, flip_page_bit(output, model_part, "model_id"))
    with pytest.raises(
        VerificationError, match=f"{truncated_part}: a damaged part .*Move it out of OUTPUT. The next run processes"
    ):
        show_export(output, Store(str(tmp_path / "export")))
    record = json.loads((tmp_path / "export/export.json").read_text())
    assert [problem.split(": ")[0] for problem in record["left_out"]] == [
        output.uri(path) for path in (truncated_part, model_part, latent_part)
    ]
    assert record["rows"] == 2
    image_ids = pq.read_table(output.full(intact_part))["image_id"].to_pylist()
    assert pq.read_table(tmp_path / "export/latents")["image_id"].to_pylist() == image_ids
    # If every part is damaged, no export is written.
    for column in ("step", "task", "image_id"):
        for path in (latent_part, model_part, intact_part):
            output.write(path, flip_page_bit(output, path, column))
        with pytest.raises(StorageError, match=f"{intact_part}: a damaged part"):
            export(output, Store(str(tmp_path / "again")))
    assert not (tmp_path / "again").exists()


def test_unreachable_part_is_not_called_damaged(tmp_path: Path, pieces: dict[str, np.ndarray]) -> None:
    output = compressed(tmp_path, pieces)
    Path(output.full("results/loop.parquet")).symlink_to("loop.parquet")
    with pytest.raises(StorageError, match=r"loop\.parquet: cannot be read: OSError"):
        export(output, Store(str(tmp_path / "export")))
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("content", [b"{}", b'{"format": "par'])
def test_damaged_manifest_is_a_storage_error(content: bytes, tmp_path: Path) -> None:
    Store(str(tmp_path)).write("export.json", content)
    with pytest.raises(StorageError, match=r"export\.json: damaged\. Export again"):
        read_latents(str(tmp_path))
