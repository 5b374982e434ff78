"""Latents back to images: what `compress` wrote, in any process, on any machine."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from imagemill.jobs.console import number, print_text
from imagemill.jobs.outputs import check_output
from imagemill.models.objectives.compress import decode_latent
from imagemill.pipeline.errors import ConfigError, VerificationError, first_of
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.output.exports import open_snapshot
from imagemill.pipeline.output.file_record import FileRecord
from imagemill.pipeline.output.latent_symbols import iterate_latent_rows, upright_size
from imagemill.pipeline.output.latent_values import LATENT_COLUMNS, LatentCoders, check_latents, read_symbols
from imagemill.pipeline.output.name_clashes import find_clashes
from imagemill.pipeline.output.origins import is_same_place
from imagemill.pipeline.output.output_names import decoded_name, fallback_name
from imagemill.pipeline.output.ownership import FOLDERS
from imagemill.pipeline.output.run_history import list_run_ids, read_run_records
from imagemill.pipeline.output.snapshot import Snapshot
from imagemill.pipeline.progress import with_progress
from imagemill.pipeline.schema import LATENT_KEPT, LatentError
from imagemill.pipeline.sources.input import is_input_file
from imagemill.pipeline.sources.web import WEB_SCHEMES
from imagemill.pipeline.storage import Store

DECODED_AT_A_TIME = 32
ANNOUNCED_AT_A_TIME = 4096
"""Names that are recorded together before their images are written, and with their digests after it."""
IMAGE = ["rel_path", "orig_width", "orig_height", "exif_orientation", "step", "checkpoint_sha256"]
"""What an image is decoded from, beside its latent."""
OF_EXPORT = {*IMAGE, *LATENT_COLUMNS}.difference(LATENT_KEPT[1:])
"""Columns that an export, which keeps latents as `latent` alone, has to have to be decoded."""


def decode_row(row: dict[str, Any], coders: LatentCoders, device: str) -> np.ndarray:
    """The image (H,W,3) uint8 of a row of `latent_rows`. Raises: LatentError when the latent is not what was written."""
    symbols = read_symbols(row, coders)
    return decode_latent(coders[row["checkpoint_sha256"]], symbols, upright_size(row), row["step"], device)


def decode_output(output: Store, dest: Store, where: str | None = None, overwrite: bool = False) -> int:
    """Write the newest image of every row of OUTPUT, or of an export, to DEST as PNG, under the names `--reconstruct` gives.

    Args:
        where: an SQL condition that rows must meet.
        overwrite: write into an input of OUTPUT too, and replace files that imagemill did not write.

    Raises: StorageError, ConfigError, CheckpointError before anything is written; VerificationError at the end when
        latents did not match their CRC (they are named, never decoded).
    """
    check_output(output, allow_export=True)
    state = open_snapshot(output, where=where)
    if len(state) or not where:
        check_latents(state)
    sources = [rel_path for table in state.tables(["rel_path"]) for rel_path in table["rel_path"].to_pylist()]
    clashes = find_clashes(sources) if dest.folds_case() else set()

    def name_of(rel_path: str) -> str:
        name = decoded_name(rel_path)
        return fallback_name(rel_path, name) if rel_path in clashes else name

    names = list(map(name_of, sources))
    if not overwrite:
        check_apart(state, dest)
    written = FileRecord(dest, overwrite)
    written.check(names)
    # As in the actors, whose results these must equal: one torch thread for each image.
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
        written.write(name_of(row["rel_path"]), encode_rgb(rgb, "PNG"))

    with ThreadPoolExecutor() as pool, written:
        columns = [*IMAGE, *(name for name in LATENT_COLUMNS if name in state.schema.names or name not in LATENT_KEPT[1:])]
        tables = state.tables(columns)
        pieces = (t.slice(start, DECODED_AT_A_TIME) for t in tables for start in range(0, len(t), DECODED_AT_A_TIME))
        begun = announced = 0
        for piece in with_progress("decode", pieces, len(state), len):
            if begun + len(piece) > announced:
                written.announce(names[begun : begun + ANNOUNCED_AT_A_TIME])
                announced = begun + ANNOUNCED_AT_A_TIME
            begun += len(piece)
            list(pool.map(write, iterate_latent_rows(piece)))
    print_text(f"{number(len(state) - len(problems), 'image')} in {dest.url}")
    if problems:
        raise VerificationError(first_of(problems))
    return len(state)


def check_apart(state: Snapshot, dest: Store) -> None:
    """Raises: ConfigError when DEST holds sources of a state, or lies in an input of it or where its OUTPUT keeps files.

    The next run over such an input would take decoded images for new ones.
    """
    output = state.output
    for folder in FOLDERS:
        if dest.lies_in(Store(output.uri(folder), output.config)):
            raise ConfigError(f"{dest.url}: runs write into {output.uri(folder)}: give another folder")
    for place, is_folder in inputs_of(state):
        holds = place.lies_in(dest)
        if holds or (is_folder and dest.lies_in(place)):
            where = (
                "is" if is_same_place(dest.url, place.url) else f"holds {place.url}," if holds else f"lies in {place.url},"
            )
            raise ConfigError(f"{dest.url} {where} an input of {output.url}: give another folder, or --overwrite")


def inputs_of(state: Snapshot) -> Iterator[tuple[Store, bool]]:
    """The folders of all sources of a state, and the inputs of its runs; and whether each is an input that is a folder."""
    config = state.output.config
    inputs = {record["input"] for record in read_run_records(state.output, list_run_ids(state.output)) if "input" in record}
    for url in sorted(inputs):
        if not is_input_file(url):
            yield Store(url, config), True
    folders: set[str] = set()
    for table in state.tables(["source_uri"]) if "source_uri" in state.schema.names else ():
        parents = pc.replace_substring_regex(table["source_uri"].drop_null(), pattern="/[^/]*$", replacement="")
        folders.update(parents.unique().to_pylist())
    yield from (
        (Store(folder or "/", config), False) for folder in sorted(folders) if folder.partition(":")[0] not in WEB_SCHEMES
    )
