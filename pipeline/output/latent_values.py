"""Latents as the numbers that they stand for: float32, streamed from a snapshot in batches of one shape."""

import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from imagemill.models.card import CheckpointError
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
"""Of a batch; as float32 16 MB."""
THREADS = 4


@dataclass(frozen=True)
class Latents:
    """Images of one latent shape."""

    rows: pa.Table
    """Their columns."""
    values: np.ndarray
    """(N,C,h,w) float32, dequantised."""


class LatentCoders:
    """The models of an OUTPUT or an export, by the digest of their weights; each is read once, by any thread."""

    def __init__(self, output: Store, device: str = "cpu") -> None:
        self.lock = Lock()
        self._of = cache(lambda sha256: load_stored_model(output, sha256, device))
        self._dequantisation = cache(lambda sha256, step: self[sha256].dequantisation(step))

    def __getitem__(self, checkpoint_sha256: str) -> "LatentCoder":
        """Raises: CheckpointError when it is missing, damaged, or no model that codes."""
        from imagemill.models.autoencoder import LatentCoder

        with self.lock:
            model = self._of(checkpoint_sha256)
        if not isinstance(model, LatentCoder):
            raise CheckpointError(f"checkpoint {checkpoint_sha256[:16]} makes no latents")
        return model

    def dequantisation(self, checkpoint_sha256: str, step: float) -> tuple[np.ndarray, int]:
        """`LatentCoder.dequantisation` as numpy: width (C,) float32, and zero. Raises: CheckpointError, as by index."""
        widths, zero = self._dequantisation(checkpoint_sha256, step)
        return widths.float().cpu().numpy(), zero


def dequantise(symbols: np.ndarray, widths: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """Symbols (N,C,h,w) int8, with widths (N,C) float32 and zeros (N,), to the values that they stand for, float32."""
    values = symbols.astype(np.float32)
    values -= zeros.astype(np.float32)[:, None, None, None]
    values *= widths[:, :, None, None]
    return values


def requantise(values: np.ndarray, shape: list[int], widths: np.ndarray, zero: int) -> np.ndarray:
    """What `dequantise` gave, n float32, back to symbols (C,h,w) int8.

    Raises: LatentError for another number of values, and for those that no symbol stands for.
    """
    if len(shape) != 3 or len(values) != int(np.prod(shape)) or shape[0] != len(widths):
        raise LatentError(f"{len(values)} values do not fit latent_shape {shape}")
    symbols = np.rint(values.reshape(shape) / widths[:, None, None]) + zero
    if not np.all((symbols >= -128) & (symbols <= 127)):
        raise LatentError("latent holds values that no symbol of its checkpoint stands for")
    return symbols.astype(np.int8)


def read_symbols(row: dict[str, Any], coders: LatentCoders) -> np.ndarray:
    """Symbols (C,h,w) int8 of a row of `latent_rows`, from an OUTPUT or an export.

    Raises: LatentError when they are not what was written.
    """
    sha256 = row["checkpoint_sha256"]
    if row["latent"] is None or row["latent"].dtype == np.uint8:
        return decode_symbols(row, coders[sha256].entropy)
    symbols = requantise(row["latent"], row["latent_shape"], *coders.dequantisation(sha256, row["step"]))
    return unpack_latent(store_latent(symbols), row["latent_shape"], row["latent_crc32"])


def check_latents(state: Snapshot) -> None:
    """Raises: ConfigError when a snapshot holds no latents."""
    if not len(state):
        raise ConfigError(f"{state.output.url} holds no rows{' of those' if state.rows else ' yet'}: nothing to read")
    if "latent" not in state.schema.names:
        why = "none were exported" if state.task == "compress" else f"its task is {state.task}"
        raise ConfigError(f"{state.output.url} holds no latents: {why}")


def latent_batches(state: Snapshot, columns: list[str], problems: list[str]) -> Iterator[Latents]:
    """The latents of a snapshot, dequantised, with these columns of their rows, in the order of the parts.

    Memory is that of some parts: threads work a few batches ahead. Rows whose latent is not what was written are named in
    `problems` and left out.

    Raises: ConfigError for unknown columns or an OUTPUT without latents; StorageError; CheckpointError.
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
    """The rows of a table by their latent_shape, some at a time."""
    shape = table["latent_shape"].combine_chunks()
    sized = np.diff(shape.offsets.to_numpy()) == 3
    sized &= shape.is_valid().to_numpy(False)
    if not sized.all():
        odd = table.filter(pa.array(~sized))
        problems += [f"{name}: row without a latent" for name in odd["rel_path"].to_pylist()]
        table = table.filter(pa.array(sized))
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
    """The latents of rows of one shape, and what is wrong with those that are left out."""
    if pa.types.is_fixed_size_list(table.schema.field("latent").type):
        # An export holds values; its pages have checksums of their own.
        values = table["latent"].combine_chunks().flatten().to_numpy().reshape(len(table), *shape)
        return Latents(table.select(columns), values), []
    symbols, good, problems = read_checked_symbols(table, shape, coders)
    if problems:
        table = table.filter(pa.array(good))
    made = zip(table["checkpoint_sha256"].to_pylist(), table["step"].to_pylist(), strict=True)
    parameters = [coders.dequantisation(*by) for by in made]
    values = np.empty((0, *shape), np.float32)
    if parameters:
        widths, zeros = zip(*parameters, strict=True)
        values = dequantise(symbols, np.stack(widths), np.array(zeros))
    return Latents(table.select(columns), values), problems


def read_checked_symbols(
    table: pa.Table, shape: tuple[int, int, int], coders: LatentCoders
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Symbols (n,C,h,w) int8 of the rows that are as they were written; which these are; what is wrong with the others."""
    stored, crc32 = stack_stored_latents(table, shape), table["latent_crc32"].to_numpy()
    if stored is not None:
        good = np.fromiter(map(zlib.crc32, stored), np.int64, len(stored)) == crc32
        names = table["rel_path"].filter(pa.array(~good)).to_pylist()
        kept = stored if good.all() else stored[good]
        symbols = (kept ^ np.uint8(LATENT_ZERO_POINT)).view(np.int8).reshape(-1, *shape)
        return symbols, good, [f"{name}: latent does not match its latent_crc32" for name in names]
    good, problems, some = np.zeros(len(table), bool), [], []
    for number, row in enumerate(iterate_latent_rows(table.select(REQUIRED_COLUMNS))):
        try:
            some.append(read_symbols(row, coders))
            good[number] = True
        except LatentError as e:
            problems.append(f"{row['rel_path']}: {e}")
    return np.stack(some) if some else np.empty((0, *shape), np.int8), good, problems


def stack_stored_latents(table: pa.Table, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Plain latents of rows as they are stored, (N,C·h·w) uint8; None when one of them is coded, or of another size."""
    latent, size = table["latent"].combine_chunks(), int(np.prod(shape))
    if latent.null_count or not np.all(np.diff(latent.offsets.to_numpy()) == size):
        return None
    return latent.flatten().to_numpy().reshape(len(table), size)


def to_vector_column(values: np.ndarray) -> pa.Array:
    """(N,D) float32 as a column of lists of one size."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])
