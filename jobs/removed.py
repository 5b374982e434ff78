"""Find the images of an OUTPUT that no input holds any more."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.output.origins import canonical_place, is_same_place
from imagemill.pipeline.output.prefixes import read_prefixes
from imagemill.pipeline.output.run_history import list_run_ids, read_run_config, read_run_records
from imagemill.pipeline.output.snapshot import ids_to_bytes
from imagemill.pipeline.plan import name_in_output
from imagemill.pipeline.schema import image_id
from imagemill.pipeline.sources.input import list_images, open_input
from imagemill.pipeline.sources.source import CONTAINER_CLASSES, ListedImage
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures


@dataclass(frozen=True)
class Sources:
    """The images that the inputs of all runs hold now.

    Attributes:
        ids: (N,) S16 image ids, sorted.
        problems: messages about inputs that could not be listed.
        empty_inputs: inputs that hold no image, perhaps because a disk is not mounted.
    """

    ids: np.ndarray
    problems: list[str]
    empty_inputs: list[str]

    def removed(self, ids: pa.ChunkedArray, uri: str) -> pa.Array:
        """Return for each image whether no input holds it; null if an input that could not be listed may hold it.

        Args:
            ids: image ids of rows.
            uri: the part that holds the rows, for error messages.
        """
        wanted = ids_to_bytes(ids, uri)
        is_listed = np.zeros(len(wanted), bool)
        if len(self.ids):
            positions = np.searchsorted(self.ids, wanted).clip(max=len(self.ids) - 1)
            is_listed = self.ids[positions] == wanted
        return pa.array(~is_listed, mask=~is_listed & bool(self.problems))


def list_sources(output: Store) -> Sources:
    """List the input of every run of an OUTPUT. An input that cannot be listed is a problem in the result, not an error.

    If all images of an input moved, which a run with allow_new_input confirmed, their former place may be missing.
    """
    configs, problems, left_places = input_configs(output)
    listed_ids, empty_inputs = bytearray(), []
    for config in configs:
        listed_before, own_problems = len(listed_ids), list[str]()
        try:
            # An image that source.include or source.exclude leaves out is still in the input.
            every_image = config.source.model_copy(update={"include": [], "exclude": []})
            source = open_input(str(config.input), config.storage, every_image)
            for image in list_images(source, output):
                if isinstance(image, ListedImage):
                    listed_ids += bytes.fromhex(image_id(name_in_output(image.rel_path, config.prefix)))
                    if image.error_class in CONTAINER_CLASSES:
                        own_problems.append(f"input {source.store.uri(image.path)}: {image.problem}")
        except (ConfigError, StorageError) as e:
            own_problems.append(str(e))
        except store_failures() as e:
            own_problems.append(f"input {config.input}: {reason(e)}")
        if not config.prefix and canonical_place(str(config.input)) in left_places:
            continue
        problems += own_problems
        if not own_problems and len(listed_ids) == listed_before:
            empty_inputs.append(str(config.input))
    return Sources(np.unique(np.frombuffer(bytes(listed_ids), "S16")), problems, empty_inputs)


def input_configs(output: Store) -> tuple[list[RunConfig], list[str], set[str]]:
    """Return one config for each different input of the runs of an OUTPUT.

    Returns:
        The configs, messages about unreadable configs, and the canonical places of inputs whose images all moved away.
    """
    records = {record["run_id"]: record for record in read_run_records(output, list_run_ids(output))}
    locations = read_prefixes(output)
    configs: dict[str, RunConfig] = {}
    problems: list[str] = []
    without_prefix: list[dict[str, Any]] = []
    fencing_token = 0
    for path in sorted(entry.path for entry in output.entries("runs") if entry.path.endswith("/config.yaml")):
        run_id = path.split("/")[1]
        record = records.get(run_id, {"run_id": run_id, "planned": None})
        if "planned" not in record:
            continue  # The run ended before its plan, so it took no image from its input.
        try:
            config = read_run_config(output, record)
        except StorageError as e:
            problems.append(str(e))
            continue
        location = locations.get(config.prefix or "")
        # A prefix belongs to one location. A run over another one was refused, or the prefix has moved since.
        if location is None or is_same_place(location, Store(str(config.input), config.storage).url):
            configs[f"{config.prefix} {config.input} {config.source.reading} {config.storage}"] = config
        # A killed run left no token. It comes after the run that began before it.
        fencing_token = record.get("fence") or fencing_token
        if not config.prefix:
            without_prefix.append(record | {"input": str(config.input), "fence": fencing_token})
    unknown = locations.keys() - {config.prefix for config in configs.values()}
    problems += [f"input {locations[prefix]}: no run with the prefix {prefix} left its config" for prefix in sorted(unknown)]
    return list(configs.values()), problems, find_left_places(without_prefix)


def find_left_places(records: list[dict[str, Any]]) -> set[str]:
    """Return the canonical places of inputs whose images are all in another place since, by the records of their runs.

    A run moves images to its input if their rows were made from another place. The input itself counts as their source only
    if the run also processed or found other images. Prefixes have one location each (prefixes.py) and need no such search.
    """
    now_at: dict[str, str] = {}
    for record in sorted(records, key=lambda record: int(record["fence"])):
        place, moved = canonical_place(record["input"]), record.get("moved_from") or {}
        now_at |= dict.fromkeys(map(canonical_place, moved), place)
        if not moved or record["planned"] or record["done_before"] > sum(moved.values()):
            now_at[place] = place
    return {canonical_place(record["input"]) for record in records} - set(now_at.values())
