"""Latents back to images: what `compress` wrote, in any process, on any machine."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch

from jobs.console import console
from jobs.inspect import check_exists
from models.autoencoder import Autoencoder
from models.tasks.compress import decode_latent
from pipeline.errors import ConfigError, VerificationError
from pipeline.latents import latent_rows, symbols_of
from pipeline.names import decoded_name
from pipeline.pixels import encode_rgb
from pipeline.predict import kept_model
from pipeline.schema import LatentError
from pipeline.snapshot import snapshot
from pipeline.storage import Store

ROWS_AT_A_TIME = 32
IMAGE = ["image_id", "rel_path", "orig_width", "orig_height", "exif_orientation", "step", "checkpoint_sha256"]
DECODED = [*IMAGE, "latent", "latent_payload", "latent_shape", "latent_crc32"]
"""What an image is decoded from."""
TURNED = (5, 6, 7, 8)
"""EXIF orientations whose upright image has its width and height exchanged."""


def upright_size(row: dict[str, Any]) -> tuple[int, int]:
    """(H,W) of the upright image of a row."""
    size = (row["orig_height"], row["orig_width"])
    return size[::-1] if row["exif_orientation"] in TURNED else size


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
    newest = snapshot(output)
    if newest.task and newest.task != "compress":
        raise ConfigError(f"{output.url} holds no latents: its task is {newest.task}")
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

    with ThreadPoolExecutor() as pool:
        for table in newest.tables(DECODED):
            for start in range(0, len(table), ROWS_AT_A_TIME):
                list(pool.map(write, latent_rows(table.slice(start, ROWS_AT_A_TIME))))
    console.print(f"{len(newest) - len(problems):,} images in {dest.url}")
    if problems:
        raise VerificationError("; ".join(problems[:10]))
    return len(newest)
