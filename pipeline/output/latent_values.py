"""Dequantised latents: stream the float32 values of a snapshot's latents in batches of one shape."""

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
from imagemill.pipeline.output.latent_symbols import decode_symbols, iterate_latent_rows
from imagemill.pipeline.output.snapshot import Snapshot
from imagemill.pipeline.output.stored_checkpoint import load_stored_model
from imagemill.pipeline.schema import LATENT, LATENT_ZERO_POINT, LatentError, store_latent, unpack_latent
from imagemill.pipeline.storage import Store

if TYPE_CHECKING:
    from imagemill.models.autoencoder import LatentCoder

LATENT_COLUMNS = [name for name, _ in LATENT]
REQUIRED_COLUMNS = ["rel_path", "checkpoint_sha256", "step", "orig_width", "orig_height", *LATENT_COLUMNS]
BATCH_VALUES = 4_000_000
"""Values in a batch, which take 16 MB as float32."""
THREADS = 4


@dataclass(frozen=True)
class Latents:
    """A batch of images with one latent shape."""

    rows: pa.Table
    """Columns of their rows."""
    values: np.ndarray
    """(N,C,h,w) float32, dequantised."""


class LatentCoders:
    """The models in an OUTPUT or an export, by the digest of their weights. Each is loaded once; threads may share them.

    Args:
        output: the OUTPUT or the export.
        device: the torch device of the models.
    """

    def __init__(self, output: Store, device: str = "cpu") -> None:
        self.lock = Lock()
        self._load = cache(lambda sha256: load_stored_model(output, sha256, device))
        self._dequantisation = cache(lambda sha256, step: self[sha256].dequantisation(step))

    def __getitem__(self, checkpoint_sha256: str) -> "LatentCoder":
        """Return a model. Raise CheckpointError if it is missing, damaged or does not code latents."""
        from imagemill.models.autoencoder import LatentCoder

        with self.lock:
            model = self._load(checkpoint_sha256)
        if not isinstance(model, LatentCoder):
            raise CheckpointError(f"checkpoint {checkpoint_sha256[:16]} makes no latents")
        return model

    def dequantisation(self, checkpoint_sha256: str, step: float) -> tuple[np.ndarray, int]:
        """Return the step width of each channel, (C,) float32, and the symbol of zero.

        Raises:
            CheckpointError: as `__getitem__`.
        """
        widths, zero = self._dequantisation(checkpoint_sha256, step)
        return widths.float().cpu().numpy(), zero


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


def read_symbols(row: dict[str, Any], coders: LatentCoders) -> np.ndarray:
    """Return the symbols (C,h,w) int8 of a row of `iterate_latent_rows`, from an OUTPUT or an export.

    Raises:
        LatentError: when the latent is damaged.
    """
    sha256 = row["checkpoint_sha256"]
    if row["latent"] is None or row["latent"].dtype == np.uint8:
        return decode_symbols(row, coders[sha256].entropy)
    symbols = requantise(row["latent"], row["latent_shape"], *coders.dequantisation(sha256, row["step"]))
    return unpack_latent(store_latent(symbols), row["latent_shape"], row["latent_crc32"])


def check_latents(state: Snapshot) -> None:
    """Raise ConfigError if a snapshot has no latents."""
    if not len(state):
        raise ConfigError(f"{state.output.url}: no rows{' match' if state.rows else ' yet'}")
    if "latent" not in state.schema.names:
        why = "none were exported" if state.task == "compress" else f"its task is {state.task}"
        raise ConfigError(f"{state.output.url}: no latents: {why}")


def latent_batches(state: Snapshot, columns: list[str], problems: list[str]) -> Iterator[Latents]:
    """Yield the dequantised latents of a snapshot with some columns of their rows, in the order of the parts.

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
            return pool.submit(dequantise_rows, *piece, columns, coders)

        for latents, new_problems in map_ahead(submit, pieces, 2 * THREADS):
            problems.extend(new_problems)
            if len(latents.rows):
                yield latents


def split_by_shape(table: pa.Table, problems: list[str]) -> Iterator[tuple[pa.Table, tuple[int, int, int]]]:
    """Yield the rows of a table in batches of one latent_shape. Rows without a latent are added to `problems`."""
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
    shapes, group = np.unique(shape.flatten().to_numpy().reshape(-1, 3), axis=0, return_inverse=True)
    for number, (c, h, w) in enumerate(shapes.tolist()):
        rows = table if len(shapes) == 1 else table.filter(pa.array(group.ravel() == number))
        most = max(1, BATCH_VALUES // max(1, c * h * w))
        for start in range(0, len(rows), most):
            yield rows.slice(start, most), (c, h, w)


def dequantise_rows(
    table: pa.Table, shape: tuple[int, int, int], columns: list[str], coders: LatentCoders
) -> tuple[Latents, list[str]]:
    """Dequantise the latents of rows with one shape; return them and the problems of the rows that are left out."""
    if table.schema.field("latent").type.value_type == pa.float32():
        # An export has values instead of symbols. Its pages have checksums.
        values = table["latent"].combine_chunks().flatten().to_numpy().reshape(len(table), *shape)
        return Latents(table.select(columns), values), []
    symbols, is_intact, problems = read_checked_symbols(table, shape, coders)
    if problems:
        table = table.filter(pa.array(is_intact))
    models = zip(table["checkpoint_sha256"].to_pylist(), table["step"].to_pylist(), strict=True)
    parameters = [coders.dequantisation(*model) for model in models]
    values = np.empty((0, *shape), np.float32)
    if parameters:
        widths, zeros = zip(*parameters, strict=True)
        values = dequantise(symbols, np.stack(widths), np.array(zeros))
    return Latents(table.select(columns), values), problems


def read_checked_symbols(
    table: pa.Table, shape: tuple[int, int, int], coders: LatentCoders
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read the symbols of rows, and check their CRC.

    Returns:
        Symbols (n,C,h,w) int8 of the intact rows; for each row whether it is intact, (N,) bool; problems of the other rows.
    """
    stored, crc32 = stack_stored_latents(table, shape), table["latent_crc32"].to_numpy()
    if stored is not None:
        is_intact = np.fromiter(map(zlib.crc32, stored), np.int64, len(stored)) == crc32
        names = table["rel_path"].filter(pa.array(~is_intact)).to_pylist()
        intact = stored if is_intact.all() else stored[is_intact]
        stored_symbols = (intact ^ np.uint8(LATENT_ZERO_POINT)).view(np.int8).reshape(-1, *shape)
        return stored_symbols, is_intact, [f"{name}: latent does not match its latent_crc32" for name in names]
    is_intact, problems, symbols = np.zeros(len(table), bool), [], []
    for number, row in enumerate(iterate_latent_rows(table.select(REQUIRED_COLUMNS))):
        try:
            symbols.append(read_symbols(row, coders))
            is_intact[number] = True
        except LatentError as e:
            problems.append(f"{row['rel_path']}: {e}")
    return np.stack(symbols) if symbols else np.empty((0, *shape), np.int8), is_intact, problems


def stack_stored_latents(table: pa.Table, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Return the stored plain latents, (N,C·h·w) uint8; None if one of them is entropy coded or has another size."""
    latent, size = table["latent"].combine_chunks(), int(np.prod(shape))
    if latent.null_count or not np.all(np.diff(latent.offsets.to_numpy()) == size):
        return None
    return latent.flatten().to_numpy().reshape(len(table), size)


def to_vector_column(values: np.ndarray) -> pa.Array:
    """Return vectors (N,D) float32 as a column of lists of fixed size."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])
