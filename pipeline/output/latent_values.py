"""Values of latents: stream the float32 values of a snapshot's latents in batches of one shape, symbols dequantised."""

import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from imagemill.models.errors import CheckpointError
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.lookahead import map_ahead
from imagemill.pipeline.output.latent_symbols import SIZE_COLUMNS, iterate_latent_rows, read_latent
from imagemill.pipeline.output.snapshot import Snapshot
from imagemill.pipeline.output.stored_checkpoint import load_stored_model
from imagemill.pipeline.schema import LATENT, LATENT_ZERO_POINT, LatentError, store_latent, unpack_latent, unpack_values
from imagemill.pipeline.storage import Store

if TYPE_CHECKING:
    from imagemill.models.autoencoder import LatentCoder
    from imagemill.models.routes.float_coder import FloatCoder

LATENT_COLUMNS = [name for name, _ in LATENT]
REQUIRED_COLUMNS = ["rel_path", "checkpoint_sha256", "step", *SIZE_COLUMNS, *LATENT_COLUMNS]
FLOAT_WIDTH = 2.0**-10
"""Difference of neighbouring values of float latents: that of float16 around 1, which is their usual magnitude."""
BATCH_VALUES = 4_000_000
"""Values in a batch, which take 16 MB as float32."""
THREADS = 4


@dataclass(frozen=True)
class Latents:
    """A batch of images with one latent shape."""

    rows: pa.Table
    """Columns of their rows."""
    values: np.ndarray
    """(N,C,h,w) float32: unscaled float latents, or dequantised symbols."""


class LatentCoders:
    """The models in an OUTPUT or an export, by the digest of their weights. Each is loaded once; threads may share them.

    Args:
        output: the OUTPUT or the export.
        device: the torch device of the models.
    """

    def __init__(self, output: Store, device: str = "cpu") -> None:
        self.lock = Lock()
        self._load = cache(lambda sha256: load_stored_model(output, sha256, device))
        self._dequantisation = cache(lambda sha256, step: self._quantiser(sha256).dequantisation(step))

    def __getitem__(self, checkpoint_sha256: str) -> "LatentCoder | FloatCoder":
        """Return a model. Raise CheckpointError if it is missing, damaged or does not code latents."""
        from imagemill.models.autoencoder import LatentCoder
        from imagemill.models.routes.float_coder import FloatCoder

        with self.lock:
            model = self._load(checkpoint_sha256)
        if not isinstance(model, LatentCoder | FloatCoder):
            raise CheckpointError(f"checkpoint {checkpoint_sha256[:16]} makes no latents")
        return model

    def _quantiser(self, checkpoint_sha256: str) -> "LatentCoder":
        from imagemill.models.autoencoder import LatentCoder

        model = self[checkpoint_sha256]
        if not isinstance(model, LatentCoder):
            raise CheckpointError(f"checkpoint {checkpoint_sha256[:16]} makes float latents, but a row of it has symbols")
        return model

    def dequantisation(self, checkpoint_sha256: str, step: float) -> tuple[np.ndarray, int]:
        """Return the step width of each channel, (C,) float32, and the symbol of zero.

        Raises:
            CheckpointError: as `__getitem__`, or when the latents of the model are floats.
        """
        widths, zero = self._dequantisation(checkpoint_sha256, step)
        return widths.float().cpu().numpy(), zero

    def widths(self, checkpoint_sha256: str, step: float | None, channels: int) -> np.ndarray:
        """Return the difference of neighbouring values of each channel, (C,) float32.

        Args:
            checkpoint_sha256: the model; it is not needed for float latents.
            step: the quantiser step; None for float latents.
            channels: of the latent.

        Raises:
            CheckpointError: as `__getitem__`.
        """
        if step is None:
            return np.full(channels, FLOAT_WIDTH, np.float32)
        return self.dequantisation(checkpoint_sha256, step)[0]


