"""Decode the latents of an output, or of an export, to images."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from imagemill.jobs.console import number, print_text
from imagemill.jobs.outputs import check_output
from imagemill.models.latents import decode_latent
from imagemill.pipeline.errors import ConfigError, VerificationError, join_first
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.output.exports import check_decodable, open_snapshot
from imagemill.pipeline.output.file_record import FileRecord
from imagemill.pipeline.output.latent_symbols import SIZE_COLUMNS, image_size, iterate_latent_rows
from imagemill.pipeline.output.latent_values import LATENT_COLUMNS, LatentCoders, check_latents, read_code
from imagemill.pipeline.output.name_clashes import find_clashes
from imagemill.pipeline.output.origins import is_same_place
from imagemill.pipeline.output.output_names import decoded_name, fallback_name
from imagemill.pipeline.output.ownership import FOLDERS
from imagemill.pipeline.output.run_history import list_run_ids, read_run_records
from imagemill.pipeline.output.snapshot import Snapshot
from imagemill.pipeline.progress import with_progress
from imagemill.pipeline.schema import FITTING, LATENT_CONTENT, LatentError
from imagemill.pipeline.sources.addresses import WEB_SCHEMES
from imagemill.pipeline.sources.input import is_input_file
from imagemill.pipeline.storage import Store

DECODED_AT_ONCE = 32
ANNOUNCED_AT_ONCE = 4096
"""Names that are recorded together before their images are written, and with their digests afterwards."""
DECODED_COLUMNS = ["rel_path", *SIZE_COLUMNS, "step", "checkpoint_sha256", *LATENT_COLUMNS]
"""Columns that decoding uses. Exports of older versions lack some of them."""


def export_columns(are_resized: bool) -> set[str]:
    """Return the columns that an export needs so that it can be decoded. It keeps latents only in the column `latent`.

    Args:
        are_resized: whether an image was resized or cropped before it was encoded.
    """
    unneeded = [*LATENT_CONTENT[1:], "latent_dtype", *(() if are_resized else (name for name, _ in FITTING))]
    return set(DECODED_COLUMNS).difference(unneeded)


def decode_row(row: dict[str, Any], coders: LatentCoders, device: str) -> np.ndarray:
    """Decode a row of `iterate_latent_rows` to an image (H,W,3) uint8. Raises LatentError if the latent is damaged."""
    code = read_code(row, coders)
    return decode_latent(coders[row["checkpoint_sha256"]], code, image_size(row), row["step"], device)


def decode_output(output: Store, dest: Store, where: str | None = None, overwrite: bool = False) -> int:
    """Decode the newest row of each image to a PNG file, with the name that `compress --reconstruct` gives.

    Args:
        output: an output or an export.
        dest: the folder for the PNG files.
        where: an SQL condition; only rows that meet it are decoded.
        overwrite: replace files that imagemill did not write, and allow a folder that contains input images.

    Returns:
        The number of rows, including damaged ones.

    Raises:
        StorageError: when the output does not exist or cannot be read.
        ConfigError: when the condition is invalid, or the folder contains files that must not be replaced.
        CheckpointError: when a checkpoint stored in the output is missing or damaged.
        VerificationError: after all other images are written, when latents are damaged.
    """
    check_output(output, allow_export=True)
    state = open_snapshot(output, where=where)
    check_decodable(output)
    if len(state) or not where:
        check_latents(state)
    sources = [rel_path for table in state.tables(["rel_path"]) for rel_path in table["rel_path"].to_pylist()]
    name_of = choose_names(sources, dest)
    names = list(map(name_of, sources))
    if not overwrite:
        check_separate(state, dest)
    files = FileRecord(dest, overwrite)
    files.check(names)
    # Workers compute with one torch thread per image, and the results must be equal.
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    coders = LatentCoders(output, device)
    problems: list[str] = []

    def write(row: dict[str, Any]) -> None:
        try:
            rgb = decode_row(row, coders, device)
        except LatentError as e:
            problems.append(f"{row['rel_path']}: {e}")
            return
        files.write(name_of(row["rel_path"]), encode_rgb(rgb, "PNG"))

    columns = [name for name in DECODED_COLUMNS if name in state.schema.names or name in export_columns(are_resized=False)]
    tables = state.tables(columns)
    batches = (t.slice(start, DECODED_AT_ONCE) for t in tables for start in range(0, len(t), DECODED_AT_ONCE))
    started = announced = 0
    # The threads end before the record closes, so that it has every file, also after an error.
    with files, ThreadPoolExecutor() as pool:
        for batch in with_progress("decode", batches, len(state), len):
            if started + len(batch) > announced:
                files.announce(names[started : started + ANNOUNCED_AT_ONCE])
                announced = started + ANNOUNCED_AT_ONCE
            started += len(batch)
            list(pool.map(write, iterate_latent_rows(batch)))
    print_text(f"{number(len(state) - len(problems), 'image')} in {dest.url}")
    if problems:
        raise VerificationError(join_first(problems))
    return len(state)


def choose_names(sources: list[str], dest: Store) -> Callable[[str], str]:
    """Return the function that gives the PNG name of a rel_path; names do not clash on disks that ignore case."""
    clashes = find_clashes(sources) if dest.folds_case() else set()

    def name_of(rel_path: str) -> str:
        name = decoded_name(rel_path)
        return fallback_name(rel_path, name) if rel_path in clashes else name

    return name_of


def check_separate(state: Snapshot, dest: Store) -> None:
    """Check that decoded images do not land among input images, where the next run would take them for new images.

    Raises:
        ConfigError: when the folder contains input images, or is inside an input or a folder that runs write to.
    """
    output = state.output
    for folder in FOLDERS:
        if dest.lies_in(Store(output.uri(folder), output.config)):
            raise ConfigError(f"{dest.url}: runs write into {output.uri(folder)}. Choose another folder.")
    for place, is_folder in list_inputs(state):
        contains = place.lies_in(dest)
        if contains or (is_folder and dest.lies_in(place)):
            relation = f"contains {place.url}," if contains else f"is inside {place.url},"
            if is_same_place(dest.url, place.url):
                relation = "is"
            raise ConfigError(f"{dest.url}: {relation} an input of {output.url}. Choose another folder or use --overwrite.")


def list_inputs(state: Snapshot) -> Iterator[tuple[Store, bool]]:
    """Yield the input folders of all runs with True, and the folders of all source images with False."""
    config = state.output.config
    records = read_run_records(state.output, list_run_ids(state.output))
    for url in sorted({record["input"] for record in records if "input" in record}):
        if not is_input_file(url):
            yield Store(url, config), True
    folders: set[str] = set()
    for table in state.tables(["source_uri"]) if "source_uri" in state.schema.names else ():
        parents = pc.replace_substring_regex(table["source_uri"].drop_null(), pattern="/[^/]*$", replacement="")
        folders.update(parents.unique().to_pylist())
    for folder in sorted(folders):
        if folder.partition(":")[0] not in WEB_SCHEMES:
            yield Store(folder or "/", config), False
