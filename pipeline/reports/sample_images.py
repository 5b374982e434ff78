"""A few images of a run, before and after: which ones, and their pictures, small enough for a page."""

import hashlib
import io
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.images.decode import decode_image, read_pixel_count
from imagemill.pipeline.output.latent_symbols import iterate_latent_rows
from imagemill.pipeline.output.latent_values import LATENT_COLUMNS
from imagemill.pipeline.output.output_names import stays_inside
from imagemill.pipeline.output.parts import read_part, scan_parts
from imagemill.pipeline.output.stored_checkpoint import load_stored_model
from imagemill.pipeline.reports.charts import Projection, project_latents, summarize_latent
from imagemill.pipeline.reports.page import data_url
from imagemill.pipeline.reports.sheets import center_crop
from imagemill.pipeline.schema import LatentError, unpack_latent
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason

log = logging.getLogger("imagemill.report")
AT_RANDOM, OF_EACH = 8, 4
"""Images that are shown: of all, and of the worst and the median each."""
SIDE = 256
"""Pixels a side of a picture."""
THREADS = 4
LARGE_PIXELS, MAX_SHOWN_PIXELS, CODED_PIXELS = 12_000_000, 200_000_000, 1_000_000
"""Images above the first are decoded one at a time, above the second not at all; coded latents above the third neither."""
PICTURE_SECONDS = 20.0
"""What is not there by then is left out."""
POINTS, POINT_PARTS, POINT_SYMBOLS = 300, 4, 200_000_000
ROW = ["rel_path", "image_id", "content_sha256", "output_uri", "orig_width", "orig_height", "exif_orientation"]


@dataclass(frozen=True)
class RowPlace:
    """Where a row lies."""

    part: str
    row: int


@dataclass(frozen=True)
class Rows:
    """The rows of a run as arrays over its images: a run of millions fits."""

    parts: list[str]
    part: np.ndarray
    """Which of `parts` holds it."""
    row: np.ndarray
    """Its number in there."""
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.part)

    def place(self, n: int) -> RowPlace:
        return RowPlace(self.parts[self.part[n]], int(self.row[n]))


def read_run_rows(output: Store, parts: list[str], run_id: str, columns: list[str]) -> Rows:
    """What a run committed: numbers and times of its rows, read some parts at a time. Raises: StorageError."""
    part, row = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    values: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in columns}
    number = {path: n for n, path in enumerate(parts)}
    for table in scan_parts(output, parts, ["run_id", *columns]):
        # The rows of a part lie together and in their order.
        codes = table["part"].combine_chunks().dictionary_encode()
        place, first = codes.indices.to_numpy(), np.unique(codes.indices.to_numpy(), return_index=True)[1]
        of_run = pc.equal(table["run_id"], run_id).to_numpy(zero_copy_only=False)
        paths = np.array([number[path] for path in codes.dictionary.to_pylist()], np.int32)
        part.append(paths[place][of_run])
        row.append((np.arange(len(table)) - first[place])[of_run].astype(np.int32))
        for name in columns:
            column = table[name] if name in table.schema.names else pa.nulls(len(table), pa.float64())
            column = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
            numbers = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
            values[name].append(numbers[of_run])
    return Rows(
        parts, np.concatenate(part), np.concatenate(row), {name: np.concatenate(arrays) for name, arrays in values.items()}
    )


@dataclass(frozen=True)
class ImagePair:
    """One image before and after, as addresses that hold the pictures; None for one that could not be had."""

    name: str
    value: float | None
    """Of the quality column."""
    before: str | None
    after: str | None


@dataclass
class ImageGroup:
    """A group of pairs."""

    title: str
    detail: bool
    """Whether the pictures are the middle at 1:1, not the whole."""
    places: list[RowPlace]
    pairs: list[ImagePair] = field(default_factory=list)


