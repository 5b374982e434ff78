"""Latents as rows hold them, plain or entropy coded, back to symbols."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from imagemill.pipeline.schema import LatentError, store_latent, unpack_latent

if TYPE_CHECKING:
    from imagemill.models.entropy import EntropyModel

TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)
"""EXIF orientations whose upright image has its width and height exchanged."""


def iterate_latent_rows(table: pa.Table | pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows with their `latent` as an array (n,), None where it is coded; numbers never become Python's.

    It is uint8 as rows hold it, float32 where an export was read.
    """
    latents = table["latent"]
    for latent, row in zip(latents, table.drop_columns(["latent"]).to_pylist(), strict=True):
        yield row | {"latent": np.asarray(latent.values) if latent.is_valid else None}


def is_coded(row: dict[str, Any]) -> bool:
    """Whether the row's latent is entropy coded; parts of older versions have no column for it."""
    return row.get("latent_payload") is not None


def upright_size(row: dict[str, Any]) -> tuple[int, int]:
    """(H,W) of the upright image of a row."""
    size = (row["orig_height"], row["orig_width"])
    return size[::-1] if row["exif_orientation"] in TRANSPOSED_ORIENTATIONS else size


def decode_symbols(row: dict[str, Any], entropy: "EntropyModel | None") -> np.ndarray:
    """Latent columns of a row of `latent_rows` to symbols (C,h,w) int8; `entropy` is that of the row's checkpoint.

    Raises: LatentError when they are not what was written.
    """
    shape, crc32 = row["latent_shape"], row["latent_crc32"]
    if row["latent"] is not None:
        return unpack_latent(row["latent"], shape, crc32)
    # A damaged shape must not make a latent of terabytes.
    if len(shape) != 3 or min(shape) < 1 or shape[1] * shape[2] > row["orig_width"] * row["orig_height"]:
        raise LatentError(f"latent_shape {shape} does not fit an image of {row['orig_width']}×{row['orig_height']}")
    if (packed := row.get("latent_zstd")) is not None:
        return unpack_latent(decompress_latent(packed, math.prod(shape)), shape, crc32)
    if not is_coded(row):
        raise LatentError("row without a latent")
    if entropy is None:
        raise LatentError("latent is coded, and its checkpoint holds no tables")
    from imagemill.models.entropy import PayloadError

    try:
        symbols = entropy.decode(row["latent_payload"], (shape[0], shape[1], shape[2]))
    except PayloadError as e:
        raise LatentError(str(e)) from e
    return unpack_latent(store_latent(symbols), shape, crc32)


def decompress_latent(packed: bytes, size: int) -> np.ndarray:
    """`latent_zstd` to what `latent` would hold, (size,) uint8. Raises: LatentError for damage, and for another size."""
    try:
        return np.frombuffer(pa.decompress(packed, size, "zstd"), np.uint8)
    except (OSError, pa.ArrowException) as e:
        raise LatentError(f"latent_zstd: {e}") from None
