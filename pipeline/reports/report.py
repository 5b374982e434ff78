"""What a run leaves for a person to read: one page of figures and pictures, `runs/ID/report.html`."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.output.parts import list_new_parts, scan_parts
from imagemill.pipeline.output.rejects import group_rejects
from imagemill.pipeline.output.run_history import RUN_ID, list_run_ids, read_run_config, read_run_records
from imagemill.pipeline.plan import references
from imagemill.pipeline.reports.charts import Histogram, Projection, Trend, histogram
from imagemill.pipeline.reports.page import render_page
from imagemill.pipeline.reports.sample_images import (
    THREADS,
    ImageGroup,
    Rows,
    add_pictures,
    choose_images,
    project_run_latents,
    read_run_rows,
)
from imagemill.pipeline.sources.image_reader import ImageReader
from imagemill.pipeline.sources.input import find_images, open_input
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason

log = logging.getLogger("imagemill.report")
RUNS_SHOWN = 30
EXAMPLES, REASONS = 3, 50
PICTURE = b'<img src="data:'
GEOMETRY = ["orig_width", "orig_height", "output_bytes", "encoded_at"]
BUSY = 0.6
"""The share of its time from which on a stage is what a run waits for."""
NAMES = {"psnr_db": ("PSNR", "dB"), "sigma": ("noise level", ""), "missing_share": ("share missing", "")}
"""Columns whose own names are not how people call them, and their units."""
Source = Callable[[list[dict[str, Any]]], Callable[[dict[str, Any]], bytes]]


@dataclass(frozen=True)
class Reason:
    """Rejects of one stage and class."""

    stage: str
    error_class: str
    count: int
    transient: bool
    examples: list[tuple[str, str]]
    """Names of images, and what was said of them."""


@dataclass(frozen=True)
class Stage:
    """What actors spent their time on."""

    name: str
    seconds: float
    """Of all actors and threads together."""
    busy: float
    """The share of the time that the threads which do this had."""


@dataclass
class RunReport:
    """All that the page of a run shows; `run.html` draws it."""

    record: dict[str, Any]
    """The content of run.json."""
    headline: str
    mood: str
    """good, warn or bad."""
    config: str
    history: list[dict[str, Any]]
    """The last runs up to this one, oldest first; `linked` says whether there is a report of it."""
    trends: list[Trend] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    bottleneck: str = ""
    reasons: list[Reason] = field(default_factory=list)
    groups: list[ImageGroup] = field(default_factory=list)
    column: str | None = None
    """The quality column by which images are ordered."""
    histograms: list[Histogram] = field(default_factory=list)
    plane: Projection | None = None


def label_column(column: str, value: str = "") -> str:
    """A column as people call it, with a value of it, and its unit."""
    name, unit = NAMES.get(column, (column.replace("_", " "), ""))
    return " ".join(filter(None, (name, value, unit)))


def report_path(run_id: str) -> str:
    return f"runs/{run_id}/report.html"


def write_run_report(output: Store, record: dict[str, Any], before: set[str], todo: pa.Table | None) -> str | None:
    """Write the report of a run that has just ended, and give its path; one that cannot be made is a warning.

    Args:
        before: the parts that were there when the run began.
        todo: references (schema.REFERENCE) to the run's images.
    """

    def source(rows: list[dict[str, Any]]) -> Callable[[dict[str, Any]], bytes]:
        ids = pa.array([row["image_id"] for row in rows], pa.string())
        there = todo.filter(pc.is_in(todo["image_id"], ids)).to_pylist() if todo is not None else []
        return source_reader(read_run_config(output, record), there)

    try:
        return save_report(output, record, before, source)
    except Exception as e:  # noqa: BLE001 - the run has done its work, whatever is wrong with its page
        log.warning("no report of %s: %s", record["run_id"], reason(e))
        return None


def rewrite_report(output: Store, run_id: str) -> str:
    """Write the report of an earlier run anew, and give its path.

    Raises: StorageError when there is no such run, or when the page that is there shows more pictures.
    """
    if not RUN_ID.fullmatch(run_id) or not output.exists(f"runs/{run_id}/config.yaml"):
        raise StorageError(f"{output.url} has no run {run_id}; imagemill status lists them")
    record = next(iter(read_run_records(output, [run_id])), {"run_id": run_id})

    def source(rows: list[dict[str, Any]]) -> Callable[[dict[str, Any]], bytes]:
        config = read_run_config(output, record)
        try:
            where = open_input(str(config.input), config.storage, config.source)
            found = find_images(where, {row["rel_path"] for row in rows}, output)
        except (ConfigError, StorageError, *STORE_FAILURES) as e:
            log.info("no pictures of before: %s", reason(e))
            return source_reader(config, [])
        return source_reader(config, references(found, where.store, "", {})[0].to_pylist())

    return save_report(output, record, set(), source)


def source_reader(config: RunConfig, there: list[dict[str, Any]]) -> Callable[[dict[str, Any]], bytes]:
    """What reads the encoded source of a row, by references to the sources that are there."""
    by_name = {reference["rel_path"]: reference for reference in there}
    reading = ImageReader(open_input(str(config.input), config.storage, config.source), THREADS) if there else None

    def read(row: dict[str, Any]) -> bytes:
        reference = by_name.get(row["rel_path"])
        if reading is None or reference is None:
            raise FileNotFoundError(row["rel_path"])
        return reading.submit(reference, reading.image, reference).result()

    return read


def save_report(output: Store, record: dict[str, Any], before: set[str], source: Source) -> str:
    path = report_path(record["run_id"])
    page = render_page("run.html", {"report": build_report(output, record, before, source), "label_column": label_column})
    # Sources and files go away or become others; what was shown of them cannot be made again.
    if output.exists(path) and (shown := output.read(path).count(PICTURE)) > page.count(PICTURE):
        raise StorageError(
            f"{output.uri(path)} stays as it is: it shows {shown} pictures, of which INPUT and OUTPUT now give "
            f"{page.count(PICTURE)}; delete it for a page without the others"
        )
    output.write(path, page)
    return path


def build_report(output: Store, record: dict[str, Any], before: set[str], source: Source) -> RunReport:
    """The figures and pictures of a run. Where nothing was done this reads a few run.json and nothing else."""
    run_id = record["run_id"]
    headline, mood = describe_end(record)
    config = output.read(f"runs/{run_id}/config.yaml").decode()
    before_it = [other for other in list_run_ids(output) if other < run_id]
    history = [*read_run_records(output, before_it[1 - RUNS_SHOWN :]), record]
    with ThreadPoolExecutor(RUNS_SHOWN) as pool:
        linked = list(pool.map(lambda r: output.exists(report_path(r["run_id"])), history))
    history = [{**r, "linked": there} for r, there in zip(history, linked, strict=True)]
    report = RunReport(record, headline, mood, config, history, trends_of(history))
    report.stages = stages_of(record)
    report.bottleneck = bottleneck(record, report.stages)
    if record.get("planned") == 0:
        return report
    report.reasons = reasons_of(output, list_new_parts(output, before, "rejects"), run_id)
    from imagemill.models.tasks import TASKS

    task = TASKS[record.get("task") or read_run_config(output, record).task]
    columns = [name for name, kind in task.columns.items() if kind in (float, int)]
    rows = read_run_rows(output, list_new_parts(output, before, "results"), run_id, [*GEOMETRY, *columns])
    if not len(rows):
        return report
    report.column = task.worst[1] if task.worst and np.isfinite(rows.columns[task.worst[1]]).any() else None
    report.histograms = histograms_of(rows, columns)
    report.groups = choose_images(rows, task.worst if report.column else None)
    for group in report.groups:
        group.detail |= task.report_crops
    add_pictures(output, report.groups, report.column, columns, task.stores_latent, source)
    if task.stores_latent:
        report.plane = project_run_latents(output, rows, report.column)
    return report


def describe_end(record: dict[str, Any]) -> tuple[str, str]:
    """How a run ended, in a few words, and good, warn or bad."""
    code, planned = record.get("exit_code"), record.get("planned")
    if code is None:
        return "did not end: it was killed, or is still at work", "bad"
    if code == 0 and planned == 0:
        return ("nothing new: is INPUT the right place?", "warn") if "doubt" in record else ("nothing new", "good")
    if code == 0:
        rejected = record.get("rejected")
        return (f"done, {rejected:,} rejected", "warn") if rejected else ("done", "good")
    words = {3: "too many rejects", 7: "stopped at its deadline", 130: "interrupted"}
    return words.get(code, "failed"), "warn" if code in (7, 130) else "bad"


def trends_of(history: list[dict[str, Any]]) -> list[Trend]:
    """What became of the figures over the runs; nothing of one run alone."""
    if len(history) < 2:
        return []
    runs = [record["run_id"] for record in history]

    def trend(name: str, values: list[float | None], bad: list[float] | None = None) -> Trend:
        return Trend(name, runs, values, bad or [0.0] * len(runs))

    done = [float(record.get("ok", 0) + record.get("rejected", 0)) for record in history]
    trends = [
        trend("images done (red: rejects)", [*done], [float(record.get("rejected", 0)) for record in history]),
        trend("images/s", [record.get("images_per_s") for record in history]),
        trend("seconds", [record.get("seconds", {}).get("total") for record in history]),
    ]
    for name in dict.fromkeys(name for record in history for name in record.get("quality", {})):
        trends.append(trend(f"mean {label_column(name)}", [record.get("quality", {}).get(name) for record in history]))
    return [t for t in trends if len({value for value in t.values if value is not None}) > 1]


def stages_of(record: dict[str, Any]) -> list[Stage]:
    """Each stage with the share of its threads' time that it took, from the first image to the last."""
    pool, seconds = record.get("pool"), record.get("seconds", {})
    if not pool or "run" not in seconds:
        return []
    working = max(0.5, seconds["run"] - record["seconds"].get("first_image", 0))
    stages = []
    for name, spent in record.get("stage_seconds", {}).items():
        # One thread of an actor runs the model, one commits; the other stages share its pool.
        threads = pool["actors"] * (1 if name in ("model", "commit") else pool["threads"])
        stages.append(Stage(name, spent, min(1.0, spent / (working * threads))))
    return sorted(stages, key=lambda stage: -stage.busy)


