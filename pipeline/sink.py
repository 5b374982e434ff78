"""The commit: rows of a few blocks become one Parquet part, which appears at once or not at all."""

from collections.abc import Iterable
from socket import gethostname
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.data.block import BlockAccessor
from ray.data.datasource.datasink import Datasink

from pipeline.errors import OutputHeld, StorageError
from pipeline.lease import Lease
from pipeline.schema import parquet_bytes, part_name, reject_schema, result_schema
from pipeline.storage import Store

BYTES_PER_PART = 256_000_000
"""Rows in memory that make a part even before there are enough of them."""


class PartSink(Datasink[int]):
    """Writes each bundle of rows as a part of `results/`, and the rejects among them as a part of `rejects/`.

    A part's name comes from its rows, so a write that Ray runs twice writes the same file twice.
    """

    def __init__(
        self, output: Store, columns: dict[str, type], stores_latent: bool, rows: int, level: int, fence: int
    ) -> None:
        self.output, self.rows, self.level, self.fence = output, rows, level, fence
        self.schemas = {"results": result_schema(columns, stores_latent), "rejects": reject_schema()}

    @property
    def min_rows_per_write(self) -> int:
        return self.rows

    def write(self, blocks: Iterable[Any], ctx: Any) -> int:
        rows, waiting = 0, []
        for block in blocks:
            waiting.append(BlockAccessor.for_block(block).to_arrow())
            if sum(table.nbytes for table in waiting) > BYTES_PER_PART:
                rows += self._commit(waiting)
                waiting = []
        return rows + self._commit(waiting)

    def _commit(self, tables: list[pa.Table]) -> int:
        if not sum(map(len, tables)):
            return 0
        table = pa.concat_tables(tables, promote_options="default")
        # A writer that outlived its driver must not commit behind the back of the next holder.
        newest = Lease(self.output).newest()
        if newest > self.fence:
            raise OutputHeld(f"{self.output.url}: another run took it")
        if newest < self.fence:
            where = f"the node {gethostname()} does not see it"
            raise StorageError(f"{self.output.url}: {where}: a cluster writes to s3:// or to a disk that all nodes mount")
        rejected = pc.is_valid(table["stage"])
        for folder, part in (("rejects", table.filter(rejected)), ("results", table.filter(pc.invert(rejected)))):
            if len(part):
                part = part.select(self.schemas[folder].names).cast(self.schemas[folder])
                self.output.write(f"{folder}/{part_name(part)}", parquet_bytes(part, self.level), durable=True)
        return len(table)
