"""An OUTPUT checked against itself: its parts, and the files and latents that they name."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.models.card import CheckpointError
from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.committed_rows import read_superseded
from imagemill.pipeline.output.output_names import stays_inside
from imagemill.pipeline.output.parts import KEYS, list_parts, read_part, read_parts
from imagemill.pipeline.output.run_history import read_last_records
from imagemill.pipeline.output.snapshot import select_newest_rows
from imagemill.pipeline.output.stored_checkpoint import load_stored_model, read_stored_checkpoint
from imagemill.pipeline.schema import LatentError, part_name
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason

if TYPE_CHECKING:
    from imagemill.models.entropy import EntropyModel

# What pyarrow raises for files that were damaged or are not ours.
UNREADABLE = (StorageError, OSError, pa.ArrowException, KeyError, AttributeError, TypeError, ValueError, OverflowError)


@dataclass
class VerificationResult:
    """What `verify` saw."""

    images: int = 0
    rows: int = 0
    rejects: int = 0
    files: int = 0
    latents: int = 0
    waiting: int = 0
    """Images whose files a run that was cut off may have overwritten; the next one does them again."""
    problems: list[str] = field(default_factory=list)


def verify(output: Store) -> VerificationResult:
    """Check an OUTPUT against itself: parts, how many rows the last run left, doubles, checkpoints, latents with their CRC,
    newest rows' files with their sha256.

    The CRC is that of the symbols, so coded latents are decoded, with the checkpoint that lies in OUTPUT.
    """
    broken: dict[str, str] = {}

    @cache
    def entropy_of(checkpoint_sha256: str) -> "EntropyModel | None":
        try:
            model = load_stored_model(output, checkpoint_sha256, "cpu")
            return getattr(model, "entropy", None)
        except CheckpointError as e:
            broken[checkpoint_sha256] = str(e)
            return None

    seen = VerificationResult()
    # Before the parts are listed: a run that ends meanwhile says of more rows than those.
    last = read_last_count(output, seen)
    tables = []
    parts = list_parts(output, "results")
    for path in parts:
        try:
            tables.append(check_part(path, read_part(output, path, None), seen, entropy_of))
        except UNREADABLE as e:
            seen.problems.append(describe_unreadable_part(output, path, e))
    seen.rows = sum(map(len, tables))
    # Of a part that cannot be read, which has its line, nobody knows how many it held.
    if len(tables) == len(parts) and last and seen.rows < last["rows"]:
        missing = f"{last['rows'] - seen.rows:,} of the {last['rows']:,} rows that run {last['run_id']} left are missing"
        seen.problems.append(f"results/: {missing}: copy them again, or run again, which does their images anew")
    for path in list_parts(output, "rejects"):
        try:
            seen.rejects += len(read_parts(output, [path], KEYS))
        except UNREADABLE as e:
            seen.problems.append(describe_unreadable_part(output, path, e))
    if not tables:
        return seen
    rows = pa.concat_tables(tables, promote_options="default")
    for checkpoint in pc.value_counts(rows["checkpoint_sha256"].drop_null()).to_pylist():
        try:
            read_stored_checkpoint(output, checkpoint["values"])
        except (CheckpointError, *UNREADABLE) as e:
            broken.setdefault(checkpoint["values"], str(e) if isinstance(e, CheckpointError) else reason(e))
        if said := broken.get(checkpoint["values"]):
            seen.problems.append(f"{said} ({checkpoint['counts']:,} rows are of it)")
    counts = rows.group_by(KEYS, use_threads=False).aggregate([([], "count_all")])
    for key in counts.filter(pc.field("count_all") > 1).to_pylist():
        seen.problems.append(f"image {key['image_id']} version {key['version']}: {key['count_all']} rows")
    newest = select_newest_rows(rows)
    seen.images = len(newest)
    names_files = newest.filter(pc.is_valid(newest["output_uri"]))
    ids, fencing_tokens = names_files["image_id"].combine_chunks(), names_files["fence"].fill_null(0).to_numpy()
    later = np.zeros(len(ids), bool)
    try:
        later = read_superseded(output, ids) > fencing_tokens
    except UNREADABLE as e:
        seen.problems.append(str(e) if isinstance(e, StorageError) else reason(e))
    seen.waiting = int(later.sum())

    named = names_files.filter(pa.array(~later)).select(["output_uri", "output_sha256"]).to_pylist()
    with ThreadPoolExecutor(8) as pool:
        seen.problems += [problem for problem in pool.map(partial(check_file, output), named) if problem]
    seen.files = len(named)
    return seen


def check_file(output: Store, row: dict[str, Any]) -> str | None:
    """What is wrong with the file that a row names by output_uri and output_sha256; None for the row's own."""
    path = row["output_uri"]
    if not stays_inside(path):
        return f"{path}: no path within OUTPUT"
    try:
        digest = hashlib.sha256(output.read(path)).hexdigest()
    except FileNotFoundError:
        return f"{path}: missing"
    except STORE_FAILURES as e:
        return f"{path}: cannot be read: {reason(e)}"
    return None if digest == row["output_sha256"] else f"{path}: its sha256 is not the row's"


def read_last_count(output: Store, seen: VerificationResult) -> dict[str, Any] | None:
    """The record of the last run that came to its account: since then each row that went left another in its place."""
    try:
        records = [record for record in read_last_records(output) if "rows" in record]
    except UNREADABLE as e:
        seen.problems.append(reason(e))
        return None
    return max(records, key=lambda record: int(record["fence"]), default=None)


def describe_unreadable_part(output: Store, path: str, error: Exception) -> str:
    """One line about a part; what a StorageError says ends with what to do."""
    said = str(error).removeprefix(f"{output.uri(path)}: ") if isinstance(error, StorageError) else reason(error)
    return f"{path}: cannot be read: {said}"


def check_part(
    path: str, table: pa.Table, seen: VerificationResult, entropy_of: Callable[[str], "EntropyModel | None"]
) -> pa.Table:
    """Check a part's name, which its identities decide, and its latents; give the columns that the other checks need."""
    if path.rpartition("/")[2] != part_name(table):
        seen.problems.append(f"{path}: its name is not that of the rows it holds")
    if "latent" in table.schema.names:
        from imagemill.pipeline.output.latent_symbols import decode_symbols, is_coded, iterate_latent_rows

        for number, row in enumerate(iterate_latent_rows(table)):
            try:
                decode_symbols(row, entropy_of(row["checkpoint_sha256"]) if is_coded(row) else None)
                seen.latents += 1
            except LatentError as e:
                seen.problems.append(f"{path} row {number}: {e}")
    return table.select([*KEYS, "encoded_at", "fence", "checkpoint_sha256", "output_uri", "output_sha256"])
