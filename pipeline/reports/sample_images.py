"""Choose a few images of a run for its report, and make their pictures: input and result."""

import hashlib
import io
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from imagemill.pipeline.images.decode import decode_image, read_pixel_count
from imagemill.pipeline.output.latent_values import LATENT_COLUMNS
from imagemill.pipeline.output.output_names import stays_inside
from imagemill.pipeline.output.stored_checkpoint import load_stored_model
from imagemill.pipeline.reports.charts import Projection, project_latents, summarize_latent
from imagemill.pipeline.reports.page import data_url
from imagemill.pipeline.reports.run_rows import THREADS, RowPosition, RunRows, read_part_rows, read_rows
from imagemill.pipeline.reports.sheets import center_crop
from imagemill.pipeline.schema import LatentError, unpack_latent
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures

log = logging.getLogger("imagemill.report")
RANDOM_IMAGES, IMAGES_BY_QUALITY = 8, 4
"""Images shown at random, and images shown at each end of the quality column."""
SIDE = 256
"""Longest side of a picture, in pixels."""
LARGE_PIXELS = 12_000_000
"""Larger images are decoded one at a time."""
MAX_SHOWN_PIXELS, MAX_CODED_PIXELS = 200_000_000, 1_000_000
"""Larger images, and larger images with entropy-coded latents, have no picture."""
PICTURE_SECONDS = 20.0
"""Pictures that are not ready after this time are left out."""
POINTS, POINT_PARTS, POINT_SYMBOLS = 300, 4, 200_000_000
"""Limits of the scatter plot: latents, the parts that they come from, and their symbols."""
COLUMNS = ["rel_path", "image_id", "content_sha256", "output_uri", "orig_width", "orig_height", "exif_orientation"]
SourceReader = Callable[[dict[str, Any]], bytes]
"""Returns the encoded input image of a row."""


@dataclass(frozen=True)
class ImagePair:
    """Data URLs of the input and of the result of an image; None for a picture that could not be made."""

    name: str
    value: float | None
    """Of the quality column."""
    before: str | None
    after: str | None


@dataclass
class ImageGroup:
    """Images under one heading."""

    title: str
    crops: bool
    """Whether the pictures are center crops that are not resized."""
    positions: list[RowPosition]
    pairs: list[ImagePair] = field(default_factory=list)


def choose_images(rows: RunRows, worst: tuple[str, str] | None, label: str) -> list[ImageGroup]:
    """Choose a random sample, the images with the worst quality, and images around the median.

    Args:
        rows: the rows of the run.
        worst: "lowest" or "highest", and the quality column; None for a task without a quality column.
        label: the name of the quality column for people.
    """
    # Seeded by the number of rows, so that a report that is written again shows the same images.
    sample = np.random.default_rng(len(rows)).choice(len(rows), min(RANDOM_IMAGES, len(rows)), replace=False)
    groups = [ImageGroup("Random sample", False, [rows.position(n) for n in sorted(sample)])]
    if worst is None:
        return groups
    values = rows.columns[worst[1]]
    measured = np.flatnonzero(np.isfinite(values))
    if len(measured) > 2 * IMAGES_BY_QUALITY:
        order = measured[np.argsort(values[measured], kind="stable")]
        order = order if worst[0] == "lowest" else order[::-1]
        middle = len(order) // 2 - IMAGES_BY_QUALITY // 2
        among = "" if len(measured) == len(rows) else f" of {len(measured):,} measured images"
        titles = f"{worst[0].capitalize()} {label}", f"{label[:1].upper()}{label[1:]} around the median"
        for title, numbers in zip(titles, (order, order[middle:]), strict=True):
            positions = [rows.position(n) for n in numbers[:IMAGES_BY_QUALITY]]
            groups.append(ImageGroup(title + among, True, positions))
    return groups


