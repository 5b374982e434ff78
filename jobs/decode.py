"""Latents back to images: what `compress` wrote, in any process, on any machine."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from jobs.console import console, number
from jobs.inspect import check_exists
from models.objectives.compress import decode_latent
from pipeline.errors import VerificationError, first_of
from pipeline.images.pixels import encode_rgb
from pipeline.output.exports import state_of
from pipeline.output.latents import latent_rows, upright_size
from pipeline.output.names import decoded_name
from pipeline.output.values import LATENT_COLUMNS, Coders, check_latents, symbols_in
from pipeline.progress import with_progress
from pipeline.schema import LATENT_KEPT, LatentError
from pipeline.storage import Store

DECODED_AT_A_TIME = 32
IMAGE = ["rel_path", "orig_width", "orig_height", "exif_orientation", "step", "checkpoint_sha256"]
"""What an image is decoded from, beside its latent."""
OF_EXPORT = {*IMAGE, *LATENT_COLUMNS}.difference(LATENT_KEPT[1:])
"""Columns that an export, which keeps latents as `latent` alone, has to have to be decoded."""


def decode_row(row: dict[str, Any], coders: Coders, device: str) -> np.ndarray:
    """The image (H,W,3) uint8 of a row of `latent_rows`. Raises: LatentError when the latent is not what was written."""
    symbols = symbols_in(row, coders)
    return decode_latent(coders[row["checkpoint_sha256"]], symbols, upright_size(row), row["step"], device)


def decode_output(output: Store, dest: Store, where: str | None = None) -> int:
    """Write the newest image of every row of OUTPUT, or of an export, to DEST as PNG, under the names `--reconstruct` gives.

    Args: where: an SQL condition that rows must meet.

    Raises: StorageError, ConfigError, CheckpointError before anything is written; VerificationError at the end when
        latents did not match their CRC (they are named, never decoded).
    """
    check_exists(output, or_export=True)
    state = state_of(output, where=where)
    if len(state) or not where:
        check_latents(state)
    # As in the actors, whose results these must equal: one torch thread for each image.
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    coders = Coders(output, device)
    problems: list[str] = []

    def write(row: dict[str, Any]) -> None:
        try:
            rgb = decode_row(row, coders, device)
        except LatentError as e:
            problems.append(f"{row['rel_path']}: {e}")
            return
        dest.write(decoded_name(row["rel_path"]), encode_rgb(rgb, "PNG"))

    with ThreadPoolExecutor() as pool:
        columns = [*IMAGE, *(name for name in LATENT_COLUMNS if name in state.schema.names or name not in LATENT_KEPT[1:])]
        tables = state.tables(columns)
        pieces = (t.slice(start, DECODED_AT_A_TIME) for t in tables for start in range(0, len(t), DECODED_AT_A_TIME))
        for piece in with_progress(pieces, len(state), len):
            list(pool.map(write, latent_rows(piece)))
    console.print(f"{number(len(state) - len(problems), 'image')} in {dest.url}")
    if problems:
        raise VerificationError(first_of(problems))
    return len(state)
