"""What `read_latents` gives: the latents of a snapshot as Arrow, NumPy or a Ray Dataset."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from imagemill.pipeline.errors import ConfigError, VerificationError, first_of
from imagemill.pipeline.output.latent_values import LATENT_COLUMNS, check_latents, latent_batches, to_vector_column
from imagemill.pipeline.output.snapshot import Snapshot


class LatentDataset:
    """Latents and the columns of their rows; nothing is read before it is asked for, and then anew each time.

    Raises: ConfigError for unknown columns, or where there are no latents. What reads them raises VerificationError when a
        latent is not what was written: it is named, never given.
    """

    def __init__(self, state: Snapshot, columns: list[str] | None = None) -> None:
        check_latents(state)
        self.state = state
        plain = [name for name in state.schema.names if name not in (*LATENT_COLUMNS, "embedding")]
        self.columns = plain if columns is None else columns
        state.check_columns(self.columns)

    def __len__(self) -> int:
        return len(self.state)

    def batches(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Rows and their latents (N,C,h,w) float32, some at a time, each of one shape; memory stays flat."""
        problems: list[str] = []
        for latents in latent_batches(self.state, self.columns, problems):
            yield latents.rows, latents.values
        if problems:
            raise VerificationError(first_of(problems))

    def tables(self) -> Iterator[pa.Table]:
        """As `batches`, with the columns `latent`, a list of one size, and `latent_shape`."""
        for rows, values in self.batches():
            shape = pa.array([values.shape[1:]] * len(values), pa.list_(pa.int32()))
            table = rows.append_column("latent_shape", shape)
            yield table.append_column("latent", to_vector_column(values.reshape(len(values), -1)))

    def arrow(self) -> pa.Table:
        """All of it as one table. Raises: ConfigError when latents are of several shapes."""
        tables = list(self.tables())
        if len({table.schema.field("latent").type for table in tables}) > 1:
            raise ConfigError(f"{self.state.output.url}: {self._several()}: read tables() or batches(), or choose by where")
        return pa.concat_tables(tables)

    def numpy(self) -> np.ndarray:
        """Latents (N,C,h,w) float32 in the order of `arrow`. Raises: ConfigError when they are of several shapes."""
        arrays = [values for _, values in self.batches()]
        if len({array.shape[1:] for array in arrays}) > 1:
            raise ConfigError(f"{self.state.output.url}: {self._several()}: read tables() or batches(), or choose by where")
        return np.concatenate(arrays)

    def ray(self) -> Any:
        """A Ray Dataset of the rows, whose `latent` is a list; its blocks lie in the object store. Needs Ray, connected."""
        import ray.data

        refs = [
            ray.put(table.set_column(len(table.schema) - 1, "latent", with_list_column(table))) for table in self.tables()
        ]
        return ray.data.from_arrow_refs(refs)

    def _several(self) -> str:
        shapes = {
            tuple(shape) for table in self.state.tables(["latent_shape"]) for shape in table["latent_shape"].to_pylist()
        }
        return f"latents of {len(shapes)} shapes, {', '.join('×'.join(map(str, shape)) for shape in sorted(shapes)[:5])}"


def with_list_column(table: pa.Table) -> pa.ChunkedArray:
    """`latent` as lists of any size, so that blocks of several shapes have one schema."""
    return table["latent"].cast(pa.list_(pa.float32()))
