"""Choose the images of a run that its report shows, and the latents that its scatter plot shows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagemill.pipeline.output.latent_symbols import read_latent
from imagemill.pipeline.output.latent_values import LATENT_COLUMNS
from imagemill.pipeline.parquet_part import LATENT_ROWS
from imagemill.pipeline.reports.charts import Projection, project_latents, summarize_latent
from imagemill.pipeline.reports.run_rows import RowPosition, RunRows, read_part_rows
from imagemill.pipeline.schema import LatentError
from imagemill.pipeline.storage import Store

RANDOM_IMAGES, IMAGES_BY_QUALITY = 8, 4
"""Images shown at random, and images shown at each end of the quality column."""
POINTS, POINT_PARTS, POINT_VALUES = 300, 10, 80_000_000
"""Limits of the scatter plot: latents, the parts that they come from, and their values. A value takes about 4 ns."""
SourceReader = Callable[[dict[str, Any]], bytes]
"""Returns the encoded input image of a row."""


@dataclass(frozen=True)
class ImagePair:
    """Data URLs of the input and of the result of an image; None for a picture that could not be made."""

    name: str
    value: float | None
    """Of the quality column."""
    before: str | None
    after: str | None


@dataclass
class ImageGroup:
    """Images under one heading."""

    title: str
    crops: bool
    """Whether the pictures are center crops that are not resized."""
    positions: list[RowPosition]
    pairs: list[ImagePair] = field(default_factory=list)


def choose_images(rows: RunRows, worst: tuple[str, str] | None, label: str) -> list[ImageGroup]:
    """Choose a random sample, the images with the worst quality, and images around the median.

    Args:
        rows: the rows of the run.
        worst: "lowest" or "highest", and the quality column; None for a task without a quality column.
        label: the name of the quality column for people.
    """
    # Seeded by the number of rows, so that a report that is written again shows the same images.
    sample = np.random.default_rng(len(rows)).choice(len(rows), min(RANDOM_IMAGES, len(rows)), replace=False)
    groups = [ImageGroup("Random sample", False, [rows.position(n) for n in sorted(sample)])]
    if worst is None:
        return groups
    values = rows.columns[worst[1]]
    measured = np.flatnonzero(np.isfinite(values))
    if len(measured) > 2 * IMAGES_BY_QUALITY:
        order = measured[np.argsort(values[measured], kind="stable")]
        order = order if worst[0] == "lowest" else order[::-1]
        middle = len(order) // 2 - IMAGES_BY_QUALITY // 2
        among = "" if len(measured) == len(rows) else f" of {len(measured):,} measured images"
        titles = f"{worst[0].capitalize()} {label}", f"{label[:1].upper()}{label[1:]} around the median"
        for title, numbers in zip(titles, (order, order[middle:]), strict=True):
            positions = [rows.position(n) for n in numbers[:IMAGES_BY_QUALITY]]
            groups.append(ImageGroup(title + among, True, positions))
    return groups


def project_run_latents(output: Store, rows: RunRows, column: str | None) -> Projection | None:
    """Return a scatter plot of the plain latents of a sample; None if there are fewer than three.

    Args:
        output: the output of the run.
        rows: the rows of the run.
        column: the quality column, which decides the shade.
    """
    parts = np.unique(rows.part)
    parts = parts[:: -(-len(parts) // POINT_PARTS)]
    columns = ["rel_path", *([column] if column else []), *LATENT_COLUMNS]
    names, features, quality = [], [], []
    for part in parts:
        numbers = choose_rows(rows.row[rows.part == part], -(-POINTS // len(parts)))
        values_left = POINT_VALUES // len(parts)
        for _, row in read_part_rows(output, rows.parts[part], set(numbers.tolist()), columns):
            if values_left < 0:
                break
            plain = row["latent"] if row["latent"] is not None else row.get("latent_values")
            if plain is None:
                continue
            values_left -= plain.size
            try:
                latent = read_latent(row)
            except LatentError:
                continue
            names.append(row["rel_path"])
            features.append(summarize_latent(latent))
            quality.append(row[column] if column else 0.0)
    return project_latents(names, np.stack(features), np.array(quality, float)) if len(names) > 2 else None


def choose_rows(numbers: np.ndarray, most: int) -> np.ndarray:
    """Choose about `most` row numbers of a part, from few of its row groups, because a group is decompressed as a whole."""
    groups = numbers // LATENT_ROWS
    existing = np.unique(groups)
    step = max(1, len(existing) * LATENT_ROWS // most)
    return numbers[np.isin(groups, existing[::step])][:most]
