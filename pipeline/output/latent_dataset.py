"""The result of `read_latents`: the latents of a snapshot as Arrow tables, NumPy arrays or a Ray Dataset."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from imagemill.pipeline.errors import ConfigError, VerificationError, join_first
from imagemill.pipeline.output.latent_values import LATENT_COLUMNS, check_latents, latent_batches, to_vector_column
from imagemill.pipeline.output.snapshot import Snapshot


class LatentDataset:
    """Latents and the columns of their rows. Each method reads them again; nothing is read before.

    Methods that read latents raise VerificationError if a latent is damaged. The message names its image.

    Args:
        state: the snapshot.
        columns: columns of the rows to return; None for all columns except latents and embeddings.

    Raises:
        ConfigError: when a column does not exist, or the snapshot has no latents.
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
        """Yield rows and their latents (N,C,h,w) float32 in batches of one latent shape, with bounded memory.

        Raises:
            VerificationError: at the end, when latents were damaged.
        """
        problems: list[str] = []
        for latents in latent_batches(self.state, self.columns, problems):
            yield latents.rows, latents.values
        if problems:
            raise VerificationError(join_first(problems))

    def tables(self) -> Iterator[pa.Table]:
        """Yield the batches as tables with the columns `latent` (a list of fixed size) and `latent_shape`."""
        for rows, values in self.batches():
            shape = pa.array([values.shape[1:]] * len(values), pa.list_(pa.int32()))
            table = rows.append_column("latent_shape", shape)
            yield table.append_column("latent", to_vector_column(values.reshape(len(values), -1)))

    def arrow(self) -> pa.Table:
        """Return all rows as one table.

        Raises:
            ConfigError: when the latents have several shapes.
        """
        tables = list(self.tables())
        if len({table.schema.field("latent").type for table in tables}) > 1:
            raise self._several_shapes()
        return pa.concat_tables(tables)

    def numpy(self) -> np.ndarray:
        """Return all latents as one array (N,C,h,w) float32, in the order of `arrow`.

        Raises:
            ConfigError: when the latents have several shapes.
        """
        arrays = [values for _, values in self.batches()]
        if len({array.shape[1:] for array in arrays}) > 1:
            raise self._several_shapes()
        return np.concatenate(arrays)

    def ray(self) -> Any:
        """Return the rows as a Ray Dataset in the object store, with `latent` as a list. Ray must be initialised."""
        import ray.data

        refs = [
            ray.put(table.set_column(len(table.schema) - 1, "latent", with_list_column(table))) for table in self.tables()
        ]
        return ray.data.from_arrow_refs(refs)

    def _several_shapes(self) -> ConfigError:
        tables = self.state.tables(["latent_shape"])
        shapes = sorted({tuple(shape) for table in tables for shape in table["latent_shape"].to_pylist()})
        shown = ", ".join("×".join(map(str, shape)) for shape in shapes[:5])
        return ConfigError(
            f"{self.state.output.url}: the latents have {len(shapes)} shapes: {shown}. Use tables() or batches(), or select "
            "one shape with `where`"
        )


def with_list_column(table: pa.Table) -> pa.ChunkedArray:
    """Return the column `latent` as lists of variable size, so that blocks of several shapes have one schema."""
    return table["latent"].cast(pa.list_(pa.float32()))
