"""The batch job, as a person sees it."""

import logging
from collections import Counter
from typing import Any

from rich.table import Table

from imagemill.jobs.console import console, number
from imagemill.jobs.plan import other_files
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import Interrupted
from imagemill.pipeline.run import run

log = logging.getLogger("imagemill.run")


def run_and_show(config: RunConfig, run_id: str | None = None) -> None:
    """Run, and print the table of what happened.

    A signal that comes when all images are done, while the report is made, leaves the run what it is: done.
    """
    record: dict[str, Any] = {}
    try:
        run(config, record, run_id)
    except Interrupted:
        if record.get("exit_code") != 0:
            raise
        report = "" if record["report"] else f"; imagemill report {record['output']} makes the report"
        log.warning("interrupted when all images were done%s", report)
    show_record(record)


def show_record(record: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    planned, seconds = record["planned"], record["seconds"]["total"]
    table.add_row("found", f"{number(record['found'], 'image')}, {other_files(Counter(record['ignored_by_kind']))}")
    table.add_row("done before", f"{record['done_before']:,}")
    table.add_row("planned", f"{planned:,}")
    damaged = record.get("damaged")
    table.add_row("ok", f"{record['ok']:,}" + (f" ({damaged:,} of them damaged in part)" if damaged else ""))
    if left_out := record.get("frames_left_out"):
        table.add_row("left out", f"{number(left_out, 'frame')} beyond the first of their files (column frames)")
    why = ", ".join(f"{name} {count}" for name, count in record["reasons"].items())
    table.add_row("rejected", f"{record['rejected']:,}" + (f" ({why})" if why else ""))
    if record["rejects_waiting"]:
        table.add_row("rejects waiting", f"{record['rejects_waiting']:,} (--retry-failed processes them again)")
    for name, value in record["quality"].items():
        table.add_row(name.replace("_", " "), f"{value:.3f}")
    rate = f", {record['images_per_s']:.1f} images/s once started" if record.get("images_per_s") else ""
    table.add_row("time", f"{seconds:.1f} s{rate}")
    table.add_row("output", record["output"])
    table.add_row("record", f"{record['output']}/runs/{record['run_id']}/run.json")
    if record["report"]:
        table.add_row("report", f"{record['output']}/{record['report']}")
    console.print(table)
