"""Compute the figures of a run for its report: trends, stages, bottleneck, rejects, histograms."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.output.parts import scan_parts
from imagemill.pipeline.output.rejects import group_rejects
from imagemill.pipeline.reports.charts import Histogram, Trend, histogram
from imagemill.pipeline.reports.run_rows import RunRows
from imagemill.pipeline.storage import Store

EXAMPLES_SHOWN, REASONS_SHOWN = 3, 50
BUSY = 0.6
"""A stage whose threads are busy for this share of the time is the bottleneck."""
LABELS = {"psnr_db": ("PSNR", "dB"), "sigma": ("noise level", ""), "missing_share": ("share missing", "")}
"""Names and units for people, of columns whose names are not plain words."""


@dataclass(frozen=True)
class Reason:
    """Rejects of one stage and class."""

    stage: str
    error_class: str
    count: int
    transient: bool
    examples: list[tuple[str, str]]
    """Names of images, and the errors."""


@dataclass(frozen=True)
class Stage:
    """Time that the workers spent on one stage."""

    name: str
    seconds: float
    """Sum over all workers and threads."""
    busy: float
    """Share of the time of the stage's threads, in [0, 1]."""


def name_column(column: str) -> str:
    """Return the name of a column for people: PSNR."""
    return LABELS.get(column, (column.replace("_", " "), ""))[0]


def label_column(column: str, value: str = "") -> str:
    """Return the name of a column for people, with a value and the unit: PSNR 31.2 dB."""
    unit = LABELS.get(column, ("", ""))[1]
    return " ".join(filter(None, (name_column(column), value, unit)))


def build_trends(history: list[dict[str, Any]]) -> list[Trend]:
    """Return the figures that changed between runs; no trends for a single run.

    Args:
        history: run.json of the runs, oldest first.
    """
    if len(history) < 2:
        return []
    runs = [record["run_id"] for record in history]

    def trend(name: str, values: list[float | None], bad: list[float] | None = None) -> Trend:
        return Trend(name, runs, values, bad or [0.0] * len(runs))

    processed = [float(record.get("ok", 0) + record.get("rejected", 0)) for record in history]
    trends = [
        trend("images processed (red: rejects)", [*processed], [float(record.get("rejected", 0)) for record in history]),
        trend("images/s", [record.get("images_per_s") for record in history]),
        trend("seconds", [record.get("seconds", {}).get("total") for record in history]),
    ]
    for name in dict.fromkeys(name for record in history for name in record.get("quality", {})):
        trends.append(trend(f"mean {label_column(name)}", [record.get("quality", {}).get(name) for record in history]))
    return [t for t in trends if len({value for value in t.values if value is not None}) > 1]


def measure_stages(record: dict[str, Any]) -> list[Stage]:
    """Return the stages of a run with the share of time that their threads were busy, the busiest first."""
    pool, seconds = record.get("pool"), record.get("seconds", {})
    if not pool or "run" not in seconds:
        return []
    working = max(0.5, seconds["run"] - record["seconds"].get("first_image", 0))
    stages = []
    for name, spent in record.get("stage_seconds", {}).items():
        # One thread of a worker runs the model and one commits; fetches have their own threads, and the other stages share a
        # thread pool. Older versions did not record the threads that fetch.
        threads = {"model": 1, "commit": 1, "fetch": pool.get("fetch_threads", pool["threads"])}.get(name, pool["threads"])
        stages.append(Stage(name, spent, min(1.0, spent / (working * pool["actors"] * threads))))
    return sorted(stages, key=lambda stage: -stage.busy)


def describe_bottleneck(record: dict[str, Any], stages: list[Stage]) -> str:
    """Return a sentence about what limited the speed of a run; empty if it processed no images."""
    seconds = record.get("seconds", {})
    total, start = seconds.get("total", 0), seconds.get("start", 0) + seconds.get("first_image", 0)
    if not record.get("planned"):
        return ""
    if start > total / 2:
        return f"The start took more than half of the time: {start:.1f} s until the first image."
    if seconds.get("plan", 0) > total / 2:
        return "Listing and planning took more than half of the time."
    if not stages:
        return ""
    busiest = stages[0]
    share = f"its threads were busy {busiest.busy:.0%} of the time"
    if busiest.busy >= BUSY:
        return f"The bottleneck was {busiest.name}: {share}."
    return f"No stage was a bottleneck. The busiest stage was {busiest.name}: {share}."


def count_reasons(output: Store, parts: list[str], run_id: str) -> list[Reason]:
    """Count the rejects of a run by stage and class, most frequent first, with the first of each as examples."""
    columns = ["run_id", "stage", "error_class", "transient", "rel_path", "error"]
    tables = [table.filter(pc.equal(table["run_id"], run_id)) for table in scan_parts(output, parts, columns)]
    if not tables:
        return []
    rejects = pa.concat_tables(tables, promote_options="default")
    reasons = []
    for group in group_rejects(rejects).slice(0, REASONS_SHOWN).to_pylist():
        is_same = (pc.field("stage") == group["stage"]) & (pc.field("error_class") == group["error_class"])
        rows = rejects.filter(is_same).slice(0, EXAMPLES_SHOWN).to_pylist()
        examples = [(row["rel_path"], row["error"]) for row in rows]
        count, transient = group["rel_path_count"], group["transient_any"]
        reasons.append(Reason(group["stage"], group["error_class"], count, transient, examples))
    return reasons


def build_histograms(rows: RunRows, columns: list[str]) -> list[Histogram]:
    """Return histograms of sizes, rates, quality and times of a run, without columns that have a single value.

    Args:
        rows: the rows of the run, with the columns of `report.GEOMETRY`.
        columns: the numeric columns of the task.
    """
    pixels = rows.columns["orig_width"] * rows.columns["orig_height"]
    written = rows.columns["output_bytes"]
    values = {"image size in megapixels": pixels / 1e6, "output file in kB": written / 1e3}
    if "bits_per_pixel" not in columns:
        values["bits per pixel of the output file"] = written * 8 / (pixels * rows.columns.get("scale", 1) ** 2)
    values |= {label_column(name): rows.columns[name] for name in columns}
    # The column counts milliseconds.
    seconds = rows.columns["encoded_at"] / 1e3
    values["finished, in s after the first image"] = seconds - seconds.min()
    histograms = [histogram(name, numbers) for name, numbers in values.items()]
    return [h for h in histograms if h and (h.least < h.largest or len(rows) == 1)]
