"""The current state of an OUTPUT for analysis: dequantised latents, a vector for each image, and all that rows say."""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from imagemill.jobs.console import number, print_text
from imagemill.jobs.decode import OF_EXPORT
from imagemill.jobs.export_formats import FORMATS, check_format
from imagemill.jobs.outputs import check_output
from imagemill.jobs.removed import Sources, list_sources
from imagemill.models import checkpoint as checkpoints
from imagemill.models.likeness import likeness_features, read_photo_whitening
from imagemill.models.pooling import POOLS
from imagemill.models.type_checks import require_value
from imagemill.pipeline.errors import ConfigError, VerificationError, first_of
from imagemill.pipeline.lookahead import map_ahead
from imagemill.pipeline.output.exports import LATENTS, MANIFEST, UNFINISHED
from imagemill.pipeline.output.latent_values import LatentCoders, Latents, check_latents, latent_batches, to_vector_column
from imagemill.pipeline.output.lease import FOLDER as LEASE
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.output.snapshot import Snapshot, no_readable_part, read_snapshot
from imagemill.pipeline.output.stored_checkpoint import checkpoint_folder
from imagemill.pipeline.progress import with_progress
from imagemill.pipeline.schema import LATENT_KEPT, LATENT_ZERO_POINT
from imagemill.pipeline.storage import Store

log = logging.getLogger("imagemill.export")
PART_BYTES = 128_000_000
"""Of a part before it is compressed."""
HELD_BYTES = 512_000_000
"""Of all parts that wait to be full, where latents are of many shapes; then the largest is written as it is."""
WRITES_AT_A_TIME = 2
ADDED = ("removed", "latent", "embedding")
LIKENESS = "likeness"
"""The pool that is what `imagemill search` compares by."""
TEMPORARY = r"(.*/)?\.[0-9a-f]{16}\.tmp"
OWN = re.compile(
    rf"{UNFINISHED}|{LEASE}/.*|checkpoints/[0-9a-f]{{16}}/.*|{TEMPORARY}"
    rf"|{LATENTS}(/shape=[0-9x]+)?(\.lance/.*|/part-\d+\.(latent\.npy|embedding\.npy|parquet|tar))"
)
"""Paths of all that an export leaves which was cut off."""
NOTE = (
    "An export into this folder is under way, or was cut off: what lies here is not whole. The same command begins again.\n"
)


@dataclass(frozen=True)
class Survey:
    """What an export will hold, before it is made."""

    models: Counter[tuple[str, str]]
    """Rows of each (model_id, checkpoint_sha256)."""
    shapes: Counter[tuple[int, ...]]
    steps: list[float]


@dataclass
class Export:
    """An export under way."""

    dest: Store
    format: str
    columns: list[str]
    embed: Callable[[np.ndarray], np.ndarray] | None
    """Latents (N,C,h,w) to the vectors `embedding` (N,D)."""
    folders: bool
    """Whether each latent shape has a folder of its own."""
    about: dict[str, Any]
    waiting: dict[str, list[pa.Table]] = field(default_factory=dict)
    written: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    removed: int = 0


