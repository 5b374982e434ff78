"""Export the current state of an output for analysis: dequantised latents, embeddings and all columns of the rows."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from imagemill.jobs.console import number, print_text
from imagemill.jobs.decode import export_columns
from imagemill.jobs.export_files import FILE_FORMATS, LatentFiles
from imagemill.jobs.export_folder import UNFINISHED_TEXT, check_export_folder, remove_unfinished_parts
from imagemill.jobs.export_formats import check_format
from imagemill.jobs.export_parts import ADDED_COLUMNS, ExportParts, format_shape
from imagemill.jobs.export_values import choose_scale, describe_values, float_latents
from imagemill.jobs.outputs import check_output
from imagemill.jobs.removed import Sources, list_sources
from imagemill.models import checkpoint as checkpoints
from imagemill.models.likeness import likeness_features, read_photo_whitening
from imagemill.models.pooling import POOLS
from imagemill.pipeline.errors import ConfigError, VerificationError, join_first
from imagemill.pipeline.output.exports import LATENTS, MANIFEST, UNFINISHED
from imagemill.pipeline.output.latent_values import LatentCoders, check_latents
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.output.snapshot import Snapshot, no_readable_part, read_snapshot
from imagemill.pipeline.output.stored_checkpoint import checkpoint_folder, read_stored_card
from imagemill.pipeline.schema import FITTING, LATENT_CONTENT
from imagemill.pipeline.storage import Store

log = logging.getLogger("imagemill.export")
LAYOUTS = ("shapes", "one")
LIKENESS = "likeness"
"""The pool that computes the vectors that `imagemill search` compares."""


@dataclass(frozen=True)
class Survey:
    """What the rows of a snapshot contain, read before the latents."""

    models: Counter[tuple[str, str]]
    """Number of rows of each (model_id, checkpoint_sha256)."""
    shapes: Counter[tuple[int, ...]]
    """Number of latents of each shape (C,h,w)."""
    steps: list[float]
    """Quantiser steps; empty for float latents."""
    are_resized: bool
    """Whether an image was resized or cropped before it was encoded."""


def export(
    output: Store,
    dest: Store,
    run: str | None = None,
    as_of: str | None = None,
    model: str | None = None,
    columns: list[str] | None = None,
    pool: str = "mean",
    file_format: str = "parquet",
    layout: str = "shapes",
    scaled: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the state of an output to a folder.

    Damaged latents and parts are not exported; `left_out` of the manifest names them.

    Args:
        output: the output to export.
        dest: for a format in parts an empty folder, or one with an unfinished export, which is replaced. For a format with
            one file per image any folder.
        run: export only rows of this run; see `read_snapshot`.
        as_of: export the state at this time; see `read_snapshot`.
        model: export only rows of this model; see `read_snapshot`.
        columns: columns to export; all columns by default.
        pool: how to compute the column `embedding`: a key of `models.pooling.POOLS`, "likeness" or "none".
        file_format: a key of `export_formats.FORMATS` or `export_files.FILE_FORMATS`.
        layout: "shapes" for one folder per latent shape, "one" for one folder with lists of different lengths.
        scaled: scale latents as trainers do; see `export_values.choose_scale`.
        overwrite: replace files that no export wrote, in a format with one file per image.

    Returns:
        The content of export.json, which is written last.

    Raises:
        ConfigError: when an argument is invalid, or a file in the folder must not be replaced.
        StorageError: when the output does not exist or cannot be read.
        OutputHeld: when another process writes into the folder.
        CheckpointError: when the checkpoint stored in the output is missing or damaged.
    """
    check_options(columns, pool, file_format, layout, overwrite)
    check_output(output)
    if output.lies_in(dest) or dest.lies_in(output):
        raise ConfigError(f"output {output.url} and export {dest.url} overlap: one contains the other")
    damaged_parts: dict[str, str] = {}
    state = read_snapshot(output, run, as_of, model, damaged_parts)
    check_latents(state)
    chosen = choose_columns(state, columns, pool)
    if layout == "one" and "latent" in chosen:
        # Without its shape, nobody can use a latent.
        chosen = list(dict.fromkeys([*chosen, "latent_shape"]))
    check_format(file_format, dest, chosen)
    survey = survey_rows(state)
    if not survey.models:
        raise no_readable_part(damaged_parts)
    check_one_model(output, survey)
    [(_, sha256)] = survey.models
    card = read_stored_card(output, sha256)
    scale = choose_scale(card, scaled)
    about = describe_values(card, LatentCoders(output), survey.steps, scaled) | {
        "snapshot": {"output": output.url, "run": run, "as_of": as_of, "model": model}
    }

    def describe(rows: int, problems: list[str]) -> dict[str, Any]:
        """Return what `export.json` says about an export in any format."""
        return about | {
            "format": file_format,
            "rows": rows,
            "left_out": [*damaged_parts.values(), *problems],
            "waiting": state.waiting,
            "shapes": {format_shape(shape): count for shape, count in sorted(survey.shapes.items())},
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    if file_format in FILE_FORMATS:
        files = LatentFiles(dest, file_format, float_latents(card), scale, about, overwrite)
        files.check()
        return files.write(state, describe)
    embed = choose_embedding(pool, output, survey)
    check_export_folder(dest)
    with Lease(dest) as lease:
        # Check again: another export may have finished before this process held the lease.
        check_export_folder(dest)
        remove_unfinished_parts(dest)
        dest.write(UNFINISHED, UNFINISHED_TEXT.encode(), durable=True)
        sources = list_sources(output) if "removed" in chosen else Sources(np.empty(0, "S16"), [], [], [])
        about |= {"checkpoint": copy_checkpoint(output, dest, sha256), "pool": pool}
        if file_format == "parquet" and not scaled and export_columns(survey.are_resized).issubset(chosen):
            about["decode"] = "imagemill decode EXPORT DEST"
        has_shapes = layout == "shapes" and ("latent" in chosen or pool == "flatten") and len(survey.shapes) > 1
        parts = ExportParts(dest, file_format, chosen, embed, scale, has_shapes, layout == "shapes", about)
        problems = parts.write(state, sources)
        unlisted = [*sources.problems, *sorted(parts.missing_configs)]
        for problem in unlisted:
            log.warning("column removed is null for images of an input that cannot be listed: %s", problem)
        manifest = describe(parts.rows, problems) | {
            "removed": parts.removed if "removed" in chosen and not unlisted else None,
            "inputs_not_listed": unlisted if "removed" in chosen else None,
            "columns": chosen,
            "parts": dict(parts.written),
        }
        lease.check_held()
        dest.write(MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode(), durable=True)
        dest.delete(UNFINISHED)
    return manifest


def show_export(output: Store, dest: Store, **arguments: Any) -> None:
    """Export an output and print what was written. Arguments and errors are those of `export`.

    Raises:
        VerificationError: after printing, when damaged latents or parts were left out.
    """
    manifest = export(output, dest, **arguments)
    images, content = number(manifest["rows"], "image"), describe_content(manifest)
    if manifest["format"] in FILE_FORMATS:
        print_text(f"{images}, {content}, in {number(manifest['rows'], manifest['format'] + ' file')} below {dest.url}")
    else:
        print_text(f"{images}, {content}, in {number(sum(manifest['parts'].values()), 'part')} below {dest.uri(LATENTS)}")
    if manifest.get("removed"):
        print_text(f"{manifest['removed']:,} of the images are in no input any more (column removed)")
    if problems := manifest["left_out"]:
        raise VerificationError(f"left out, because damaged: {join_first(problems)}")


def describe_content(manifest: dict[str, Any]) -> str:
    """Say what an export holds of each image: latents, embeddings or columns."""
    if "latent" in manifest.get("columns", ["latent"]):
        shapes = list(manifest["shapes"])
        return f"latents of {shapes[0] if len(shapes) == 1 else number(len(shapes), 'shape')}"
    if "embedding" in manifest["columns"]:
        return f"embeddings ({manifest['pool']})"
    return number(len(manifest["columns"]), "column")


def check_options(columns: list[str] | None, pool: str, file_format: str, layout: str, overwrite: bool) -> None:
    """Raise ConfigError if an option is invalid, or does not fit the format."""
    pools = ["none", *sorted([*POOLS, LIKENESS])]
    if pool not in pools:
        raise ConfigError(f"--pool {pool}: unknown pool. Valid: {', '.join(pools)}")
    if layout not in LAYOUTS:
        raise ConfigError(f"--layout {layout}: unknown layout. Valid: {', '.join(LAYOUTS)}")
    if layout == "one" and file_format != "parquet":
        raise ConfigError(f"--layout one: is for --format parquet, not for {file_format}")
    if columns and file_format in FILE_FORMATS:
        raise ConfigError(f"--columns: not available with --format {file_format}, whose files hold latents and sizes alone")
    if overwrite and file_format not in FILE_FORMATS:
        raise ConfigError(f"--overwrite: not available with --format {file_format}, which needs an empty folder")


def choose_columns(state: Snapshot, columns: list[str] | None, pool: str) -> list[str]:
    """Return the columns to export. Raises ConfigError if a requested column does not exist."""
    stored = [name for name in state.schema.names if name not in LATENT_CONTENT]
    valid = [*stored, *(name for name in ADDED_COLUMNS if name != "embedding" or pool != "none")]
    if unknown := [name for name in columns or () if name not in valid]:
        hint = " (--pool none computes no embedding)" if "embedding" in unknown else ""
        raise ConfigError(f"--columns: no column {', '.join(unknown)}{hint}. Valid: {', '.join(valid)}")
    return list(dict.fromkeys(columns)) if columns else valid


def check_one_model(output: Store, survey: Survey) -> None:
    """Raise ConfigError if the latents come from several models, because such latents cannot be compared."""
    if len(survey.models) > 1:
        rows = [f"{name} {sha256[:16]}: {number(count, 'row')}" for (name, sha256), count in survey.models.most_common()]
        models = f"latents of {len(survey.models)} models cannot be compared ({'; '.join(rows)})"
        raise ConfigError(f"{output.url}: {models}. Choose one with --model.")


def choose_embedding(pool: str, output: Store, survey: Survey) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return the function that computes embeddings (N,D) from latents (N,C,h,w); None for the pool "none".

    Raises:
        ConfigError: when the model has no fixed whitening, so that "likeness" would depend on the other images.
    """
    if pool != LIKENESS:
        return POOLS.get(pool)
    [(model_id, sha256)] = survey.models
    coder = LatentCoders(output)[sha256]
    whiten = read_photo_whitening(coder)
    if whiten is None:
        raise ConfigError(f"--pool {LIKENESS}: not available for {model_id}, only for codecs such as compress-small")
    return lambda latents: whiten(likeness_features(latents, coder))


def survey_rows(state: Snapshot) -> Survey:
    """Count the models, latent shapes and quantiser steps of a snapshot; reads small columns only."""
    models: Counter[tuple[str, str]] = Counter()
    shapes: Counter[tuple[int, ...]] = Counter()
    steps: set[float] = set()
    are_resized = False
    fitting = [name for name, _ in FITTING]
    for table in state.tables(["model_id", "checkpoint_sha256", "step", "latent_shape", *fitting]):
        are_resized |= any(table[name].null_count < len(table) for name in fitting)
        counts = table.group_by(["model_id", "checkpoint_sha256", "step"], use_threads=False).aggregate([([], "count_all")])
        for row in counts.to_pylist():
            models[row["model_id"], row["checkpoint_sha256"]] += row["count_all"]
            if row["step"] is not None:
                steps.add(row["step"])
        lists = table["latent_shape"].combine_chunks()
        if len(lists) * 3 == len(lists.flatten()) and not lists.null_count:
            unique, times = np.unique(lists.flatten().to_numpy().reshape(-1, 3), axis=0, return_counts=True)
            shapes.update({tuple(shape): count for shape, count in zip(unique.tolist(), times.tolist(), strict=True)})
        else:
            shapes.update(tuple(shape) for shape in lists.to_pylist() if shape and len(shape) == 3)
    return Survey(models, shapes, sorted(steps), are_resized)


def copy_checkpoint(output: Store, dest: Store, sha256: str) -> str:
    """Copy the checkpoint into the export, so that `decode` needs nothing else, and return its folder."""
    folder = checkpoint_folder(sha256)
    for name in (checkpoints.WEIGHTS, checkpoints.CARD):
        dest.write(f"{folder}/{name}", output.read(f"{folder}/{name}"))
    return folder