def choose_images(rows: Rows, worst: tuple[str, str] | None) -> list[ImageGroup]:
    """Which images to show: some of all, and by a quality column the worst and those about the median.

    Args: worst: "lowest" or "highest", and the column.
    """
    # The same for a run each time: a report that is made again shows what it showed.
    some = np.random.default_rng(len(rows)).choice(len(rows), min(AT_RANDOM, len(rows)), replace=False)
    groups = [ImageGroup("A sample", False, [rows.place(n) for n in sorted(some)])]
    if worst is None:
        return groups
    values = rows.columns[worst[1]]
    known = np.flatnonzero(np.isfinite(values))
    if len(known) > 2 * OF_EACH:
        order = known[np.argsort(values[known], kind="stable")]
        order = order if worst[0] == "lowest" else order[::-1]
        middle = len(order) // 2 - OF_EACH // 2
        among = "" if len(known) == len(rows) else f" of {len(known):,} that were measured"
        for title, numbers in (("The worst", order[:OF_EACH]), ("The median", order[middle : middle + OF_EACH])):
            groups.append(ImageGroup(title + among, True, [rows.place(n) for n in numbers]))
    return groups


def read_part_rows(output: Store, part: str, wanted: set[int], columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a part by their numbers, with latents a few at a time; from where it cannot be read on they are left out."""
    try:
        if "latent" not in columns:
            table = read_part(output, part, columns)
            yield from zip(sorted(wanted), table.take(pa.array(sorted(wanted))).to_pylist(), strict=True)
            return
        with output.fs.open(output.full(part), "rb") as f, pq.ParquetFile(f, page_checksum_verification=True) as file:
            there = [name for name in columns if name in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(batch_size=8, columns=there, use_threads=False):
                here = sorted(wanted.intersection(range(number, number + len(batch))))
                some = batch.take(pa.array([n - number for n in here], pa.int64()))
                yield from zip(here, iterate_latent_rows(some), strict=True)
                number += len(batch)
                if number > max(wanted):
                    return
    except (StorageError, pa.ArrowException, *STORE_FAILURES) as e:
        log.warning("%s: not shown: %s", part, reason(e))


def read_rows(output: Store, places: set[RowPlace], columns: list[str]) -> dict[RowPlace, dict[str, Any]]:
    """The rows at some places; what cannot be read is left out."""
    by_part: dict[str, set[int]] = {}
    for place in places:
        by_part.setdefault(place.part, set()).add(place.row)

    def read(part: str) -> dict[RowPlace, dict[str, Any]]:
        return {RowPlace(part, number): row for number, row in read_part_rows(output, part, by_part[part], columns)}

    with ThreadPoolExecutor(THREADS) as pool:
        return {place: row for rows in pool.map(read, by_part) for place, row in rows.items()}


def add_pictures(
    output: Store,
    groups: list[ImageGroup],
    column: str | None,
    columns: list[str],
    latents: bool,
    before: Callable[[list[dict[str, Any]]], Callable[[dict[str, Any]], bytes]],
) -> None:
    """Put the pairs of pictures into the groups; a picture that cannot be made is left out.

    Args:
        columns: those of the task. latents: whether its rows hold latents; files are taken where there are any.
        before: from the rows to show, what reads the encoded source of one of them.
    """
    names = [*ROW, *columns, *(["checkpoint_sha256", *LATENT_COLUMNS] if latents else [])]
    rows = read_rows(output, {place for group in groups for place in group.places}, names)
    if not rows:
        return
    of_latents = latents and not any(row["output_uri"] for row in rows.values())
    source = before(list(rows.values()))
    large = threading.Lock()
    # All rows of a run are of one checkpoint.
    model = load_decoder(output, next(iter(rows.values()))["checkpoint_sha256"]) if of_latents else None

    def picture(data: bytes, detail: bool, scale: int = 1) -> str:
        with large if read_pixel_count(data) > LARGE_PIXELS else nullcontext():
            return picture_url(decode_image(data, MAX_SHOWN_PIXELS, accept_damaged=True).rgb, detail, scale)

    def sides(place: RowPlace, detail: bool) -> tuple[str | None, str | None]:
        row = rows[place]

        def first() -> str:
            data = source(row)
            if hashlib.sha256(data).hexdigest() != row["content_sha256"]:
                raise ValueError("the source is not what it was")
            return picture(data, detail, row.get("scale", 1))

        def second() -> str:
            if of_latents:
                return picture_url(decode_center(row, model), detail)
            if not stays_inside(row["output_uri"]):
                raise ValueError(f"{row['output_uri']} is no path within OUTPUT")
            return picture(output.read(row["output_uri"]), detail)

        return try_picture(row["rel_path"], first), try_picture(row["rel_path"], second)

    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="report")
    for group in groups:
        group.detail |= of_latents
    asked = {(g.detail, p): pool.submit(sides, p, g.detail) for g in groups for p in g.places if p in rows}
    wait(asked.values(), PICTURE_SECONDS)
    for group in groups:
        for place in filter(rows.__contains__, group.places):
            future = asked[group.detail, place]
            pair = future.result() if future.done() else (None, None)
            group.pairs.append(ImagePair(rows[place]["rel_path"], rows[place].get(column) if column else None, *pair))
    pool.shutdown(wait=False, cancel_futures=True)


def load_decoder(output: Store, sha256: str) -> Any:
    """The model of latents, on this process's CPU; None where it cannot be had."""
    from imagemill.models.card import CheckpointError

    try:
        return load_stored_model(output, sha256, "cpu")
    except (CheckpointError, *STORE_FAILURES) as e:
        log.info("no pictures of latents: %s", reason(e))
        return None


def try_picture(name: str, make: Callable[[], str]) -> str | None:
    try:
        return make()
    except Exception as e:  # noqa: BLE001 - sources go away and files break: the page says that there is no picture
        log.debug("%s: not shown: %s", name, reason(e))
        return None


def picture_url(rgb: np.ndarray, detail: bool, scale: int = 1) -> str:
    """An image (H,W,3) uint8 as the address of a picture, of its middle or of all of it.

    Args: scale: in a middle each pixel is so many a side, as many as became of it.
    """
    if detail:
        rgb = center_crop(rgb, SIDE // scale).repeat(scale, 0).repeat(scale, 1)
    image = Image.fromarray(rgb)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=88)
    return data_url(out.getvalue(), "webp")


def decode_center(row: dict[str, Any], model: Any) -> np.ndarray:
    """The middle of an image from its latent, (H,W,3) uint8, at most SIDE a side: it costs the same for each size.

    Raises: LatentError; ValueError for a coded latent that is large, as all of it would have to be decoded.
    """
    from imagemill.models.objectives.compress import decode_latent
    from imagemill.pipeline.output.latent_symbols import decode_symbols, is_coded, upright_size

    height, width = upright_size(row)
    if is_coded(row) and height * width > CODED_PIXELS:
        raise ValueError("a large coded latent")
    symbols = decode_symbols(row, model.entropy)
    margin = -(-model.halo // model.stride)
    cuts, begins = [], []
    for side, positions in zip((height, width), symbols.shape[1:], strict=True):
        begin = max(0, (side - SIDE) // 2)
        first = max(0, begin // model.stride - margin)
        last = min(positions, -(-(begin + min(SIDE, side)) // model.stride) + margin)
        cuts.append(slice(first, last))
        begins.append(begin - first * model.stride)
    piece = symbols[:, cuts[0], cuts[1]]
    size = piece.shape[1] * model.stride, piece.shape[2] * model.stride
    rgb = decode_latent(model, piece, size, row["step"], "cpu")
    (y, x), (h, w) = begins, (min(SIDE, height), min(SIDE, width))
    return rgb[y : y + h, x : x + w]


def project_run_latents(output: Store, rows: Rows, column: str | None) -> Projection | None:
    """The plain latents of a sample, from a few parts, as points; None where there are less than three."""
    parts = np.unique(rows.part)
    parts = parts[:: -(-len(parts) // POINT_PARTS)]
    columns = ["rel_path", *([column] if column else []), *LATENT_COLUMNS]
    names, features, quality, left = [], [], [], POINT_SYMBOLS
    for part in parts:
        there = rows.row[rows.part == part]
        there = there[:: -(-len(there) * len(parts) // POINTS)]
        for _, row in read_part_rows(output, rows.parts[part], set(there.tolist()), columns):
            if row["latent"] is None or left < 0:
                continue
            left -= row["latent"].size
            try:
                symbols = unpack_latent(row["latent"], row["latent_shape"], row["latent_crc32"])
            except LatentError:
                continue
            names.append(row["rel_path"])
            features.append(summarize_latent(symbols))
            quality.append(row[column] if column else 0.0)
    return project_latents(names, np.stack(features), np.array(quality, float)) if len(names) > 2 else None
