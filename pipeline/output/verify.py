"""Check an OUTPUT against itself: its parts, and the files and latents that they name."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.models.errors import CheckpointError
from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.committed_rows import read_superseded
from imagemill.pipeline.output.output_names import stays_inside
from imagemill.pipeline.output.parts import KEYS, list_parts, read_part, read_parts
from imagemill.pipeline.output.run_history import expected_rows, read_last_records
from imagemill.pipeline.output.snapshot import select_newest_rows
from imagemill.pipeline.output.stored_checkpoint import load_stored_model, read_stored_checkpoint
from imagemill.pipeline.schema import LatentError, part_name
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures

if TYPE_CHECKING:
    from imagemill.models.entropy import EntropyModel

# What pyarrow raises for damaged files and for files that imagemill did not write.
UNREADABLE = (StorageError, OSError, pa.ArrowException, KeyError, AttributeError, TypeError, ValueError, OverflowError)


@dataclass
class VerificationResult:
    """Counts of checked rows, rejects, files and latents, and the problems that `verify` found."""

    images: int = 0
    rows: int = 0
    rejects: int = 0
    files: int = 0
    latents: int = 0
    waiting: int = 0
    """Images whose files may have been overwritten by a run that was cut off. The next run processes them again."""
    problems: list[str] = field(default_factory=list)


def verify(output: Store) -> VerificationResult:
    """Check all parts, the number of rows, duplicates, checkpoints, latents (CRC) and output files (sha256) of an OUTPUT.

    The CRC of a latent is that of its symbols, so entropy-coded latents are decoded with the checkpoint in OUTPUT.
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

    result = VerificationResult()
    # Read before the parts are listed: a run that ends in between would report more rows than are listed.
    last = read_last_count(output, result)
    tables = []
    parts = list_parts(output, "results")
    for path in parts:
        try:
            tables.append(check_part(path, read_part(output, path, None), result, entropy_of))
        except UNREADABLE as e:
            result.problems.append(describe_unreadable_part(output, path, e))
    result.rows = sum(map(len, tables))
    # If a part cannot be read, which is a problem already, the number of its rows is unknown.
    if len(tables) == len(parts) and last and result.rows < last[1]:
        run_id, rows = last
        missing = f"{rows - result.rows:,} of the {rows:,} rows of run {run_id} are missing"
        result.problems.append(f"results/: {missing}. Copy the parts again, or run again to process the images again")
    for path in list_parts(output, "rejects"):
        try:
            result.rejects += len(read_parts(output, [path], KEYS))
        except UNREADABLE as e:
            result.problems.append(describe_unreadable_part(output, path, e))
    if not tables:
        return result
    rows = pa.concat_tables(tables, promote_options="default")
    for checkpoint in pc.value_counts(rows["checkpoint_sha256"].drop_null()).to_pylist():
        try:
            read_stored_checkpoint(output, checkpoint["values"])
        except (CheckpointError, *UNREADABLE) as e:
            broken.setdefault(checkpoint["values"], str(e) if isinstance(e, CheckpointError) else reason(e))
        if problem := broken.get(checkpoint["values"]):
            result.problems.append(f"{problem} ({checkpoint['counts']:,} rows)")
    counts = rows.group_by(KEYS, use_threads=False).aggregate([([], "count_all")])
    for key in counts.filter(pc.field("count_all") > 1).to_pylist():
        result.problems.append(f"image {key['image_id']} version {key['version']}: {key['count_all']} rows")
    newest = select_newest_rows(rows)
    result.images = len(newest)
    with_files = newest.filter(pc.is_valid(newest["output_uri"]))
    ids, fencing_tokens = with_files["image_id"].combine_chunks(), with_files["fence"].fill_null(0).to_numpy()
    is_superseded = np.zeros(len(ids), bool)
    try:
        is_superseded = read_superseded(output, ids) > fencing_tokens
    except UNREADABLE as e:
        result.problems.append(str(e) if isinstance(e, StorageError) else reason(e))
    result.waiting = int(is_superseded.sum())

    files = with_files.filter(pa.array(~is_superseded)).select(["output_uri", "output_sha256"]).to_pylist()
    with ThreadPoolExecutor(8) as pool:
        result.problems += [problem for problem in pool.map(partial(check_file, output), files) if problem]
    result.files = len(files)
    return result


def check_file(output: Store, row: dict[str, Any]) -> str | None:
    """Return the problem of the file that a row names by output_uri and output_sha256; None if the file is intact."""
    path = row["output_uri"]
    if not stays_inside(path):
        return f"{path}: the path leaves OUTPUT"
    try:
        digest = hashlib.sha256(output.read(path)).hexdigest()
    except FileNotFoundError:
        return f"{path}: missing"
    except store_failures() as e:
        return f"{path}: cannot be read: {reason(e)}"
    return None if digest == row["output_sha256"] else f"{path}: its sha256 differs from that of its row"


def read_last_count(output: Store, result: VerificationResult) -> tuple[str, int] | None:
    """Return the last run that counted the rows, and how many rows OUTPUT must have at least."""
    try:
        records = [record for record in read_last_records(output) if "rows" in record]
        last = max(records, key=lambda record: int(record["fence"]), default=None)
        return (last["run_id"], expected_rows(output, last)) if last else None
    except UNREADABLE as e:
        result.problems.append(reason(e))
        return None


def describe_unreadable_part(output: Store, path: str, error: Exception) -> str:
    """Return the problem of a part in one line. The message of a StorageError ends with what to do."""
    message = str(error).removeprefix(f"{output.uri(path)}: ") if isinstance(error, StorageError) else reason(error)
    return f"{path}: cannot be read: {message}"


def check_part(
    path: str, table: pa.Table, result: VerificationResult, entropy_of: Callable[[str], "EntropyModel | None"]
) -> pa.Table:
    """Check the name of a part, which is a hash of its row identities, and its latents; return columns for other checks."""
    if path.rpartition("/")[2] != part_name(table):
        result.problems.append(f"{path}: the name does not match the rows in the part")
    if "latent" in table.schema.names:
        from imagemill.pipeline.output.latent_symbols import is_coded, iterate_latent_rows, read_latent

        for number, row in enumerate(iterate_latent_rows(table)):
            try:
                read_latent(row, entropy_of(row["checkpoint_sha256"]) if is_coded(row) else None)
                result.latents += 1
            except LatentError as e:
                result.problems.append(f"{path} row {number}: {e}")
    return table.select([*KEYS, "encoded_at", "fence", "checkpoint_sha256", "output_uri", "output_sha256"])
