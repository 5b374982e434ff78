"""Write rows as a Parquet file, which is small also if it has few rows."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

LATENT_ROWS = 64
"""Maximum number of rows in a row group with latents that are lists."""
GROUP_VALUES = 9_000_000
"""Values of such a row group, unless one row has more: Parquet's writer holds 8 bytes for each value of the group."""


def parquet_bytes(table: pa.Table, level: int) -> bytes:
    """Return a table as a Parquet file.

    Latents are split by byte, because the upper bytes of Parquet's 32-bit integers are zero. Dictionaries take a page more
    for each column, and zstd alone makes columns with few values as small. Only image_id has statistics: in small parts,
    statistics of other columns would take more space than they save. Arrow's own copy of the schema is left out, because
    Parquet's schema gives the same types and the copy takes 3 kB. A table with metadata needs the copy.

    Args:
        table: rows.
        level: zstd level, 1 to 22.
    """
    lists = [name for name in ("latent", "latent_values") if name in table.schema.names]
    out = pa.BufferOutputStream()
    pq.write_table(
        table,
        out,
        compression="zstd",
        compression_level=level,
        use_dictionary=False,
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in lists} or None,
        write_statistics=["image_id"],
        # With checksums, readers that verify pages detect a flipped bit in any column.
        write_page_checksum=True,
        data_page_size=64 * 1024,
        row_group_size=group_rows([table[name] for name in lists]),
        # pyarrow writes the metadata of the schema only together with the copy of the schema.
        store_schema=bool(table.schema.metadata),
    )
    data: bytes = out.getvalue().to_pybytes()
    return data


def group_rows(lists: list[pa.ChunkedArray]) -> int | None:
    """Return the rows of a row group, given the columns with latents as lists; None for one group, if all are null."""
    values = sum(pc.sum(pc.list_value_length(column)).as_py() or 0 for column in lists)
    if not values:
        return None
    return max(1, min(LATENT_ROWS, GROUP_VALUES * len(lists[0]) // values))
