"""What an OUTPUT holds and how its last runs ended."""

from rich.table import Table

from imagemill.jobs.console import console, number
from imagemill.jobs.outputs import check_exists
from imagemill.pipeline.output.lease import BEAT_SECONDS, LIFETIME_SECONDS, find_living_holder, newest_fence, read_holder
from imagemill.pipeline.output.rejects import read_waiting_rejects
from imagemill.pipeline.output.run_history import list_run_ids, read_run_records
from imagemill.pipeline.output.snapshot import read_snapshot
from imagemill.pipeline.storage import Store

WATCH_SECONDS = 1.5 * BEAT_SECONDS
"""How long `status` watches a holder on another machine, whose clock says nothing here."""


def show_status(output: Store) -> None:
    check_exists(output)
    seen, transient = read_snapshot(output), read_waiting_rejects(output, ["transient"])["transient"].to_pylist()
    kinds = {"for --retry-failed": transient.count(False), "for the next run": transient.count(True)}
    waiting = ", ".join(f"{count:,} {what}" for what, count in kinds.items() if count)
    console.print(
        f"{number(len(seen), 'image')} in {number(seen.rows, 'row')} of {number(len(seen.parts), 'part')}; "
        + (f"rejects that wait: {waiting} (imagemill failures lists them)" if waiting else "no rejects")
    )
    if seen.waiting:
        console.print(waits(seen.waiting))
    table = Table("planned", "ok", "rejected", "images/s", "exit", "run", box=None)
    ids = list_run_ids(output)[-10:]
    # Between the two: what began is known before it is asked who is at work, and what ended leaves its record first.
    fence = newest_fence(output)
    holder = read_holder(output, fence)
    records = {record["run_id"]: record for record in read_run_records(output, ids)}
    for run_id in ids:
        # Names do not say which began last: one that was submitted earlier may have waited, and clocks differ.
        record = records.get(run_id, {"exit_reason": "killed, or at work" if holder else "killed"})
        counts = [str(record.get(key, "")) for key in ("planned", "ok", "rejected", "images_per_s", "exit_reason")]
        table.add_row(*counts, run_id)
    console.print(table)
    if holder and holder.silent_seconds is None:
        console.print(f"{holder.description} did not release this output: watching it for up to {WATCH_SECONDS:.0f} s")
        if not (holder := find_living_holder(output, fence, WATCH_SECONDS, holder)):
            silence = f"no sign of life in {WATCH_SECONDS:.0f} s"
            console.print(f"{silence}; the next run takes over after {LIFETIME_SECONDS:.0f} s of silence")
    if holder:
        console.print(f"at work: {holder.description}, last sign of life {holder.silent_seconds or 0:.0f} s ago")


def waits(images: int) -> str:
    return f"{images:,} images more wait for the next run: one that was cut off may have overwritten their files"
