"""Rows: their identities, the columns of `results/` and `rejects/`, and the storage of latents in Parquet."""

import hashlib
import json
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

LATENT_ZERO_POINT = 128
"""`latent` holds symbol + 128 as uint8. Parquet widens signed bytes to 32 bits with their sign, which takes a third more."""

VALUE_TYPE = np.dtype("<f4")
"""Type of stored float latents, whose CRC must not depend on the machine."""
LIST_VALUES = 64_000_000
"""Maximum number of values of a latent that is stored as a list: Parquet's writer holds some 15 bytes per value of a row."""
ARROW_TYPES = {float: pa.float32(), int: pa.int64(), str: pa.string(), bool: pa.bool_(), list[float]: pa.list_(pa.float32())}

IDENTITY = [
    ("image_id", pa.string()),
    ("version", pa.string()),
    ("source_uri", pa.string()),
    ("rel_path", pa.string()),
    ("source_etag", pa.string()),
]
SOURCE = [
    ("content_sha256", pa.string()),
    ("orig_width", pa.int32()),
    ("orig_height", pa.int32()),
    ("exif_orientation", pa.int32()),
    ("has_alpha", pa.bool_()),
    ("bit_depth", pa.int32()),
    ("frames", pa.int32()),
    ("icc", pa.string()),
    # JSON of the fields that a shard or manifest has for the image.
    ("extra", pa.string()),
    # Whether image data is damaged or missing; null in parts of older versions of imagemill.
    ("damaged", pa.bool_()),
]
FITTING = [
    # Size of the upright image after --resize; null without it.
    ("resized_width", pa.int32()),
    ("resized_height", pa.int32()),
    # The part of the resized image that was processed, in its pixels; null for all of it.
    ("crop_left", pa.int32()),
    ("crop_top", pa.int32()),
    ("crop_width", pa.int32()),
    ("crop_height", pa.int32()),
]
LINEAGE = [
    ("task", pa.string()),
    ("model_id", pa.string()),
    ("checkpoint_sha256", pa.string()),
    ("config_sha256", pa.string()),
    # JSON of the values, except the checkpoint, that change pixels or codes; `version` is a hash of them.
    ("parameters", pa.string()),
    ("run_id", pa.string()),
    # The fencing token of the run. The stored name is an interface and stays `fence`.
    ("fence", pa.int64()),
    ("encoded_at", pa.timestamp("ms", tz="UTC")),
]
OUTPUT = [("output_uri", pa.string()), ("output_sha256", pa.string()), ("output_bytes", pa.int64())]
LATENT = [
    ("latent", pa.list_(pa.uint8())),
    # Entropy-coded symbols; `latent` is null then, so that nobody mistakes coded bytes for symbols.
    ("latent_payload", pa.binary()),
    # The content of `latent` or `latent_values` as one zstd frame, if the list would have more than LIST_VALUES values.
    ("latent_zstd", pa.binary()),
    ("latent_shape", pa.list_(pa.int32())),
    ("latent_crc32", pa.int64()),
    # Float latents, unscaled. Values that were rounded to float16 have the same type, because a column has one type.
    ("latent_values", pa.list_(pa.float32())),
    # "float32" or "float16": the precision of `latent_values`. Null for symbols, and in parts of older versions.
    ("latent_dtype", pa.string()),
]
LATENT_CONTENT = ("latent", "latent_payload", "latent_zstd", "latent_values")
"""Columns that can hold a latent. In each row, one of them holds the latent and the others are null."""
REJECT = [
    ("stage", pa.string()),
    ("error_class", pa.string()),
    ("error", pa.string()),
    ("transient", pa.bool_()),
    ("attempts", pa.int32()),
]
REFERENCE = pa.schema(
    [
        *IDENTITY,
        ("size", pa.int64()),
        ("attempts", pa.int32()),
        # Whether the output holds a row of the image, whose file the new one replaces.
        ("known", pa.bool_()),
        ("problem", pa.string()),
        ("mask_path", pa.string()),
        ("mask_offset", pa.int64()),
        ("mask_size", pa.int64()),
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("base", pa.string()),
        ("extra", pa.string()),
    ]
)
"""The columns of a reference: what a worker gets for each image."""


