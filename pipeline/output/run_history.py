"""The runs of an OUTPUT: their ids, records and configs."""

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
"""Of which something is asked: a night without anything new leaves a run too."""
RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]+")


def list_run_ids(output: Store) -> list[str]:
    """The runs that began, oldest first."""
    return sorted(filter(RUN_ID.fullmatch, output.names("runs")))


def read_run_records(output: Store, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The run.json of runs; that of a run which was killed, or is at work, is left out. Raises: StorageError."""

    def read(run_id: str) -> dict[str, Any] | None:
        path = f"runs/{run_id}/run.json"
        try:
            content: dict[str, Any] = json.loads(output.read(path))
            return content
        except FileNotFoundError:
            return None
        except ValueError:
            raise StorageError(f"{output.uri(path)}: damaged; delete it") from None

    with ThreadPoolExecutor(THREADS) as pool:
        return [record for record in pool.map(read, ids) if record]


def read_last_records(output: Store) -> list[dict[str, Any]]:
    """The run.json of the last runs, oldest first. Raises: StorageError."""
    return read_run_records(output, list_run_ids(output)[-RECENT_RUNS:])


def read_run_config(output: Store, record: dict[str, Any]) -> RunConfig:
    """The effective config of a run, by its run.json or its run_id alone. Raises: StorageError when it is damaged."""
    path = f"runs/{record['run_id']}/config.yaml"
    try:
        config = RunConfig.model_validate(yaml.safe_load(output.read(path)))
    except (yaml.YAMLError, ValidationError) as e:
        raise StorageError(f"{output.uri(path)}: damaged, or of another version: {reason(e)}") from None
    # As the run resolved it: a relative path is one of the folder it was started in.
    return config.model_copy(update={"input": record.get("input", config.input)})
