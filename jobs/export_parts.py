"""Write the parts of an export: tables of bounded size, in one folder, or in one folder per latent shape."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from imagemill.jobs.export_formats import FORMATS
from imagemill.jobs.export_values import Scale
from imagemill.jobs.removed import Sources
from imagemill.models.type_checks import require_value
from imagemill.pipeline.lookahead import map_ahead
from imagemill.pipeline.output.exports import LATENTS
from imagemill.pipeline.output.latent_values import Latents, latent_batches, to_vector_column
from imagemill.pipeline.output.snapshot import Snapshot
from imagemill.pipeline.progress import with_progress
from imagemill.pipeline.storage import Store

PART_BYTES = 128_000_000
"""Size of a full part before compression."""
BUFFER_BYTES = 512_000_000
"""Size of all parts that are not full yet. If they grow larger, the largest is written as it is."""
PARALLEL_WRITES = 2
ADDED_COLUMNS = ("removed", "latent", "embedding")
"""Columns of an export that the rows of an output do not have."""
Part = tuple[str, int, pa.Table]
"""Folder, number and content of a part."""


def format_shape(shape: tuple[int, ...]) -> str:
    """Format a latent shape: 96x12x16."""
    return "x".join(map(str, shape))


@dataclass
class ExportParts:
    """The parts of one export, while they are written."""

    dest: Store
    file_format: str
    """A key of `export_formats.FORMATS`."""
    columns: list[str]
    embed: Callable[[np.ndarray], np.ndarray] | None
    """Computes the embeddings (N,D) of latents (N,C,h,w)."""
    scale: Scale
    folder_per_shape: bool
    fixed_size: bool
    """Whether vectors are lists of fixed size. Otherwise one folder takes latents of all shapes."""
    about: dict[str, Any]
    """Metadata of each part: what its values mean."""
    buffered: dict[str, list[pa.Table]] = field(default_factory=dict)
    """Tables of parts that are not full yet, by folder."""
    written: Counter[str] = field(default_factory=Counter)
    """Number of parts in each folder."""
    rows: int = 0
    removed: int = 0
    missing_configs: set[str] = field(default_factory=set)
    """Messages about runs whose input is not known, so that `removed` is null."""

    def write(self, state: Snapshot, sources: Sources) -> list[str]:
        """Write all rows of a snapshot, and return a sentence about each damaged latent, which is left out."""
        stored = [name for name in self.columns if name not in ADDED_COLUMNS]
        needed = [*stored, "image_id", "run_id"] if "removed" in self.columns else stored or ["image_id"]
        problems: list[str] = []

        def parts() -> Iterator[Part]:
            batches = latent_batches(state, list(dict.fromkeys(needed)), problems)
            for latents in with_progress("export", batches, len(state), lambda latents: len(latents.rows)):
                yield from self._add(latents, sources)
            for folder in list(self.buffered):
                yield self._take(folder)

        # A part of lance is appended to the part before it, so lance writes one part at a time.
        depth = 0 if self.file_format == "lance" else PARALLEL_WRITES - 1
        with ThreadPoolExecutor(PARALLEL_WRITES) as pool:
            for _ in map_ahead(lambda part: pool.submit(FORMATS[self.file_format], self.dest, *part), parts(), depth):
                pass
        return problems

    def _add(self, latents: Latents, sources: Sources) -> Iterator[Part]:
        """Buffer a batch, and yield the part that is full or has to make room."""
        shape = latents.values.shape[1:]
        folder = f"{LATENTS}/shape={format_shape(shape)}" if self.folder_per_shape else LATENTS
        table = self._table(latents, sources)
        self.rows += len(table)
        self.buffered.setdefault(folder, []).append(table)
        sizes = {name: sum(t.nbytes for t in tables) for name, tables in self.buffered.items()}
        if sizes[folder] >= PART_BYTES:
            yield self._take(folder)
        elif sum(sizes.values()) >= BUFFER_BYTES:
            yield self._take(max(sizes, key=lambda name: sizes[name]))

    def _take(self, folder: str) -> Part:
        """Remove the buffered tables of a folder, and return them as its next part."""
        number = self.written[folder]
        self.written[folder] += 1
        return folder, number, pa.concat_tables(self.buffered.pop(folder))

    def _table(self, latents: Latents, sources: Sources) -> pa.Table:
        """Return a batch with the columns of the export; the metadata of the schema says what the values mean."""
        rows, values = latents.rows, self.scale(latents.values)
        columns: dict[str, Any] = {}
        for name in self.columns:
            if name == "removed":
                columns[name] = sources.removed(rows, self.dest.url)
                self.missing_configs.update(sources.missing_configs(rows, columns[name]))
                self.removed += columns[name].true_count
            elif name == "latent":
                columns[name] = self._vectors(values.reshape(len(values), -1))
            elif name == "embedding":
                embed = require_value(self.embed, "the function that computes embeddings")
                columns[name] = self._vectors(embed(values).astype(np.float32, copy=False))
            else:
                columns[name] = rows[name]
        has_shape = "latent" in self.columns and self.fixed_size
        about = self.about | ({"latent_shape": list(values.shape[1:])} if has_shape else {})
        return pa.table(columns).replace_schema_metadata({"imagemill": json.dumps(about)})

    def _vectors(self, values: np.ndarray) -> pa.Array:
        """Return vectors (N,D) float32 as a column."""
        column = to_vector_column(values)
        return column if self.fixed_size else column.cast(pa.list_(pa.float32()))
