"""Read the latent of a row: symbols, plain or entropy coded, or float values."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from imagemill.pipeline.schema import FITTING, VALUE_TYPE, LatentError, store_latent, unpack_latent, unpack_values

if TYPE_CHECKING:
    from imagemill.models.entropy import EntropyModel

TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
SIZE_COLUMNS = ["orig_width", "orig_height", "exif_orientation", *(name for name, _ in FITTING)]
"""Columns that `image_size` needs."""


def iterate_latent_rows(table: pa.Table | pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as dicts, with `latent` and `latent_values` as arrays or None.

    The array `latent` (n,) is uint8 in an OUTPUT and float32 in an export.
    """
    lists = [name for name in ("latent", "latent_values") if name in table.schema.names]
    columns = [table[name] for name in lists]
    for *scalars, row in zip(*columns, table.drop_columns(lists).to_pylist(), strict=True):
        arrays = (np.asarray(scalar.values) if scalar.is_valid else None for scalar in scalars)
        yield row | dict(zip(lists, arrays, strict=True))


def is_float(row: dict[str, Any]) -> bool:
    """Return whether the latent of a row consists of float values. Parts of older versions lack the column."""
    return row.get("latent_dtype") is not None


def is_coded(row: dict[str, Any]) -> bool:
    """Return whether the latent of a row is entropy coded. Parts of older versions lack the column."""
    return row.get("latent_payload") is not None


def upright_size(row: dict[str, Any]) -> tuple[int, int]:
    """Return the size (H,W) of the upright image of a row, before it was resized or cropped."""
    size = (row["orig_height"], row["orig_width"])
    return size[::-1] if row["exif_orientation"] in TRANSPOSED_ORIENTATIONS else size


def image_size(row: dict[str, Any]) -> tuple[int, int]:
    """Return the size (H,W) of the image that was encoded: upright, resized and cropped."""
    # Parts of older versions and exports may lack these columns.
    for kind in ("crop", "resized"):
        if row.get(f"{kind}_width") is not None:
            return row[f"{kind}_height"], row[f"{kind}_width"]
    return upright_size(row)


def read_latent(row: dict[str, Any], entropy: "EntropyModel | None" = None) -> np.ndarray:
    """Read the latent of a row of an OUTPUT.

    Args:
        row: a row of `iterate_latent_rows`.
        entropy: entropy model of the row's checkpoint; needed if the latent is entropy coded.

    Returns:
        Symbols (C,h,w) int8, or values (C,h,w) float32.

    Raises:
        LatentError: when the latent is damaged or missing.
    """
    shape, crc32 = row["latent_shape"], row["latent_crc32"]
    if row["latent"] is not None:
        return unpack_latent(row["latent"], shape, crc32)
    if row.get("latent_values") is not None:
        return unpack_values(row["latent_values"], shape, crc32)
    # A damaged shape must not lead to an array of terabytes.
    if len(shape) != 3 or min(shape) < 1 or shape[1] * shape[2] > math.prod(image_size(row)):
        height, width = image_size(row)
        raise LatentError(f"latent_shape {shape} does not fit an image of {width}×{height}")
    if (packed := row.get("latent_zstd")) is not None:
        dtype, unpack = (VALUE_TYPE, unpack_values) if is_float(row) else (np.dtype(np.uint8), unpack_latent)
        return unpack(decompress_latent(packed, math.prod(shape), dtype), shape, crc32)
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


def decompress_latent(packed: bytes, size: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Decompress `latent_zstd` to the stored values (size,) of a dtype.

    Raises:
        LatentError: when the bytes are damaged or have another size.
    """
    try:
        return np.frombuffer(pa.decompress(packed, size * dtype.itemsize, "zstd"), dtype)
    except (OSError, pa.ArrowException) as e:
        raise LatentError(f"latent_zstd: {e}") from None