def add_pictures(
    output: Store,
    groups: list[ImageGroup],
    column: str | None,
    columns: list[str],
    stores_latent: bool,
    open_sources: Callable[[list[dict[str, Any]]], SourceReader],
) -> None:
    """Make the pictures of the groups; a picture that cannot be made is left out.

    Args:
        output: the output of the run.
        groups: the groups whose `pairs` are filled.
        column: the quality column.
        columns: the columns of the task.
        stores_latent: whether the rows hold latents; output images are preferred where they exist.
        open_sources: returns the reader of the input images of some rows.
    """
    names = [*COLUMNS, *columns, *(["checkpoint_sha256", *LATENT_COLUMNS] if stores_latent else [])]
    rows = read_rows(output, {position for group in groups for position in group.positions}, names)
    if not rows:
        return
    from_latents = stores_latent and not any(row["output_uri"] for row in rows.values())
    read_source = open_sources(list(rows.values()))
    large_image = threading.Lock()
    # All rows of a run have the same checkpoint.
    model = load_decoder(output, next(iter(rows.values()))["checkpoint_sha256"]) if from_latents else None

    def decode_to_url(data: bytes, crop: bool, scale: int = 1) -> str:
        with large_image if read_pixel_count(data) > LARGE_PIXELS else nullcontext():
            return picture_url(decode_image(data, MAX_SHOWN_PIXELS, accept_damaged=True).rgb, crop, scale)

    def make_pair(position: RowPosition, crop: bool) -> tuple[str | None, str | None]:
        row = rows[position]

        def make_before() -> str:
            data = read_source(row)
            if hashlib.sha256(data).hexdigest() != row["content_sha256"]:
                raise ValueError("the input image has changed")
            return decode_to_url(data, crop, row.get("scale", 1))

        def make_after() -> str:
            if from_latents:
                return picture_url(decode_center(row, model), crop)
            if not stays_inside(row["output_uri"]):
                raise ValueError(f"{row['output_uri']} is not inside the output")
            return decode_to_url(output.read(row["output_uri"]), crop)

        return try_picture(row["rel_path"], make_before), try_picture(row["rel_path"], make_after)

    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="report")
    for group in groups:
        group.crops |= from_latents
    futures = {(g.crops, p): pool.submit(make_pair, p, g.crops) for g in groups for p in g.positions if p in rows}
    wait(futures.values(), PICTURE_SECONDS)
    for group in groups:
        for position in filter(rows.__contains__, group.positions):
            future, row = futures[group.crops, position], rows[position]
            pair = future.result() if future.done() else (None, None)
            group.pairs.append(ImagePair(row["rel_path"], row.get(column) if column else None, *pair))
    pool.shutdown(wait=False, cancel_futures=True)


def load_decoder(output: Store, sha256: str) -> Any:
    """Return the model that decodes latents, on the CPU; None when the stored checkpoint is missing or damaged."""
    from imagemill.models.errors import CheckpointError

    try:
        return load_stored_model(output, sha256, "cpu")
    except store_failures(CheckpointError) as e:
        log.info("the report shows no decoded latents: %s", reason(e))
        return None


def try_picture(name: str, make: Callable[[], str]) -> str | None:
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
    image.save(out, "WEBP", quality=88)
    return data_url(out.getvalue(), "webp")


def decode_center(row: dict[str, Any], model: Any) -> np.ndarray:
    """Decode the center of an image from its latent: (H,W,3) uint8, at most SIDE pixels on each side.

    Raises:
        LatentError: when the latent is damaged.
        ValueError: when the image is large and its latent is entropy-coded, so that all of it would have to be decoded.
    """
    from imagemill.models.objectives.compress import decode_latent
    from imagemill.pipeline.output.latent_symbols import decode_symbols, is_coded, upright_size

    height, width = upright_size(row)
    if is_coded(row) and height * width > MAX_CODED_PIXELS:
        raise ValueError("the entropy-coded latent is too large")
    symbols = decode_symbols(row, model.entropy)
    margin = -(-model.halo // model.stride)
    slices, offsets = [], []
    for side, length in zip((height, width), symbols.shape[1:], strict=True):
        begin = max(0, (side - SIDE) // 2)
        first = max(0, begin // model.stride - margin)
        last = min(length, -(-(begin + min(SIDE, side)) // model.stride) + margin)
        slices.append(slice(first, last))
        offsets.append(begin - first * model.stride)
    piece = symbols[:, slices[0], slices[1]]
    size = piece.shape[1] * model.stride, piece.shape[2] * model.stride
    rgb = decode_latent(model, piece, size, row["step"], "cpu")
    (y, x), (h, w) = offsets, (min(SIDE, height), min(SIDE, width))
    return rgb[y : y + h, x : x + w]


def project_run_latents(output: Store, rows: RunRows, column: str | None) -> Projection | None:
    """Return a scatter plot of the plain latents of a sample; None if there are fewer than three.

    Args:
        output: the output of the run.
        rows: the rows of the run.
        column: the quality column, which decides the shade.
    """
    parts = np.unique(rows.part)
    parts = parts[:: -(-len(parts) // POINT_PARTS)]
    columns = ["rel_path", *([column] if column else []), *LATENT_COLUMNS]
    names, features, quality, symbols_left = [], [], [], POINT_SYMBOLS
    for part in parts:
        numbers = rows.row[rows.part == part]
        numbers = numbers[:: -(-len(numbers) * len(parts) // POINTS)]
        for _, row in read_part_rows(output, rows.parts[part], set(numbers.tolist()), columns):
            if row["latent"] is None or symbols_left < 0:
                continue
            symbols_left -= row["latent"].size
            try:
                symbols = unpack_latent(row["latent"], row["latent_shape"], row["latent_crc32"])
            except LatentError:
                continue
            names.append(row["rel_path"])
            features.append(summarize_latent(symbols))
            quality.append(row[column] if column else 0.0)
    return project_latents(names, np.stack(features), np.array(quality, float)) if len(names) > 2 else None