def bottleneck(record: dict[str, Any], stages: list[Stage]) -> str:
    """A sentence on what a run waited for."""
    seconds = record.get("seconds", {})
    total, start = seconds.get("total", 0), seconds.get("start", 0) + seconds.get("first_image", 0)
    if not record.get("planned"):
        return ""
    if start > total / 2:
        return f"Half of the time and more went by before the first image: Ray and its actors took {start:.1f} s to start."
    if seconds.get("plan", 0) > total / 2:
        return "Half of the time and more went into listing and planning."
    if not stages:
        return ""
    most = stages[0]
    shares = f"{most.name} kept its threads busy {most.busy:.0%} of the time"
    if most.busy >= BUSY:
        return f"The bottleneck was {most.name}: {shares}."
    return f"No stage was busy all the time; the most was asked of {most.name}: {shares}."


def reasons_of(output: Store, parts: list[str], run_id: str) -> list[Reason]:
    """The rejects of a run by stage and class, the most frequent first, with the first of each as examples."""
    columns = ["run_id", "stage", "error_class", "transient", "rel_path", "error"]
    tables = [table.filter(pc.equal(table["run_id"], run_id)) for table in scan_parts(output, parts, columns)]
    if not tables:
        return []
    rejects = pa.concat_tables(tables, promote_options="default")
    reasons = []
    for group in group_rejects(rejects).slice(0, REASONS).to_pylist():
        same = (pc.field("stage") == group["stage"]) & (pc.field("error_class") == group["error_class"])
        some = rejects.filter(same).slice(0, EXAMPLES).to_pylist()
        examples = [(row["rel_path"], row["error"]) for row in some]
        reasons.append(
            Reason(group["stage"], group["error_class"], group["rel_path_count"], group["transient_any"], examples)
        )
    return reasons


def histograms_of(rows: Rows, columns: list[str]) -> list[Histogram]:
    """How sizes, rates, quality and times are spread over a run's images; what is the same for all is left out."""
    pixels = rows.columns["orig_width"] * rows.columns["orig_height"]
    written = rows.columns["output_bytes"]
    values = {"size, megapixels": pixels / 1e6, "output file, kB": written / 1e3}
    if "bits_per_pixel" not in columns:
        values["bits per pixel of the output file"] = written * 8 / (pixels * rows.columns.get("scale", 1) ** 2)
    values |= {label_column(name): rows.columns[name] for name in columns}
    # Milliseconds, as the column counts them.
    ended = rows.columns["encoded_at"] / 1e3
    values["done after, seconds since the first"] = ended - ended.min()
    drawn = [histogram(name, numbers) for name, numbers in values.items()]
    return [h for h in drawn if h and (h.least < h.largest or len(rows) == 1)]
