"""Which images of an OUTPUT have no source any more."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.output.run_history import list_run_ids, read_run_config, read_run_records
from imagemill.pipeline.output.snapshot import ids_to_bytes
from imagemill.pipeline.schema import image_id
from imagemill.pipeline.sources.input import list_images, open_input
from imagemill.pipeline.sources.source import ListedImage
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason


@dataclass(frozen=True)
class Sources:
    """What the inputs of all runs hold at this moment."""

    ids: np.ndarray
    """(N,) S16, sorted."""
    problems: list[str]
    """Of inputs that cannot be listed."""

    def removed(self, ids: pa.ChunkedArray, uri: str) -> pa.Array:
        """For each image whether it is in no input any more; null where that cannot be known."""
        asked = ids_to_bytes(ids, uri)
        found = np.zeros(len(asked), bool)
        if len(self.ids):
            place = np.searchsorted(self.ids, asked).clip(max=len(self.ids) - 1)
            found = self.ids[place] == asked
        return pa.array(~found, mask=~found & bool(self.problems))


def sources_of(output: Store) -> Sources:
    """List the input of every run of an OUTPUT; inputs that cannot be listed are named, not an error."""
    records = {record["run_id"]: record for record in read_run_records(output, list_run_ids(output))}
    configs: dict[str, RunConfig] = {}
    problems: list[str] = []
    for entry in output.entries("runs"):
        if not entry.path.endswith("/config.yaml"):
            continue
        run_id = entry.path.split("/")[1]
        record = records.get(run_id, {"run_id": run_id, "planned": None})
        if "planned" not in record:
            continue  # it ended before its plan, and took nothing from its input
        try:
            config = read_run_config(output, record)
        except StorageError as e:
            problems.append(str(e))
            continue
        configs[f"{config.input} {config.source} {config.storage}"] = config
    found = bytearray()
    for config in configs.values():
        try:
            source = open_input(str(config.input), config.storage, config.source)
            for image in list_images(source, output):
                if isinstance(image, ListedImage):
                    found += bytes.fromhex(image_id(image.rel_path))
        except (ConfigError, StorageError) as e:
            problems.append(str(e))
        except STORE_FAILURES as e:
            problems.append(f"input {config.input}: {reason(e)}")
    return Sources(np.unique(np.frombuffer(bytes(found), "S16")), problems)