def new_run_id() -> str:
    """Return a new run id: the UTC time, and the fraction of the second as six hexadecimal digits.

    Ids sort in the order in which runs began, also the ids of runs that began in the same second.
    """
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y%m%dT%H%M%SZ}-{(nanoseconds << 24) // 1_000_000_000:06x}"


def result_schema(columns: dict[str, Any], stores_latent: bool) -> pa.Schema:
    """Return the schema of `results/`.

    Args:
        columns: quality column of the task → its type.
        stores_latent: whether rows hold latents.
    """
    quality = [(name, ARROW_TYPES[kind]) for name, kind in columns.items()]
    return pa.schema([*IDENTITY, *SOURCE, *FITTING, *LINEAGE, *OUTPUT, *quality, *(LATENT if stores_latent else [])])


def reject_schema() -> pa.Schema:
    """Return the schema of `rejects/`."""
    return pa.schema([*IDENTITY, *REJECT, *LINEAGE])


def row_schema(columns: dict[str, Any], stores_latent: bool) -> pa.Schema:
    """Return the schema of rows between worker and sink: a result, or a reject if `stage` is set."""
    return pa.unify_schemas([result_schema(columns, stores_latent), reject_schema()])


def image_id(key: str) -> str:
    """Return the 128-bit identity of a source key as 32 hexadecimal digits."""
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def version_of(checkpoint_sha256: str, parameters: dict[str, Any]) -> Callable[[str], str]:
    """Return a function from an etag to a version: the 128-bit hash of source, model and parameters.

    Args:
        checkpoint_sha256: digest of the checkpoint.
        parameters: all other values that change pixels or codes.
    """
    common = json.dumps([checkpoint_sha256, parameters], sort_keys=True)[1:].encode()

    def version(etag: str) -> str:
        return hashlib.blake2b(b"[" + json.dumps(etag).encode() + b", " + common, digest_size=16).hexdigest()

    return version


def add_latent_metadata(table: pa.Table, latents: dict[str, Any]) -> pa.Table:
    """Return a table whose schema metadata also describes the float latents in it.

    The metadata is the JSON `{"latents": {checkpoint_sha256: {"scaling_factor": …, …}}}` at the key `imagemill`.

    Args:
        table: rows.
        latents: digest of a checkpoint → the contract of its latents.
    """
    metadata = table.schema.metadata or {}
    about = json.loads(metadata.get(b"imagemill", b"{}"))
    about["latents"] = about.get("latents", {}) | latents
    return table.replace_schema_metadata({**metadata, b"imagemill": json.dumps(about).encode()})


def concat_parts(tables: list[pa.Table]) -> pa.Table:
    """Join the tables of parts, of all versions of imagemill, with the metadata of all of them."""
    table = pa.concat_tables(tables, promote_options="default")
    for each in tables:
        if metadata := (each.schema.metadata or {}).get(b"imagemill"):
            table = add_latent_metadata(table, json.loads(metadata).get("latents", {}))
    return table


def part_name(table: pa.Table) -> str:
    """Return the name of a part, a hash of its identities and fencing tokens: a repeated write gives the same file."""
    digest = hashlib.blake2b(digest_size=16)
    for row in sorted(zip(*(table[name].to_pylist() for name in ("image_id", "version", "fence")), strict=True)):
        digest.update("/".join(map(str, row)).encode())
    return f"part-{digest.hexdigest()}.parquet"


def store_latent(symbols: np.ndarray) -> np.ndarray:
    """Return symbols (C,h,w) int8 as `latent` stores them, (n,) uint8."""
    stored: np.ndarray = np.ascontiguousarray(symbols).view(np.uint8).ravel() ^ np.uint8(LATENT_ZERO_POINT)
    return stored


def store_values(values: np.ndarray) -> np.ndarray:
    """Return float values (C,h,w) as `latent_values` stores them, (n,) float32 in little-endian order."""
    return np.ascontiguousarray(values, VALUE_TYPE).ravel()


def pack_latent(latent: np.ndarray, payload: bytes | None = None) -> dict[str, Any]:
    """Return the latent columns of a row.

    The CRC is that of the symbols even if a payload is stored, so that it also detects errors of the entropy coder.

    Args:
        latent: (C,h,w): symbols int8, or values float32 or float16.
        payload: entropy-coded symbols, which are stored instead of the symbols.
    """
    is_float = latent.dtype != np.int8
    name, store = ("latent_values", store_values) if is_float else ("latent", store_latent)
    stored_columns: dict[str, Any]
    if payload is None and latent.size > LIST_VALUES:
        packed, crc32 = compress_latent(latent, store)
        stored_columns = {"latent_zstd": packed}
    else:
        stored = store(latent)
        stored_columns = {name: stored} if payload is None else {"latent_payload": payload}
        crc32 = zlib.crc32(stored.data)
    dtype = {"latent_dtype": latent.dtype.name} if is_float else {}
    return {**stored_columns, "latent_shape": list(latent.shape), "latent_crc32": crc32, **dtype}


def compress_latent(latent: np.ndarray, store: Callable[[np.ndarray], np.ndarray]) -> tuple[bytes, int]:
    """Compress a latent one channel at a time.

    Args:
        latent: (C,h,w).
        store: returns the stored form of a channel.

    Returns:
        One zstd frame of what the list would hold, and its CRC-32.
    """
    out, crc32 = pa.BufferOutputStream(), 0
    with pa.CompressedOutputStream(out, "zstd") as frame:
        for plane in latent:
            stored = store(plane)
            crc32 = zlib.crc32(stored.data, crc32)
            frame.write(stored)
    return out.getvalue().to_pybytes(), crc32


class LatentError(Exception):
    """The stored latent is damaged."""


def unpack_latent(latent: np.ndarray, shape: list[int], crc32: int) -> np.ndarray:
    """Return the symbols (C,h,w) int8 of latent columns.

    Raises:
        LatentError: when the stored latent does not match its CRC or its shape.
    """
    stored = np.ascontiguousarray(latent, dtype=np.uint8)
    check_stored(stored, shape, crc32)
    symbols: np.ndarray = (stored ^ np.uint8(LATENT_ZERO_POINT)).view(np.int8).reshape(shape)
    return symbols


def unpack_values(latent_values: np.ndarray, shape: list[int], crc32: int) -> np.ndarray:
    """Return the values (C,h,w) float32 of latent columns.

    Raises:
        LatentError: when the stored latent does not match its CRC or its shape.
    """
    stored = np.ascontiguousarray(latent_values, VALUE_TYPE)
    check_stored(stored, shape, crc32)
    # A copy, because torch takes no arrays that cannot be written.
    return stored.astype(np.float32).reshape(shape)


def check_stored(stored: np.ndarray, shape: list[int], crc32: int) -> None:
    """Raise LatentError if a stored latent does not match its CRC or its shape."""
    if zlib.crc32(stored.data) != crc32:
        raise LatentError("latent does not match its latent_crc32")
    if not shape or stored.size != int(np.prod(shape)):
        raise LatentError(f"latent has {stored.size} values, but latent_shape {shape} needs {int(np.prod(shape or 0))}")


def latent_bytes(row: dict[str, Any], level: int) -> int:
    """Return the bytes that the latent of a row (pack_latent) takes in a part, where it is compressed as a separate page."""
    codec = pa.Codec("zstd", level)
    if "latent" in row:
        return len(codec.compress(row["latent"]))
    if "latent_values" in row:
        # BYTE_STREAM_SPLIT: the first bytes of all values, then the second bytes, …
        return len(codec.compress(row["latent_values"].view(np.uint8).reshape(-1, 4).T.tobytes()))
    return next(len(row[name]) for name in LATENT_CONTENT if name in row)