def export(
    output: Store,
    dest: Store,
    run: str | None = None,
    as_of: str | None = None,
    model: str | None = None,
    columns: list[str] | None = None,
    pool: str = "mean",
    form: str = "parquet",
) -> dict[str, Any]:
    """Write the state of OUTPUT to DEST, and give the content of its export.json, which is written last.

    Args:
        run, as_of, model: as in `snapshot`; the latest state when absent.
        columns: all of a row, `removed`, `latent` and `embedding` when absent.
        pool: how a latent becomes the vector `embedding`: one of `models.pooling.POOLS`, likeness, or none.

    What is not what was written, a latent or a whole part, is named in `left_out`, and not in the export.

    Raises: ConfigError, StorageError, OutputHeld, CheckpointError before anything is written.
    """
    if pool not in (valid := ["none", *sorted([*POOLS, LIKENESS])]):
        raise ConfigError(f"--pool {pool}: one of {', '.join(valid)} is expected")
    check_output(output)
    for inner, outer in ((output, dest), (dest, output)):
        if inner.lies_in(outer):
            raise ConfigError(f"{output.url} and {dest.url} lie one in the other")
    damaged: dict[str, str] = {}
    state = read_snapshot(output, run, as_of, model, damaged)
    check_latents(state)
    chosen = chosen_columns(state, columns, pool)
    check_format(form, dest, chosen)
    seen = survey(state)
    if not seen.models:
        raise no_readable_part(damaged)
    if len(seen.models) > 1:
        them = "; ".join(
            f"{name} {sha256[:16]}: {number(count, 'row')}" for (name, sha256), count in seen.models.most_common()
        )
        raise ConfigError(f"{output.url}: latents of {len(seen.models)} models, which do not compare ({them}): give --model")
    embed = embedding_by(pool, output, seen)
    check_free(dest)
    with Lease(dest) as lease:
        # Once more: another export may have ended since, and what it made would be cleared away.
        check_free(dest)
        clear(dest)
        dest.write(UNFINISHED, NOTE.encode(), durable=True)
        sources = list_sources(output) if "removed" in chosen else Sources(np.empty(0, "S16"), [])
        for problem in sources.problems:
            log.warning("%s: whether its images are still there is not known", problem)
        sized = "latent" in chosen or pool == "flatten"
        what = {"output": output.url, "run": run, "as_of": as_of, "model": model}
        about = keep_model(output, dest, seen) | {"snapshot": what, "pool": pool}
        if form == "parquet" and OF_EXPORT.issubset(chosen):
            about["decode"] = "imagemill decode EXPORT DEST"
        going = Export(dest, form, chosen, embed, sized and len(seen.shapes) > 1, about)
        problems: list[str] = []
        write_parts(going, state, sources, problems)
        record = about | {
            "format": form,
            "rows": going.rows,
            "removed": going.removed if "removed" in chosen and not sources.problems else None,
            "inputs_not_listed": sources.problems if "removed" in chosen else None,
            "left_out": [*damaged.values(), *problems],
            "waiting": state.waiting,
            "shapes": {named(shape): count for shape, count in sorted(seen.shapes.items())},
            "columns": chosen,
            "parts": dict(going.written),
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        lease.check_held()
        dest.write(MANIFEST, json.dumps(record, indent=2, ensure_ascii=False).encode(), durable=True)
        dest.delete(UNFINISHED)
    return record


def show_export(output: Store, dest: Store, **what: Any) -> None:
    record = export(output, dest, **what)
    images, parts = number(record["rows"], "image"), number(sum(record["parts"].values()), "part")
    print_text(f"{images}, {held(record)}, in {parts} below {dest.uri(LATENTS)}")
    if record["removed"]:
        print_text(f"{record['removed']:,} of them have no source any more (column removed)")
    if problems := record["left_out"]:
        raise VerificationError(f"left out, as they are not what was written: {first_of(problems)}")


def held(record: dict[str, Any]) -> str:
    """What an export has of its images."""
    if "latent" in record["columns"]:
        shapes = list(record["shapes"])
        return f"latents of {shapes[0] if len(shapes) == 1 else number(len(shapes), 'shape')}"
    return f"embeddings ({record['pool']})" if "embedding" in record["columns"] else number(len(record["columns"]), "column")


def chosen_columns(state: Snapshot, columns: list[str] | None, pool: str) -> list[str]:
    """The columns of an export. Raises: ConfigError for unknown ones."""
    plain = [name for name in state.schema.names if name not in LATENT_KEPT]
    valid = [*plain, *(name for name in ADDED if name != "embedding" or pool != "none")]
    if unknown := [name for name in columns or () if name not in valid]:
        without = " (--pool none makes no embedding)" if "embedding" in unknown else ""
        raise ConfigError(f"--columns: no column {', '.join(unknown)}{without}; there are: {', '.join(valid)}")
    return list(dict.fromkeys(columns)) if columns else valid


def embedding_by(pool: str, output: Store, seen: Survey) -> Callable[[np.ndarray], np.ndarray] | None:
    """What makes the vector of a latent. Raises: ConfigError for likeness where it would depend on the other images."""
    if pool != LIKENESS:
        return POOLS.get(pool)
    [(model_id, sha256)] = seen.models
    coder = LatentCoders(output)[sha256]
    whiten = read_photo_whitening(coder)
    if whiten is None:
        raise ConfigError(f"--pool {LIKENESS}: only for codecs such as compress-small, not {model_id}; see --pool gem")
    return lambda latents: whiten(likeness_features(latents, coder))


def survey(state: Snapshot) -> Survey:
    """Count models, shapes and steps of a snapshot, by columns that cost little."""
    models: Counter[tuple[str, str]] = Counter()
    shapes: Counter[tuple[int, ...]] = Counter()
    steps: set[float] = set()
    for table in state.tables(["model_id", "checkpoint_sha256", "step", "latent_shape"]):
        counts = table.group_by(["model_id", "checkpoint_sha256", "step"], use_threads=False).aggregate([([], "count_all")])
        for row in counts.to_pylist():
            models[row["model_id"], row["checkpoint_sha256"]] += row["count_all"]
            steps.add(row["step"])
        lists = table["latent_shape"].combine_chunks()
        if len(lists) * 3 == len(lists.flatten()) and not lists.null_count:
            found, times = np.unique(lists.flatten().to_numpy().reshape(-1, 3), axis=0, return_counts=True)
            shapes.update({tuple(shape): count for shape, count in zip(found.tolist(), times.tolist(), strict=True)})
        else:
            shapes.update(tuple(shape) for shape in lists.to_pylist() if shape and len(shape) == 3)
    return Survey(models, shapes, sorted(steps))


def named(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def check_free(dest: Store) -> None:
    """Raises: ConfigError when DEST holds anything but an export that was cut off."""
    if dest.exists(UNFINISHED):
        for entry in dest.entries():
            if not OWN.fullmatch(entry.path):
                raise ConfigError(f"{dest.uri(entry.path)} is no file of an export: give another folder, or move it away")
        return
    if dest.exists(MANIFEST):
        raise ConfigError(f"{dest.url} holds a finished export: give another folder, or delete it")
    if any(not entry.path.startswith(f"{LEASE}/") for entry in dest.entries()):
        raise ConfigError(f"{dest.url} is not empty, and what lies there is no export: give another folder")


def clear(dest: Store) -> None:
    """Remove what an export that was cut off left."""
    for entry in [*dest.entries(LATENTS), *dest.entries(f"{LATENTS}.lance")]:
        dest.delete(entry.path)


def keep_model(output: Store, dest: Store, seen: Survey) -> dict[str, Any]:
    """Put the checkpoint beside the export, so that it can be decoded by itself; what its values mean."""
    [(model_id, sha256)] = seen.models
    coders = LatentCoders(output)
    widths = {str(step): coders.dequantisation(sha256, step)[0].tolist() for step in seen.steps}
    folder = checkpoint_folder(sha256)
    for name in (checkpoints.WEIGHTS, checkpoints.CARD):
        dest.write(f"{folder}/{name}", output.read(f"{folder}/{name}"))
    return {
        "model_id": model_id,
        "checkpoint_sha256": sha256,
        "checkpoint": folder,
        "values": "value = (symbol - zero) * width[step][channel]; latent is (C,h,w), row-major",
        "zero": coders.dequantisation(sha256, seen.steps[0])[1],
        "width": widths,
        "stored_symbol": f"results/ holds symbol + {LATENT_ZERO_POINT} as uint8",
    }


def write_parts(going: Export, state: Snapshot, sources: Sources, problems: list[str]) -> None:
    """All batches as parts of bounded size; a few are written at a time."""
    asked = [name for name in going.columns if name not in ADDED]
    asked = list(dict.fromkeys([*asked, "image_id"] if "removed" in going.columns else asked or ["image_id"]))

    def parts() -> Iterator[tuple[str, int, pa.Table]]:
        batches = latent_batches(state, asked, problems)
        for latents in with_progress("export", batches, len(state), lambda latents: len(latents.rows)):
            yield from parts_of(going, latents, sources)
        for folder in list(going.waiting):
            yield taken(going, folder)

    # A part of lance appends to the part before it.
    depth = 0 if going.format == "lance" else WRITES_AT_A_TIME - 1
    with ThreadPoolExecutor(WRITES_AT_A_TIME) as pool:
        for _ in map_ahead(lambda part: pool.submit(FORMATS[going.format], going.dest, *part), parts(), depth):
            pass


def parts_of(going: Export, latents: Latents, sources: Sources) -> Iterator[tuple[str, int, pa.Table]]:
    """Lay a batch to those of its folder, and give the parts that are full by that."""
    shape = latents.values.shape[1:]
    folder = f"{LATENTS}/shape={named(shape)}" if going.folders else LATENTS
    table = as_table(going, latents, sources)
    going.rows += len(table)
    going.waiting.setdefault(folder, []).append(table)
    sizes = {name: sum(t.nbytes for t in tables) for name, tables in going.waiting.items()}
    if sizes[folder] >= PART_BYTES:
        yield taken(going, folder)
    elif sum(sizes.values()) >= HELD_BYTES:
        yield taken(going, max(sizes, key=lambda name: sizes[name]))


def taken(going: Export, folder: str) -> tuple[str, int, pa.Table]:
    number = going.written[folder]
    going.written[folder] += 1
    return folder, number, pa.concat_tables(going.waiting.pop(folder))


def as_table(going: Export, latents: Latents, sources: Sources) -> pa.Table:
    """A batch with the columns of an export, and what it is in the metadata of its schema."""
    rows, values = latents.rows, latents.values
    columns: dict[str, Any] = {}
    for name in going.columns:
        if name == "removed":
            columns[name] = sources.removed(rows["image_id"], going.dest.url)
            going.removed += columns[name].true_count
        elif name == "latent":
            columns[name] = to_vector_column(values.reshape(len(values), -1))
        elif name == "embedding":
            embed = require_value(going.embed, "what makes embeddings")
            columns[name] = to_vector_column(embed(values).astype(np.float32, copy=False))
        else:
            columns[name] = rows[name]
    about = going.about | ({"latent_shape": list(values.shape[1:])} if "latent" in going.columns else {})
    return pa.table(columns).replace_schema_metadata({"imagemill": json.dumps(about)})
