"""Find the images of an OUTPUT that no input holds any more."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.output.origins import canonical_place, is_same_place
from imagemill.pipeline.output.prefixes import read_prefixes
from imagemill.pipeline.output.run_history import list_run_ids, read_run_config, read_run_records
from imagemill.pipeline.output.snapshot import ids_to_bytes
from imagemill.pipeline.plan import UniqueNames
from imagemill.pipeline.sources.input import list_images, open_input
from imagemill.pipeline.sources.source import CONTAINER_CLASSES, ListedImage
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures


@dataclass(frozen=True)
class Sources:
    """The images that the inputs of all runs hold now.

    Attributes:
        ids: (N,) S16 image ids, sorted.
        run_ids: the runs whose inputs are known, because they left a config.
        problems: messages about inputs that could not be listed.
        empty_inputs: inputs that hold no image, perhaps because a disk is not mounted.
    """

    ids: np.ndarray
    run_ids: list[str]
    problems: list[str]
    empty_inputs: list[str]

    def removed(self, rows: pa.Table, uri: str) -> pa.Array:
        """Return for each row whether no input holds its image; null if an input that was not listed may hold it.

        Args:
            rows: image_id and run_id of rows.
            uri: the part that holds the rows, for error messages.
        """
        wanted = ids_to_bytes(rows["image_id"], uri)
        is_listed = np.zeros(len(wanted), bool)
        if len(self.ids):
            positions = np.searchsorted(self.ids, wanted).clip(max=len(self.ids) - 1)
            is_listed = self.ids[positions] == wanted
        is_input_known = pc.is_in(rows["run_id"], value_set=pa.array(self.run_ids, pa.string())).to_numpy()
        return pa.array(~is_listed, mask=~is_listed & (bool(self.problems) | ~is_input_known))

    def missing_configs(self, rows: pa.Table, is_removed: pa.Array) -> list[str]:
        """Return a message about each run that left no config, if an unlisted input may hold images of its rows.

        Args:
            rows: the column run_id.
            is_removed: what `removed` returned for the rows.
        """
        run_ids = rows["run_id"].filter(pc.is_null(is_removed)).unique().to_pylist()
        missing = sorted(f"runs/{run_id}/config.yaml" for run_id in run_ids if run_id not in self.run_ids)
        return [f"{path}: missing, so the input of this run is not known" for path in missing]


def list_sources(output: Store) -> Sources:
    """List the input of every run of an OUTPUT. An input that cannot be listed is a problem in the result, not an error.

    If all images of an input moved, which a run with allow_new_input confirmed, their former place may be missing.
    """
    run_ids = [entry.path.split("/")[1] for entry in output.entries("runs") if entry.path.endswith("/config.yaml")]
    configs, problems, left_places = input_configs(output, run_ids)
    listed_ids, empty_inputs = bytearray(), []
    for config in configs:
        listed_before, own_problems = len(listed_ids), list[str]()
        try:
            # An image that source.include or source.exclude leaves out is still in the input.
            every_image = config.source.model_copy(update={"include": [], "exclude": []})
            source, names = open_input(str(config.input), config.storage, every_image), UniqueNames(config.prefix)
            for image in list_images(source, output):
                if isinstance(image, ListedImage):
                    listed_ids += names.add(image)[0]
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
    return Sources(np.unique(np.frombuffer(bytes(listed_ids), "S16")), run_ids, problems, empty_inputs)


def input_configs(output: Store, run_ids: list[str]) -> tuple[list[RunConfig], list[str], set[str]]:
    """Return one config for each different input of some runs.

    Args:
        output: the OUTPUT.
        run_ids: the runs that left a config.

    Returns:
        The configs, messages about unreadable configs, and the canonical places of inputs whose images all moved away.
    """
    records = {record["run_id"]: record for record in read_run_records(output, list_run_ids(output))}
    locations = read_prefixes(output)
    configs: dict[str, RunConfig] = {}
    problems: list[str] = []
    without_prefix: list[dict[str, Any]] = []
    fencing_token = 0
    for run_id in sorted(run_ids):
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
