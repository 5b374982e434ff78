"""Whose a place is: a run writes into an OUTPUT of ours, or where nothing lies in its way."""

import re

from models.checkpoint import CARD
from pipeline.errors import ConfigError
from pipeline.output.committed import run_ids
from pipeline.output.exports import MANIFEST, UNFINISHED
from pipeline.output.lease import newest_fence
from pipeline.storage import Store

FOLDERS = ("images", "results", "rejects", "runs", "checkpoints", "exemplars", "shards")
"""Below an OUTPUT: all that a run writes lies in one of them."""
PART = re.compile(r"part-[0-9a-f]{32}\.parquet")
CHECKPOINT = re.compile(r"[0-9a-f]{16}")


def is_output(place: Store) -> bool:
    """Whether a run wrote into a place: it left its config, its claim, a part or a checkpoint.

    Each of these alone will do: `runs/` may have been deleted, and a run may have been killed in its first second.
    """
    if run_ids(place):
        return True
    if is_export(place):
        return False
    if newest_fence(place) or any(PART.fullmatch(name) for name in (*place.names("results"), *place.names("rejects"))):
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
