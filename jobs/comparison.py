"""Load the images of an output whose latents can be compared; `search`, `duplicates` and `map` start here."""

import logging

import numpy as np

from imagemill.jobs.console import number
from imagemill.jobs.outputs import check_output
from imagemill.pipeline.errors import VerificationError, join_first
from imagemill.pipeline.output.neighbours import Collection, load_collection
from imagemill.pipeline.reports.thumbnails import decode_thumbnails
from imagemill.pipeline.storage import Store

log = logging.getLogger("imagemill.compare")
SIDE = 256
"""Longest side of a picture on a sheet, in pixels."""
LABEL_LETTERS = 28


def load_comparable(output: Store) -> Collection:
    """Return the images with the newest model and parameters; a warning names the rows that are left out.

    Raises:
        StorageError: when the output does not exist or cannot be read.
        ConfigError: when the output has no latents.
        CheckpointError: when the checkpoint stored in the output is missing or damaged.
    """
    check_output(output)
    images = load_collection(output)
    if images.others:
        log.warning("left out, because another model or other parameters computed them: %s", "; ".join(images.others))
    return images


def load_pictures(images: Collection, ids: list[str]) -> dict[str, np.ndarray]:
    """Return pictures (H,W,3) uint8 decoded from the latents, by image_id; damaged latents are left out."""
    state = images.select("image_id", ids)
    if not len(state):
        return {}
    return {row["image_id"]: rgb for row, rgb in decode_thumbnails(state, images.coder, ["image_id"], SIDE, [])}


def shorten(name: str) -> str:
    """Return the end of a name, short enough for a label on a sheet."""
    return name if len(name) <= LABEL_LETTERS else f"…{name[1 - LABEL_LETTERS :]}"


def raise_damaged(problems: list[str]) -> None:
    """Raise VerificationError if damaged latents were left out."""
    if problems:
        raise VerificationError(f"{number(len(problems), 'image')} with damaged latents left out: {join_first(problems)}")
