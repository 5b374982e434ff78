"""What a row is: identities, the columns of `results/` and `rejects/`, and how latents lie in Parquet."""

import hashlib
import json
import secrets
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LATENT_ZERO_POINT = 128
"""`latent` holds symbol + 128 as uint8: Parquet widens signed bytes to 32 bits with their sign, which costs a third more."""

LIST_VALUES = 64_000_000
"""Of a latent that is a list: Parquet's writer holds some 15 bytes for each of its values, as a row is never divided."""
LATENT_ROWS = 32
"""Of a row group with latents: its writer holds 8 bytes for each of their values at once."""
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
    # JSON of what a shard or manifest carried along with the image.
    ("extra", pa.string()),
    # Whether picture data of the file is damaged or missing; null in parts of older versions.
    ("damaged", pa.bool_()),
]
LINEAGE = [
    ("task", pa.string()),
    ("model_id", pa.string()),
    ("checkpoint_sha256", pa.string()),
    ("config_sha256", pa.string()),
    # JSON of what changes pixels or codes beside the checkpoint: what `version` was made of.
    ("parameters", pa.string()),
    ("run_id", pa.string()),
    ("fence", pa.int64()),
    ("encoded_at", pa.timestamp("ms", tz="UTC")),
]
OUTPUT = [("output_uri", pa.string()), ("output_sha256", pa.string()), ("output_bytes", pa.int64())]
LATENT = [
    ("latent", pa.list_(pa.uint8())),
    # Apart from `latent`, which is then null: nobody takes coded bytes for symbols.
    ("latent_payload", pa.binary()),
    # What `latent` would hold, as one zstd frame, where that were a list of more than LIST_VALUES.
    ("latent_zstd", pa.binary()),
    ("latent_shape", pa.list_(pa.int32())),
    ("latent_crc32", pa.int64()),
]
LATENT_KEPT = ("latent", "latent_payload", "latent_zstd")
"""The column that holds the latent of a row: one of these, the others are null."""
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
        # Whether OUTPUT holds a row of it, whose file the new one replaces.
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
"""What travels to an actor for each image to do."""


def new_run_id() -> str:
    """A name for a run; names sort as runs began."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def result_schema(columns: dict[str, Any], stores_latent: bool) -> pa.Schema:
    """Schema of `results/` for a task with these quality columns."""
    quality = [(name, ARROW_TYPES[kind]) for name, kind in columns.items()]
    return pa.schema([*IDENTITY, *SOURCE, *LINEAGE, *OUTPUT, *quality, *(LATENT if stores_latent else [])])


def reject_schema() -> pa.Schema:
    return pa.schema([*IDENTITY, *REJECT, *LINEAGE])


def row_schema(columns: dict[str, Any], stores_latent: bool) -> pa.Schema:
    """A row between the actor and the sink: a result, or a reject where `stage` is set."""
    return pa.unify_schemas([result_schema(columns, stores_latent), reject_schema()])


def image_id(key: str) -> str:
    """128-bit identity of a source key, as 32 hex digits."""
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def version_of(checkpoint_sha256: str, parameters: dict[str, Any]) -> Callable[[str], str]:
    """From an etag, the 128-bit hash of what decides an output: source, model, parameters that change pixels or codes."""
    common = json.dumps([checkpoint_sha256, parameters], sort_keys=True)[1:].encode()

    def version(etag: str) -> str:
        return hashlib.blake2b(b"[" + json.dumps(etag).encode() + b", " + common, digest_size=16).hexdigest()

    return version


def part_name(table: pa.Table) -> str:
    """A part's name from the identities in it and the fence of their run: a write that is run twice writes the same file."""
    digest = hashlib.blake2b(digest_size=16)
    for row in sorted(zip(*(table[name].to_pylist() for name in ("image_id", "version", "fence")), strict=True)):
        digest.update("/".join(map(str, row)).encode())
    return f"part-{digest.hexdigest()}.parquet"


