"""Whose a place is: a run writes into an OUTPUT of ours, or where nothing lies in its way."""

import re

from imagemill.models.checkpoint import CARD
from imagemill.pipeline.errors import ConfigError, TooManyRejects
from imagemill.pipeline.output.exports import MANIFEST, UNFINISHED
from imagemill.pipeline.output.lease import newest_fencing_token
from imagemill.pipeline.output.run_history import list_run_ids, read_last_records
from imagemill.pipeline.storage import Store

FOLDERS = ("images", "results", "rejects", "runs", "checkpoints", "exemplars", "shards")
"""Below an OUTPUT: all that a run writes lies in one of them."""
PART = re.compile(r"part-[0-9a-f]{32}\.parquet")
ACCOUNTED = (0, TooManyRejects.exit_code)
"""How runs ended that left a row for each file which they wrote."""
CHECKPOINT = re.compile(r"[0-9a-f]{16}")


def is_output(place: Store) -> bool:
    """Whether a run wrote into a place: it left its config, its claim, a part or a checkpoint.

    Each of these alone will do: `runs/` may have been deleted, and a run may have been killed in its first second.
    """
    if list_run_ids(place):
        return True
    if is_export(place):
        return False
    if newest_fencing_token(place) or any(
        PART.fullmatch(name) for name in (*place.names("results"), *place.names("rejects"))
    ):
        return True
    kept = filter(CHECKPOINT.fullmatch, place.names("checkpoints"))
    return any(place.exists(f"checkpoints/{name}/{CARD}") for name in kept)


def is_export(place: Store) -> bool:
    """Whether an export, whole or not, lies in a place; it has the folders of a lease and of checkpoints as well."""
    return place.exists(MANIFEST) or place.exists(UNFINISHED)


def check_output(place: Store) -> None:
    """Raises: ConfigError when a run must not write into a place: it holds files that no run wrote, where runs write."""
    if is_output(place):
        return
    for folder in FOLDERS:
        if place.has_files(folder):
            whose = "is an export" if is_export(place) else f"{folder}/ holds files that no run of imagemill wrote"
            raise ConfigError(f"output {place.url}: {whose}: give another OUTPUT")


def oldest_unaccounted_file(output: Store, run_id: str, rows: int) -> str | None:
    """The first file of the oldest run that may have left images of which no row says anything.

    Runs that are cut off leave such images, and what is older is the user's. Only those count that began after the last run
    that came to its account. None where rows were lost, so that any image may be of a run.

    Args: run_id: of the run at work. rows: that OUTPUT holds.
    """
    accounted = [record for record in read_last_records(output) if record.get("exit_code") in ACCOUNTED and "rows" in record]
    if not accounted or rows < accounted[-1]["rows"]:
        return None
    began = {*(other for other in list_run_ids(output) if other > accounted[-1]["run_id"]), run_id}
    marks = [path for path in (f"runs/{other}/config.yaml" for other in sorted(began)) if output.exists(path)]
    return max(marks, key=output.age, default=None)
