"""Make the pictures of a report, as data URLs: the inputs of images, and their results, also from latents."""

import hashlib
import io
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from imagemill.models.errors import CheckpointError
from imagemill.pipeline.engines.fork_server import call_in_worker
from imagemill.pipeline.errors import RunFailed, StorageError
from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import decode_image, read_pixel_count
from imagemill.pipeline.output.latent_symbols import SIZE_COLUMNS
from imagemill.pipeline.output.latent_values import LATENT_COLUMNS
from imagemill.pipeline.output.output_names import stays_inside
from imagemill.pipeline.reports.page import data_url
from imagemill.pipeline.reports.run_rows import THREADS, RowPosition, read_rows
from imagemill.pipeline.reports.sample_images import ImageGroup, ImagePair, SourceReader
from imagemill.pipeline.reports.sheets import center_crop
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures

log = logging.getLogger("imagemill.report")
SIDE = 256
"""Longest side of a picture, in pixels."""
MAX_CODED_PIXELS = 1_000_000
"""Larger images with entropy-coded latents have no picture."""
LARGE_PIXELS = 12_000_000
"""Larger images are decoded one at a time."""
MAX_SHOWN_PIXELS = 200_000_000
"""Larger images have no picture."""
WHOLE_IMAGE_MARGIN = 8
"""Values of a latent around a center that a network decodes which takes whole images."""
PICTURE_SECONDS = 20.0
"""Pictures that are not ready after this time are left out."""
SHOWN_COLUMNS = ["rel_path", "image_id", "content_sha256", "output_uri", *SIZE_COLUMNS]
Pictures = dict[bool, str]
"""Data URLs of pictures of an image, by whether they are crops."""
Maker = Callable[[RowPosition, dict[str, Any]], Pictures]
Picture = TypeVar("Picture")
LATENT_ROW_COLUMNS = ["rel_path", "checkpoint_sha256", "step", *SIZE_COLUMNS, *LATENT_COLUMNS]


def add_pictures(
    output: Store,
    groups: list[ImageGroup],
    column: str | None,
    columns: list[str],
    stores_latent: bool,
    fitting: ImageConfig,
    open_sources: Callable[[list[dict[str, Any]]], SourceReader],
) -> None:
    """Make the pictures of the groups; a picture that cannot be made is left out.

    Args:
        output: the output of the run.
        groups: the groups whose `pairs` are filled.
        column: the quality column.
        columns: the columns of the task.
        stores_latent: whether the rows hold latents; output images are preferred where they exist.
        fitting: how the run resized and cropped the input images.
        open_sources: returns the reader of the input images of some rows.
    """
    rows = read_rows(output, {position for group in groups for position in group.positions}, [*SHOWN_COLUMNS, *columns])
    if not rows:
        return
    from_latents = stores_latent and not any(row["output_uri"] for row in rows.values())
    read_source = open_sources(list(rows.values()))
    large_image = threading.Lock()

    for group in groups:
        group.crops |= from_latents

    def make_urls(data: bytes, position: RowPosition, scale: int = 1, config: ImageConfig = ImageConfig()) -> Pictures:
        with large_image if read_pixel_count(data) > LARGE_PIXELS else nullcontext():
            rgb = decode_image(data, MAX_SHOWN_PIXELS, config, accept_damaged=True).rgb
            return {crop: picture_url(rgb, crop, scale) for crop in {g.crops for g in groups if position in g.positions}}

    def make_before(position: RowPosition, row: dict[str, Any]) -> Pictures:
        data = read_source(row)
        if hashlib.sha256(data).hexdigest() != row["content_sha256"]:
            raise ValueError("the input image has changed")
        return make_urls(data, position, row.get("scale", 1), fitting)

    def make_after(position: RowPosition, row: dict[str, Any]) -> Pictures:
        if not stays_inside(row["output_uri"]):
            raise ValueError(f"{row['output_uri']} is not inside the output")
        return make_urls(output.read(row["output_uri"]), position)

    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="report")
    decoded = pool.submit(decode_in_worker, output, set(rows)) if from_latents else None
    makers: list[Maker] = [make_before] if from_latents else [make_before, make_after]
    futures = {
        (make, position): pool.submit(try_picture, row["rel_path"], partial(make, position, row))
        for position, row in rows.items()
        for make in makers
    }
    wait(futures.values(), PICTURE_SECONDS)
    decoded_pictures = decoded.result() if decoded else {}

    def picture(make: Maker, position: RowPosition, crop: bool) -> str | None:
        future = futures.get((make, position))
        return (future.result() or {}).get(crop) if future and future.done() else None

    for group in groups:
        for position in filter(rows.__contains__, group.positions):
            value = rows[position].get(column) if column else None
            before = picture(make_before, position, group.crops)
            after = decoded_pictures.get(position) or picture(make_after, position, group.crops)
            group.pairs.append(ImagePair(rows[position]["rel_path"], value, before, after))
    pool.shutdown(wait=False, cancel_futures=True)


