"""Write the report of a run, `runs/ID/report.html`: one page with figures and pictures."""

import json
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.models.tasks import TASKS
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.output.parts import list_new_parts
from imagemill.pipeline.output.run_history import RUN_ID, list_run_ids, read_run_config, read_run_records
from imagemill.pipeline.plan import build_references, name_in_input
from imagemill.pipeline.reports.charts import Histogram, Projection, Trend
from imagemill.pipeline.reports.run_figures import (
    Reason,
    Stage,
    build_histograms,
    build_trends,
    count_reasons,
    describe_bottleneck,
    label_column,
    measure_stages,
    name_column,
)
from imagemill.pipeline.reports.run_rows import THREADS, read_run_rows
from imagemill.pipeline.reports.sample_images import ImageGroup, SourceReader, choose_images, project_run_latents
from imagemill.pipeline.sources.input import find_images, open_input
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures

log = logging.getLogger("imagemill.report")
RUNS_SHOWN = 30
PICTURE = b'<img src="data:'
LINK_TO_REPORT = re.compile(rb'<a href="\.\./[^"/]+/report\.html">([^<]*)</a>')
"""A link to the report of another run, which works only inside OUTPUT."""
GEOMETRY = ["orig_width", "orig_height", "output_bytes", "encoded_at"]
OpenSources = Callable[[list[dict[str, Any]]], SourceReader]
"""Returns the reader of the input images of some rows."""


@dataclass
class RunReport:
    """The values of the template run.html."""

    record: dict[str, Any]
    """The content of run.json."""
    headline: str
    mood: str
    """good, warn or bad: the colour of the headline."""
    config: str
    """The effective configuration, as YAML."""
    history: list[dict[str, Any]]
    """run.json of the last runs up to this one, oldest first; `linked` tells whether a run has a report."""
    trends: list[Trend] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    bottleneck: str = ""
    reasons: list[Reason] = field(default_factory=list)
    groups: list[ImageGroup] = field(default_factory=list)
    column: str | None = None
    """The quality column, which orders the images."""
    histograms: list[Histogram] = field(default_factory=list)
    projection: Projection | None = None


def import_pages() -> None:
    """Import what a page with pictures needs. Called while workers start, so that the end of a run is not delayed."""
    from imagemill.pipeline.reports import pictures  # noqa: F401
    from imagemill.pipeline.reports.page import ENVIRONMENT

    ENVIRONMENT.get_template("run.html")


def report_path(run_id: str) -> str:
    """Return the path of a report within the output."""
    return f"runs/{run_id}/report.html"


def write_run_report(output: Store, record: dict[str, Any], before: set[str], todo: pa.Table | None) -> str | None:
    """Write the report of a run that has just ended. A failure is a warning, because the run itself is complete.

    Args:
        output: the output of the run.
        record: the content of run.json.
        before: the parts that existed before the run.
        todo: references (schema.REFERENCE) to the images of the run.

    Returns:
        The path of the report, or None if it could not be written.
    """

    def open_sources(rows: list[dict[str, Any]]) -> SourceReader:
        ids = pa.array([row["image_id"] for row in rows], pa.string())
        existing = todo.filter(pc.is_in(todo["image_id"], ids)).to_pylist() if todo is not None else []
        return source_reader(read_run_config(output, record), existing)

    try:
        return save_report(output, record, before, open_sources)
    except Exception as e:  # noqa: BLE001 - a report must never fail a run
        log.warning("run %s has no report: %s", record["run_id"], reason(e))
        return None


def rewrite_report(output: Store, run_id: str) -> str:
    """Write the report of an earlier run again, and return its path.

    Raises:
        StorageError: when the run does not exist, or the existing report has more pictures than can be made now.
    """
    record = read_record(output, run_id)
    return save_report(output, record, set(), earlier_sources(output, record))


def read_report(output: Store, run_id: str) -> bytes:
    """Return the report of an earlier run as a page that can leave OUTPUT; nothing is written to OUTPUT.

    A run without a report, because it was killed or its report was deleted, gets a page from its rows.

    Raises:
        StorageError: when the run does not exist, or the output cannot be read.
    """
    record = read_record(output, run_id)
    try:
        page = output.read(report_path(run_id))
    except FileNotFoundError:
        log.info("run %s has no report.html: making one from its rows", run_id)
        page = render_report(output, record, set(), earlier_sources(output, record))
    except store_failures() as e:
        raise StorageError(f"{output.uri(report_path(run_id))}: cannot be read: {reason(e)}") from None
    return LINK_TO_REPORT.sub(rb"\1", page)


def read_record(output: Store, run_id: str) -> dict[str, Any]:
    """Return run.json of a run, or what its config says if it was killed or is still running.

    Raises:
        StorageError: when the run does not exist, or its config is damaged.
    """
    if not RUN_ID.fullmatch(run_id) or not output.exists(f"runs/{run_id}/config.yaml"):
        raise StorageError(f"{output.url}: has no run {run_id}. `imagemill status` lists the runs.")
    if records := read_run_records(output, [run_id]):
        return records[0]
    config = read_run_config(output, {"run_id": run_id})
    return {"run_id": run_id, "task": config.task, "input": config.input, "output": output.url}