def dequantise(symbols: np.ndarray, widths: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """Return the values of symbols.

    Args:
        symbols: (N,C,h,w) int8.
        widths: step widths, (N,C) float32.
        zeros: symbols of zero, (N,).

    Returns:
        Values (N,C,h,w) float32.
    """
    values = symbols.astype(np.float32)
    values -= zeros.astype(np.float32)[:, None, None, None]
    values *= widths[:, :, None, None]
    return values


def requantise(values: np.ndarray, shape: list[int], widths: np.ndarray, zero: int) -> np.ndarray:
    """Return the symbols of dequantised values, the inverse of `dequantise`.

    Args:
        values: (n,) float32.
        shape: latent shape [C,h,w].
        widths: step widths, (C,) float32.
        zero: symbol of zero.

    Returns:
        Symbols (C,h,w) int8.

    Raises:
        LatentError: when the number of values does not match the shape, or a value has no symbol.
    """
    if len(shape) != 3 or len(values) != int(np.prod(shape)) or shape[0] != len(widths):
        raise LatentError(f"{len(values)} values do not fit latent_shape {shape}")
    symbols = np.rint(values.reshape(shape) / widths[:, None, None]) + zero
    if not np.all((symbols >= -128) & (symbols <= 127)):
        raise LatentError("the latent has values that no symbol of its checkpoint represents")
    return symbols.astype(np.int8)


def read_code(row: dict[str, Any], coders: LatentCoders) -> np.ndarray:
    """Return what the model of a row decodes, from an OUTPUT or an export.

    Args:
        row: a row of `iterate_latent_rows`.
        coders: the models.

    Returns:
        Symbols (C,h,w) int8, or values (C,h,w) float32.

    Raises:
        LatentError: when the latent is damaged.
    """
    from imagemill.models.autoencoder import LatentCoder

    model, latent, shape, crc32 = coders[row["checkpoint_sha256"]], row["latent"], row["latent_shape"], row["latent_crc32"]
    if latent is None or latent.dtype == np.uint8:
        return read_latent(row, model.entropy if isinstance(model, LatentCoder) else None)
    # An export has values in the column `latent`.
    if not isinstance(model, LatentCoder):
        return unpack_values(latent, shape, crc32)
    symbols = requantise(latent, shape, *coders.dequantisation(row["checkpoint_sha256"], row["step"]))
    return unpack_latent(store_latent(symbols), shape, crc32)


def check_latents(state: Snapshot) -> None:
    """Raise ConfigError if a snapshot has no latents."""
    if not len(state):
        raise ConfigError(f"{state.output.url}: no rows{' match' if state.rows else ' yet'}")
    if "latent" not in state.schema.names:
        why = "none were exported" if state.task == "compress" else f"its task is {state.task}"
        raise ConfigError(f"{state.output.url}: no latents: {why}")


def latent_batches(state: Snapshot, columns: list[str], problems: list[str]) -> Iterator[Latents]:
    """Yield the values of the latents of a snapshot with some columns of their rows, in the order of the parts.

    Threads work a few batches ahead, so memory is bounded by a few parts.

    Args:
        state: the snapshot.
        columns: columns of the rows to return.
        problems: a list to which each damaged latent is added, by name. Its row is left out.

    Raises:
        ConfigError: when a column does not exist, or the snapshot has no latents.
        StorageError, CheckpointError: when a part or a checkpoint cannot be read.
    """
    check_latents(state)
    state.check_columns(columns)
    needed = REQUIRED_COLUMNS if "latent_payload" in state.schema.names else ["rel_path", "latent", "latent_shape"]
    coders = LatentCoders(state.output)
    tables = state.tables(list(dict.fromkeys([*columns, *needed])))
    pieces = (piece for table in tables for piece in split_by_shape(table, problems))
    with ThreadPoolExecutor(THREADS) as pool:

        def submit(piece: tuple[pa.Table, tuple[int, int, int]]) -> Future[tuple[Latents, list[str]]]:
            return pool.submit(read_values, *piece, columns, coders)

        for latents, new_problems in map_ahead(submit, pieces, 2 * THREADS):
            problems.extend(new_problems)
            if len(latents.rows):
                yield latents


def split_by_shape(table: pa.Table, problems: list[str]) -> Iterator[tuple[pa.Table, tuple[int, int, int]]]:
    """Yield the rows of a table in batches of one latent_shape, of symbols or of floats.

    Rows without a latent are added to `problems`.
    """
    shape = table["latent_shape"].combine_chunks()
    has_shape = np.diff(shape.offsets.to_numpy()) == 3
    has_shape &= shape.is_valid().to_numpy(False)
    if not has_shape.all():
        without_latent = table.filter(pa.array(~has_shape))
        problems += [f"{name}: the row has no latent" for name in without_latent["rel_path"].to_pylist()]
        table = table.filter(pa.array(has_shape))
        shape = table["latent_shape"].combine_chunks()
    if not len(table):
        return
    is_float = np.zeros(len(table), bool)
    if "latent_dtype" in table.schema.names:
        is_float = table["latent_dtype"].is_valid().to_numpy()
    kinds = np.column_stack([is_float, shape.flatten().to_numpy().reshape(-1, 3)])
    kinds, group = np.unique(kinds, axis=0, return_inverse=True)
    for number, (_, c, h, w) in enumerate(kinds.tolist()):
        rows = table if len(kinds) == 1 else table.filter(pa.array(group.ravel() == number))
        most = max(1, BATCH_VALUES // max(1, c * h * w))
        for start in range(0, len(rows), most):
            yield rows.slice(start, most), (c, h, w)


def read_values(
    table: pa.Table, shape: tuple[int, int, int], columns: list[str], coders: LatentCoders
) -> tuple[Latents, list[str]]:
    """Read the values of rows of `split_by_shape`; return them and the problems of the rows that are left out."""
    if table.schema.field("latent").type.value_type == pa.float32():
        # An export has values instead of symbols. Its pages have checksums.
        values = table["latent"].combine_chunks().flatten().to_numpy().reshape(len(table), *shape)
        return Latents(table.select(columns), values), []
    latents, is_intact, problems = read_checked_latents(table, shape, coders)
    if problems:
        table = table.filter(pa.array(is_intact))
    if not len(table):
        return Latents(table.select(columns), np.empty((0, *shape), np.float32)), problems
    if latents.dtype == np.int8:
        models = zip(table["checkpoint_sha256"].to_pylist(), table["step"].to_pylist(), strict=True)
        widths, zeros = zip(*(coders.dequantisation(*model) for model in models), strict=True)
        latents = dequantise(latents, np.stack(widths), np.array(zeros))
    return Latents(table.select(columns), latents), problems


def read_checked_latents(
    table: pa.Table, shape: tuple[int, int, int], coders: LatentCoders
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read the symbols or the float values of rows of `split_by_shape`, and check their CRC.

    Returns:
        Symbols (n,C,h,w) int8 or values (n,C,h,w) float32 of the intact rows; for each row whether it is intact, (N,) bool;
        problems of the other rows.
    """
    has_floats = "latent_dtype" in table.schema.names and table["latent_dtype"][0].is_valid
    stored = stack_stored_latents(table["latent_values" if has_floats else "latent"], shape)
    if stored is not None:
        is_intact = np.fromiter(map(zlib.crc32, stored), np.int64, len(stored)) == table["latent_crc32"].to_numpy()
        names = table["rel_path"].filter(pa.array(~is_intact)).to_pylist()
        intact = stored if is_intact.all() else stored[is_intact]
        # A copy of floats, because torch takes no arrays that cannot be written.
        intact = intact.astype(np.float32) if has_floats else (intact ^ np.uint8(LATENT_ZERO_POINT)).view(np.int8)
        return intact.reshape(-1, *shape), is_intact, [f"{name}: latent does not match its latent_crc32" for name in names]
    is_intact, problems, latents = np.zeros(len(table), bool), [], []
    for number, row in enumerate(iterate_latent_rows(table.select(REQUIRED_COLUMNS))):
        try:
            latents.append(read_code(row, coders))
            is_intact[number] = True
        except LatentError as e:
            problems.append(f"{row['rel_path']}: {e}")
    empty = np.empty((0, *shape), np.float32 if has_floats else np.int8)
    return np.stack(latents) if latents else empty, is_intact, problems


def stack_stored_latents(column: pa.ChunkedArray, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Return the lists of a column, (N,C·h·w); None if one of them is null or has another size."""
    lists, size = column.combine_chunks(), int(np.prod(shape))
    if lists.null_count or not np.all(np.diff(lists.offsets.to_numpy()) == size):
        return None
    return lists.flatten().to_numpy().reshape(len(lists), size)


def to_vector_column(values: np.ndarray) -> pa.Array:
    """Return vectors (N,D) float32 as a column of lists of fixed size."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])