def decode_in_worker(output: Store, positions: set[RowPosition]) -> dict[RowPosition, str]:
    """Call `decode_pictures` in a worker process, so that this process does not import torch."""
    log.info("decoding %d pictures for the report, for at most %.0f s", len(positions), PICTURE_SECONDS)
    try:
        pictures: dict[RowPosition, str] = call_in_worker(decode_pictures, output, positions, PICTURE_SECONDS)
        return pictures
    except store_failures(CheckpointError, StorageError, RunFailed) as e:
        log.info("the report shows no decoded latents: %s", reason(e))
        return {}


def try_picture(name: str, make: Callable[[], Picture]) -> Picture | None:
    """Return the result of `make`, or None if it fails."""
    try:
        return make()
    except Exception as e:  # noqa: BLE001 - a missing or damaged image must not prevent the report
        log.debug("%s: the report shows no picture: %s", name, reason(e))
        return None


def picture_url(rgb: np.ndarray, crop: bool, scale: int = 1) -> str:
    """Return a picture of an image (H,W,3) uint8 as a data URL.

    Args:
        rgb: the image.
        crop: show the center of the image, not resized, instead of all of it.
        scale: repeat each pixel of a crop this often in both directions, to compare the input of an upscaling task.
    """
    if crop:
        rgb = center_crop(rgb, SIDE // scale).repeat(scale, 0).repeat(scale, 1)
    image = Image.fromarray(rgb)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=88, method=2)  # Higher methods take twice as long and save no bytes.
    return data_url(out.getvalue(), "webp")


def decode_pictures(output: Store, positions: set[RowPosition], seconds: float) -> dict[RowPosition, str]:
    """Decode pictures of the centers of images from their latents. Damaged latents are left out.

    This is the only part of a report that needs torch. Arguments and result can be pickled, so that a process without
    torch can let another process call this function.

    Args:
        output: the output of the run.
        positions: the rows of the images. All rows of a run have the same checkpoint.
        seconds: time after which the remaining pictures are left out.

    Returns:
        The data URL of each picture.

    Raises:
        CheckpointError: when the stored checkpoint is missing or damaged.
    """
    from imagemill.pipeline.output.stored_checkpoint import load_stored_model

    rows = read_rows(output, positions, LATENT_ROW_COLUMNS)
    if not rows:
        return {}
    model = load_stored_model(output, next(iter(rows.values()))["checkpoint_sha256"], "cpu")
    end = time.monotonic() + seconds
    pictures: dict[RowPosition, str] = {}
    for position, row in rows.items():
        if time.monotonic() > end:
            break
        if url := try_picture(row["rel_path"], partial(decode_row, row, model)):
            pictures[position] = url
    return pictures


def decode_row(row: dict[str, Any], model: Any) -> str:
    """Return the picture of the center of an image, from its latent."""
    return picture_url(decode_center(row, model), True)


def decode_center(row: dict[str, Any], model: Any) -> np.ndarray:
    """Decode the center of an image from its latent: (H,W,3) uint8, at most SIDE pixels on each side.

    Raises:
        LatentError: when the latent is damaged.
        ValueError: when the image is large and its latent is entropy-coded, so that all of it would have to be decoded.
    """
    from imagemill.models.latents import decode_latent
    from imagemill.pipeline.output.latent_symbols import image_size, is_coded, read_latent

    height, width = image_size(row)
    if is_coded(row) and height * width > MAX_CODED_PIXELS:
        raise ValueError("the entropy-coded latent is too large")
    latent = read_latent(row, getattr(model, "entropy", None))
    # A network that takes whole images gives a slightly different center, which is good enough for a picture.
    margin = -(-model.halo // model.factor) if model.tiling == "exact" else WHOLE_IMAGE_MARGIN
    slices, offsets = [], []
    for side, length in zip((height, width), latent.shape[1:], strict=True):
        begin = max(0, (side - SIDE) // 2)
        first = max(0, begin // model.factor - margin)
        last = min(length, -(-(begin + min(SIDE, side)) // model.factor) + margin)
        slices.append(slice(first, last))
        offsets.append(begin - first * model.factor)
    piece = latent[:, slices[0], slices[1]]
    size = piece.shape[1] * model.factor, piece.shape[2] * model.factor
    rgb = decode_latent(model, piece, size, row["step"], "cpu")
    (y, x), (h, w) = offsets, (min(SIDE, height), min(SIDE, width))
    return rgb[y : y + h, x : x + w]