def store_latent(symbols: np.ndarray) -> np.ndarray:
    """Symbols (C,h,w) int8 as `latent` holds them, (n,) uint8."""
    stored: np.ndarray = np.ascontiguousarray(symbols).view(np.uint8).ravel() ^ np.uint8(LATENT_ZERO_POINT)
    return stored


def pack_latent(symbols: np.ndarray, payload: bytes | None = None) -> dict[str, Any]:
    """Symbols (C,h,w) int8 to the latent columns of a row: themselves, or the payload that they were coded to.

    The CRC is that of the symbols in both: whatever goes wrong between here and a picture is seen.
    """
    kept: dict[str, Any]
    if payload is None and symbols.size > LIST_VALUES:
        packed, crc32 = in_a_frame(symbols)
        kept = {"latent_zstd": packed}
    else:
        stored = store_latent(symbols)
        kept, crc32 = {"latent": stored} if payload is None else {"latent_payload": payload}, zlib.crc32(stored.data)
    return {**kept, "latent_shape": list(symbols.shape), "latent_crc32": crc32}


def in_a_frame(symbols: np.ndarray) -> tuple[bytes, int]:
    """What `latent` would hold of symbols (C,h,w) as one zstd frame, and its CRC-32, one channel after the other."""
    out, crc32 = pa.BufferOutputStream(), 0
    with pa.CompressedOutputStream(out, "zstd") as frame:
        for plane in symbols:
            stored = store_latent(plane)
            crc32 = zlib.crc32(stored.data, crc32)
            frame.write(stored)
    return out.getvalue().to_pybytes(), crc32


class LatentError(Exception):
    """A latent that is not what was written."""


def unpack_latent(latent: np.ndarray, shape: list[int], crc32: int) -> np.ndarray:
    """Latent columns to symbols (C,h,w) int8. Raises: LatentError when they do not match their CRC or shape."""
    stored = np.ascontiguousarray(latent, dtype=np.uint8)
    if zlib.crc32(stored.data) != crc32:
        raise LatentError("latent does not match its latent_crc32")
    if not shape or stored.size != int(np.prod(shape)):
        raise LatentError(f"latent has {stored.size} values, latent_shape {shape} wants {int(np.prod(shape or 0))}")
    symbols: np.ndarray = (stored ^ np.uint8(LATENT_ZERO_POINT)).view(np.int8).reshape(shape)
    return symbols


def latent_bytes(row: dict[str, Any], level: int) -> int:
    """Bytes that the latent of `pack_latent` takes in a part, where each is a page of its own, compressed alone."""
    if "latent" in row:
        return len(pa.Codec("zstd", level).compress(row["latent"]))
    return next(len(row[name]) for name in LATENT_KEPT if name in row)


def parquet_bytes(table: pa.Table, level: int) -> bytes:
    """A table as a Parquet file.

    Latents are split by byte (the upper bytes of Parquet's 32-bit integers are all zero) and not dictionary encoded;
    constant lineage columns are, which makes them nearly free. Statistics only on the identities: others cost more
    than small parts hold.
    """
    latent = "latent" in table.schema.names
    plain = (
        "latent",
        "latent_payload",
        "latent_zstd",
        "image_id",
        "version",
        "source_uri",
        "rel_path",
        "source_etag",
        "content_sha256",
        "output_sha256",
        "output_uri",
    )
    out = pa.BufferOutputStream()
    pq.write_table(
        table,
        out,
        compression="zstd",
        compression_level=level,
        use_dictionary=[n for n in table.schema.names if n not in plain],
        column_encoding={"latent.list.element": "BYTE_STREAM_SPLIT"} if latent else None,
        write_statistics=["image_id"],
        # A flipped bit of any column is seen by whoever reads with verification.
        write_page_checksum=True,
        data_page_size=64 * 1024,
        row_group_size=LATENT_ROWS if latent else None,
    )
    data: bytes = out.getvalue().to_pybytes()
    return data
