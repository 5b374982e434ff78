"""The runs of an OUTPUT: their ids, records (run.json) and configs."""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import yaml
from pydantic import ValidationError

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.parts import THREADS
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason

RECENT_RUNS = 100
"""Runs that are read when the recent ones matter. A night without new images also leaves a run."""
PRUNED, PRUNED_RECORD = "runs/pruned", "pruned.json"
"""Folder of the prunes of an OUTPUT (prune.py), and the name of the record of each."""
RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]+")


def list_run_ids(output: Store) -> list[str]:
    """Return the ids of all runs that began, oldest first."""
    return sorted(filter(RUN_ID.fullmatch, output.names("runs")))


def read_run_records(output: Store, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Read the run.json of runs. Runs without one, because they were killed or are still running, are left out.

    Raises:
        StorageError: when a run.json is damaged.
    """

    def read(run_id: str) -> dict[str, Any] | None:
        path = f"runs/{run_id}/run.json"
        try:
            content: dict[str, Any] = json.loads(output.read(path))
            return content
        except FileNotFoundError:
            return None
        except ValueError:
            raise StorageError(f"{output.uri(path)}: damaged. Delete it") from None

    with ThreadPoolExecutor(THREADS) as pool:
        return [record for record in pool.map(read, ids) if record]


def read_last_records(output: Store) -> list[dict[str, Any]]:
    """Read the run.json of the recent runs, oldest first. Raise StorageError if one is damaged."""
    return read_run_records(output, list_run_ids(output)[-RECENT_RUNS:])


def expected_rows(output: Store, record: dict[str, Any]) -> int:
    """Return how many rows an OUTPUT has at least: as many as after a run, or after the last prune since.

    Runs only replace rows, so the number falls only by a prune.

    Args:
        output: the OUTPUT.
        record: run.json of the last run that counted the rows.
    """
    rows, fencing_token = int(record["rows"]), int(record["fence"])
    for name in output.names(PRUNED):
        try:
            prune = json.loads(output.read(f"{PRUNED}/{name}/{PRUNED_RECORD}"))
        except (FileNotFoundError, ValueError):
            continue
        if prune["fence"] > fencing_token:
            rows, fencing_token = prune["rows"], prune["fence"]
    return rows


def read_run_config(output: Store, record: dict[str, Any]) -> RunConfig:
    """Read the effective config of a run.

    Args:
        output: the OUTPUT.
        record: the run.json, or a dict with its run_id alone.

    Raises:
        StorageError: when the config is damaged or of another version.
    """
    path = f"runs/{record['run_id']}/config.yaml"
    try:
        config = RunConfig.model_validate(yaml.safe_load(output.read(path)))
    except (yaml.YAMLError, ValidationError) as e:
        raise StorageError(f"{output.uri(path)}: damaged, or of another version: {reason(e)}") from None
    # run.json has the absolute input. A relative path in the config refers to the folder where the run was started.
    return config.model_copy(update={"input": record.get("input", config.input)})
