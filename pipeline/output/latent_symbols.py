"""Decode the latent columns of a row, plain or entropy coded, to symbols."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from imagemill.pipeline.schema import LatentError, store_latent, unpack_latent

if TYPE_CHECKING:
    from imagemill.models.entropy import EntropyModel

TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


def iterate_latent_rows(table: pa.Table | pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as dicts, with `latent` as an array.

    The array (n,) is uint8 in an OUTPUT and float32 in an export. It is None if the latent is entropy coded.
    """
    latents = table["latent"]
    for latent, row in zip(latents, table.drop_columns(["latent"]).to_pylist(), strict=True):
        yield row | {"latent": np.asarray(latent.values) if latent.is_valid else None}


def is_coded(row: dict[str, Any]) -> bool:
    """Return whether the latent of a row is entropy coded. Parts of older versions lack the column."""
    return row.get("latent_payload") is not None


def upright_size(row: dict[str, Any]) -> tuple[int, int]:
    """Return the size (H,W) of the upright image of a row."""
    size = (row["orig_height"], row["orig_width"])
    return size[::-1] if row["exif_orientation"] in TRANSPOSED_ORIENTATIONS else size


def decode_symbols(row: dict[str, Any], entropy: "EntropyModel | None") -> np.ndarray:
    """Decode the latent of a row.

    Args:
        row: a row of `iterate_latent_rows`.
        entropy: entropy model of the row's checkpoint; needed if the latent is entropy coded.

    Returns:
        Symbols (C,h,w) int8.

    Raises:
        LatentError: when the latent is damaged or missing.
    """
    shape, crc32 = row["latent_shape"], row["latent_crc32"]
    if row["latent"] is not None:
        return unpack_latent(row["latent"], shape, crc32)
    # A damaged shape must not lead to an array of terabytes.
    if len(shape) != 3 or min(shape) < 1 or shape[1] * shape[2] > row["orig_width"] * row["orig_height"]:
        raise LatentError(f"latent_shape {shape} does not fit an image of {row['orig_width']}×{row['orig_height']}")
    if (packed := row.get("latent_zstd")) is not None:
        return unpack_latent(decompress_latent(packed, math.prod(shape)), shape, crc32)
    if not is_coded(row):
        raise LatentError("the row has no latent")
    if entropy is None:
        raise LatentError("the latent is entropy coded, but its checkpoint has no entropy tables")
    from imagemill.models.entropy import PayloadError

    try:
        symbols = entropy.decode(row["latent_payload"], (shape[0], shape[1], shape[2]))
    except PayloadError as e:
        raise LatentError(str(e)) from e
    return unpack_latent(store_latent(symbols), shape, crc32)


def decompress_latent(packed: bytes, size: int) -> np.ndarray:
    """Decompress `latent_zstd` to the values of `latent`, (size,) uint8.

    Raises:
        LatentError: when the bytes are damaged or have another size.
    """
    try:
        return np.frombuffer(pa.decompress(packed, size, "zstd"), np.uint8)
    except (OSError, pa.ArrowException) as e:
        raise LatentError(f"latent_zstd: {e}") from None
