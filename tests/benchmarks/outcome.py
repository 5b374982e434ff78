"""Read the output of a run of any peer: its images, their times, and their difference from the reference."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

LATENT_TOLERANCE = 1e-2
"""Largest difference of a latent from float32, relative to its root mean square."""
PSNR_TOLERANCE_DB = 0.05
ZERO_POINT = 128
"""Imagemill and tuned peers store symbols + 128 as uint8; the others store symbols as int8."""


def parts(output: Path) -> list[Path]:
    """Return the Parquet files of results."""
    return sorted(p for p in output.rglob("*.parquet") if not {"rejects", "runs", "shards"} & set(p.parts))


def column(part: Path, names: Sequence[str]) -> pa.ChunkedArray:
    """Return the first of these columns that a part has."""
    file = pq.ParquetFile(part)
    name = next(name for name in names if name in file.schema_arrow.names)
    return file.read([name])[name]


def images_in(output: Path) -> list[str]:
    """Return the names of the sources that have a row."""
    return sorted(Path(path).name for part in parts(output) for path in column(part, ["rel_path", "path"]).to_pylist())


def times_of(output: Path) -> list[tuple[float, int]]:
    """Return (seconds, images): when images were finished, from output files, or else from rows or the peer's notes."""
    if written := list((output / "images").glob("*")):
        return sorted((path.stat().st_mtime, 1) for path in written)
    if noted := list(output.glob("*.times")):
        lines = [line.split() for path in noted for line in path.read_text().splitlines()]
        return sorted((float(at), int(count)) for at, count in lines)
    rows = [at.timestamp() for part in parts(output) for at in column(part, ["encoded_at"]).to_pylist()]
    return sorted((at, 1) for at in rows)


def steady_rate(times: Sequence[tuple[float, int]]) -> float | None:
    """Return images per second from the first finished image to the last; None if all have one time."""
    if len(times) < 2 or times[-1][0] <= times[0][0]:
        return None
    return sum(count for _, count in times[1:]) / (times[-1][0] - times[0][0])


def latents_in(output: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the symbols (n,) int16 of each named image."""
    found, wanted = {}, set(names)
    for part in parts(output):
        paths = [Path(path).name for path in column(part, ["rel_path", "path"]).to_pylist()]
        if wanted.isdisjoint(paths):
            continue
        values = column(part, ["latent"])
        if isinstance(values.type, pa.ExtensionType):
            values = values.cast(values.type.storage_type)
        shift = ZERO_POINT if values.type.value_type == pa.uint8() else 0
        found |= {
            path: np.asarray(value.values, np.int16) - shift
            for path, value in zip(paths, values, strict=True)
            if path in wanted
        }
    return found


def pixels_in(output: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the output images (H,W,3) uint8."""
    return {n: pixels_of((output / "images" / n).read_bytes()) for n in names if (output / "images" / n).exists()}


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def latent_error(latent: np.ndarray, reference: np.ndarray) -> float:
    """Return the root mean square of the difference relative to the reference; infinite if shapes differ."""
    if latent.size != reference.size:
        return float("inf")
    difference = latent.ravel().astype(float) - reference.ravel()
    return float(np.sqrt(np.square(difference).mean() / max(1e-12, np.square(reference.astype(float)).mean())))


def psnr_db(image: np.ndarray, clean: np.ndarray) -> float:
    """Return the PSNR in dB of 8-bit images; minus infinity if shapes differ."""
    if image.shape != clean.shape:
        return float("-inf")
    return float(10 * np.log10(255**2 / max(1e-12, np.square(image.astype(float) - clean).mean())))


def deviation(output: Path, reference: dict[str, np.ndarray], clean: dict[str, np.ndarray] | None) -> float:
    """Return the largest `latent_error`, or difference of PSNR to the clean image in dB; infinite if an image is missing.

    Args: clean: what denoised images should be; None for latents.
    """
    found = latents_in(output, list(reference)) if clean is None else pixels_in(output, list(reference))
    if found.keys() != reference.keys():
        return float("inf")
    if clean is None:
        return max(latent_error(found[name], reference[name]) for name in reference)
    return max(abs(psnr_db(found[name], clean[name]) - psnr_db(reference[name], clean[name])) for name in reference)