def earlier_sources(output: Store, record: dict[str, Any]) -> OpenSources:
    """Return a function that finds the input images of rows of an earlier run in its input."""

    def open_sources(rows: list[dict[str, Any]]) -> SourceReader:
        config = read_run_config(output, record)
        try:
            source = open_input(str(config.input), config.storage, config.source)
            images = find_images(source, {name_in_input(row["rel_path"], config.prefix) for row in rows}, output)
        except store_failures(ConfigError, StorageError) as e:
            log.info("the report shows no input images: %s", reason(e))
            return source_reader(config, [])
        return source_reader(config, build_references(images, source.store, "", {}, config.prefix)[0].to_pylist())

    return open_sources


def source_reader(config: RunConfig, existing: list[dict[str, Any]]) -> SourceReader:
    """Return a function that reads the encoded input image of a row; `existing` are references to its images."""
    from imagemill.pipeline.sources.image_reader import ImageReader

    by_name = {reference["rel_path"]: reference for reference in existing}
    reader = ImageReader(open_input(str(config.input), config.storage, config.source), THREADS) if existing else None

    def read(row: dict[str, Any]) -> bytes:
        reference = by_name.get(row["rel_path"])
        if reader is None or reference is None:
            raise FileNotFoundError(row["rel_path"])
        return reader.submit(reference, reader.image, reference).result()

    return read


def save_report(output: Store, record: dict[str, Any], before: set[str], open_sources: OpenSources) -> str:
    """Build and write a report, and return its path.

    Raises:
        StorageError: when the existing report has more pictures. They cannot be made again after their files have changed.
    """
    path = report_path(record["run_id"])
    page = render_report(output, record, before, open_sources)
    from imagemill.pipeline.reports.pictures import PICTURE_SECONDS

    if output.exists(path) and (shown := output.read(path).count(PICTURE)) > page.count(PICTURE):
        made = f"only {page.count(PICTURE)} could be made now, in {PICTURE_SECONDS:.0f} s"
        problem = f"not replaced, because it shows {shown} pictures and {made}"
        raise StorageError(f"{output.uri(path)}: {problem}. Delete the file to write a report with fewer pictures.")
    output.write(path, page)
    return path


def render_report(output: Store, record: dict[str, Any], before: set[str], open_sources: OpenSources) -> bytes:
    """Return the page of `build_report`."""
    from imagemill.pipeline.reports.page import render_page

    report = build_report(output, record, before, open_sources)
    return render_page("run.html", {"report": report, "label_column": label_column, "name_column": name_column})


def build_report(output: Store, record: dict[str, Any], before: set[str], open_sources: OpenSources) -> RunReport:
    """Collect the figures and pictures of a run; a run without new images only reads a few run.json."""
    run_id = record["run_id"]
    headline, mood = describe_end(record)
    config = output.read(f"runs/{run_id}/config.yaml").decode()
    earlier = [other for other in list_run_ids(output) if other < run_id]
    history = [*read_run_records(output, earlier[1 - RUNS_SHOWN :]), record]
    with ThreadPoolExecutor(RUNS_SHOWN) as pool:
        has_report = list(pool.map(lambda r: output.exists(report_path(r["run_id"])), history))
    history = [{**r, "linked": linked} for r, linked in zip(history, has_report, strict=True)]
    report = RunReport(record, headline, mood, config, history, build_trends(history))
    report.stages = measure_stages(record)
    report.bottleneck = describe_bottleneck(record, report.stages)
    if record.get("planned") == 0:
        return report
    report.reasons = count_reasons(output, list_new_parts(output, before, "rejects"), run_id)
    task = TASKS[record.get("task") or read_run_config(output, record).task]
    columns = [name for name, kind in task.columns.items() if kind in (float, int)]
    rows = read_run_rows(output, list_new_parts(output, before, "results"), run_id, [*GEOMETRY, *columns])
    if not len(rows):
        return report
    report.column = task.worst[1] if task.worst and np.isfinite(rows.columns[task.worst[1]]).any() else None
    report.histograms = build_histograms(rows, columns)
    report.groups = choose_images(rows, task.worst if report.column else None, name_column(report.column or ""))
    for group in report.groups:
        group.crops |= task.report_crops
    from imagemill.pipeline.reports.pictures import add_pictures

    image = json.loads(record.get("parameters") or "{}").get("image", {})
    fitting = ImageConfig(**{key: image[key] for key in ("resize", "crop") if key in image})
    add_pictures(output, report.groups, report.column, columns, task.stores_latent, fitting, open_sources)
    if task.stores_latent:
        report.projection = project_run_latents(output, rows, report.column)
    return report


def describe_end(record: dict[str, Any]) -> tuple[str, str]:
    """Return how a run ended in a few words, and whether that is good, warn or bad."""
    code, planned = record.get("exit_code"), record.get("planned")
    if code is None:
        return "killed or still running", "bad"
    if code == 0 and planned == 0:
        return ("nothing new: check the input location", "warn") if "doubt" in record else ("nothing new", "good")
    if code == 0:
        rejected = record.get("rejected")
        return (f"done, {rejected:,} rejected", "warn") if rejected else ("done", "good")
    words = {3: "too many rejects", 7: "stopped at the deadline", 130: "interrupted"}
    return words.get(code, "failed"), "warn" if code in (7, 130) else "bad"
