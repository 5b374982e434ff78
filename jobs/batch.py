"""The batch job and its plan, as a person sees them."""

import logging
from collections import Counter
from typing import Any

from rich.table import Table

from imagemill.jobs.console import console, number
from imagemill.pipeline.cluster.connection import address_of, connected
from imagemill.pipeline.cluster.nodes import nodes_without_cuda
from imagemill.pipeline.cluster.pool import WITHOUT_CUDA, free_of, free_resources, nodes_with_room, pool_for, room_for
from imagemill.pipeline.cluster.progress import ON_CPU
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import Interrupted
from imagemill.pipeline.output.run_history import read_last_records
from imagemill.pipeline.progress import clock
from imagemill.pipeline.resolve import check_ends, check_model, plan_of, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.sources.folder import OTHER_KIND
from imagemill.pipeline.sources.system_files import EXCLUDED
from imagemill.pipeline.storage import Store

log = logging.getLogger("imagemill.run")
SHOWN_KINDS = 5
SHARES_ALIKE = 0.05
"""To measure so much more of a run makes it a fifth slower: measuring takes four times what the rest does."""


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


def other_files(kinds: Counter[str]) -> str:
    """315 other files (txt 300, md 12, excluded 3)."""
    excluded = kinds[EXCLUDED]
    shown = Counter({kind: count for kind, count in kinds.items() if kind not in (OTHER_KIND, EXCLUDED)}).most_common(
        SHOWN_KINDS
    )
    rest = kinds.total() - excluded - sum(count for _, count in shown)
    counts = ", ".join(f"{kind} {count:,}" for kind, count in [*shown, (OTHER_KIND, rest), (EXCLUDED, excluded)] if count)
    return number(kinds.total(), "other file") + (f" ({counts})" if counts else "")


def time_of(todo: int, config: RunConfig, output: Store) -> str:
    """How long a run over so many images takes, by the newest run that did any, and how far the two compare."""
    if not todo:
        return "nothing to do"
    records = [record for record in read_last_records(output) if record.get("images_per_s")]
    if not records:
        return "unknown: no run before this"
    rate, measured, now = records[-1]["images_per_s"], records[-1].get("measured_share"), config.measured_share(todo)
    text = f"about {clock(todo / rate)} at the last run's {rate:.1f} images/s"
    if measured is None or abs(measured - now) < SHARES_ALIKE:
        return text
    less = "less" if now < measured else "more"
    return f"{text}, the quality of {measured:.0%} of them measured; this one measures {now:.0%} and takes {less}"


def show_plan(config: RunConfig, as_json: bool = False) -> None:
    """Print what a run would do, on a cluster also with which actors. Raises: ConfigError, also when they have no room."""
    job = resolve(config)
    check_model(job)
    check_ends(job)
    plan = plan_of(job)
    if plan.new_input:
        log.warning("a run would refuse this plan: %s", plan.new_input)
    todo = len(plan.todo)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("task", f"{job.task.name} with {job.card.name} ({job.card.sha256[:12]})")
    table.add_row("found", f"{number(plan.found, 'image')}, {other_files(plan.ignored)}")
    table.add_row("done already", f"{plan.done:,}")
    table.add_row("rejects waiting", f"{plan.rejects_waiting:,}")
    table.add_row("to do", f"{number(todo, 'image')}, {plan.bytes_todo / 1e6:,.1f} MB")
    table.add_row("time", time_of(todo, config, job.output))
    # Alone a run takes what the machine has; of a cluster nobody knows that by heart.
    if todo and address_of(config.address):
        with connected(config.address):
            nodes, free = nodes_with_room(config.pool), free_resources()
            pool = pool_for(config.pool, nodes).no_more_than(todo)
            table.add_row("cluster", pool.on(nodes))
            begin = min(pool.workers, room_for(pool, free))
            table.add_row("free now", f"{free_of(pool, free, nodes)}: {begin} of {pool.workers} workers can start")
            if pool.num_gpus and (blind := nodes_without_cuda()):
                log.warning("%s (%s): %s", WITHOUT_CUDA, ", ".join(blind), ON_CPU)
    console.print(table)
