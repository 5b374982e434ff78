"""Latents back to images: what `compress` wrote, in any process, on any machine."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from jobs.console import console
from jobs.inspect import check_exists
from models.autoencoder import Autoencoder
from models.tasks.compress import decode_latent
from pipeline.account import newest_rows
from pipeline.committed import part_paths, read_parts
from pipeline.errors import ConfigError, VerificationError
from pipeline.latents import latent_rows, symbols_of, upright_size
from pipeline.names import decoded_name
from pipeline.pixels import encode_rgb
from pipeline.predict import kept_model
from pipeline.schema import LatentError
from pipeline.storage import Store


def decode_row(row: dict[str, Any], model: Any, device: str) -> np.ndarray:
    """The image (H,W,3) uint8 of a row of `latent_rows`. Raises: LatentError when the latent is not what was written."""
    symbols = symbols_of(row, model.entropy)
    return decode_latent(model, symbols, upright_size(row), row["step"], device)


def decode_output(output: Store, dest: Store) -> int:
    """Write the newest image of every row of OUTPUT to DEST as PNG, under the names that `--reconstruct` gives.

    Raises: StorageError, ConfigError, CheckpointError before anything is written; VerificationError at the end when
        latents did not match their CRC (they are named, never decoded).
    """
    check_exists(output)
    paths = part_paths(output, "results")
    index = read_parts(output, paths, ["image_id", "task", "encoded_at", "fence"])
    if len(index) and index["task"][0].as_py() != "compress":
        raise ConfigError(f"{output.url} holds no latents: its task is {index['task'][0].as_py()}")
    # As in the actors, whose results these must equal: one torch thread for each image.
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    @cache
    def model_of(sha256: str) -> Autoencoder:
        return kept_model(output, sha256, device)

    problems: list[str] = []

    def write(row: dict[str, Any]) -> None:
        try:
            rgb = decode_row(row, model_of(row["checkpoint_sha256"]), device)
        except LatentError as e:
            problems.append(f"{row['rel_path']}: {e}")
            return
        dest.write(decoded_name(row["rel_path"], row["image_id"]), encode_rgb(rgb, "PNG"))

    newest = newest_rows(index) if len(index) else index
    with ThreadPoolExecutor() as pool:
        for path in paths:
            wanted = pc.filter(newest["image_id"], pc.equal(newest["part"], path))
            with output.fs.open(output.full(path), "rb") as f:
                for batch in pq.ParquetFile(f).iter_batches(batch_size=32):
                    rows = batch.filter(pc.is_in(batch["image_id"], wanted.combine_chunks()))
                    list(pool.map(write, latent_rows(rows)))
    console.print(f"{len(newest) - len(problems):,} images in {dest.url}")
    if problems:
        raise VerificationError("; ".join(problems[:10]))
    return len(newest)
