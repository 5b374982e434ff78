"""Tell outputs from folders of the user: a run only writes where other runs wrote, or where nothing is in the way."""

import re

from imagemill.models.checkpoint import CARD
from imagemill.pipeline.errors import ConfigError, TooManyRejects
from imagemill.pipeline.output.exports import MANIFEST, UNFINISHED
from imagemill.pipeline.output.lease import newest_fencing_token
from imagemill.pipeline.output.run_history import expected_rows, list_run_ids, read_last_records
from imagemill.pipeline.storage import Store

FOLDERS = ("images", "results", "rejects", "runs", "checkpoints", "exemplars", "shards")
"""Folders in an OUTPUT. A run writes nowhere else."""
PART = re.compile(r"part-[0-9a-f]{32}\.parquet")
ACCOUNTED = (0, TooManyRejects.exit_code)
"""Exit codes of runs that left a row for each file that they wrote."""
CHECKPOINT = re.compile(r"[0-9a-f]{16}")


def is_output(place: Store) -> bool:
    """Return whether a run wrote into a location: it left a config, a lease, a part or a checkpoint.

    One of these is enough: `runs/` may have been deleted, or the run may have been killed in its first second.
    """
    if list_run_ids(place):
        return True
    if is_export(place):
        return False
    if newest_fencing_token(place) or any(
        PART.fullmatch(name) for name in (*place.names("results"), *place.names("rejects"))
    ):
        return True
    digests = filter(CHECKPOINT.fullmatch, place.names("checkpoints"))
    return any(place.exists(f"checkpoints/{name}/{CARD}") for name in digests)


def is_export(place: Store) -> bool:
    """Return whether a location is an export, complete or not. An export also has a lease and checkpoints."""
    return place.exists(MANIFEST) or place.exists(UNFINISHED)


def check_output(place: Store) -> None:
    """Check that a run may write into a location.

    Raises:
        ConfigError: when a folder that runs write contains files that no run wrote.
    """
    if is_output(place):
        return
    for folder in FOLDERS:
        if place.has_files(folder):
            problem = "is an export" if is_export(place) else f"{folder}/ contains files that no run of imagemill wrote"
            raise ConfigError(f"output {place.url}: {problem}. Choose another OUTPUT")


def oldest_unaccounted_file(output: Store, run_id: str, rows: int) -> str | None:
    """Return the oldest file of the runs that may have written output images without rows.

    Runs that were cut off leave such images. They began after the last run that accounted for its images. An image without
    a row that is older than this file was not written by a run, so it is the user's.

    Args:
        output: the OUTPUT.
        run_id: id of the current run.
        rows: number of rows in OUTPUT.

    Returns:
        The path of the file; None if rows were lost, because then a run may have written any image.
    """
    accounted = [record for record in read_last_records(output) if record.get("exit_code") in ACCOUNTED and "rows" in record]
    if not accounted or rows < expected_rows(output, accounted[-1]):
        return None
    run_ids = {*(other for other in list_run_ids(output) if other > accounted[-1]["run_id"]), run_id}
    configs = [path for path in (f"runs/{other}/config.yaml" for other in sorted(run_ids)) if output.exists(path)]
    return min(configs, key=output.written_at, default=None)
