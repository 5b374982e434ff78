"""Reading what lies in an OUTPUT: status, verify."""

from typing import Any

from rich.table import Table

from imagemill.jobs.console import console, number
from imagemill.pipeline.errors import ConfigError, StorageError, VerificationError
from imagemill.pipeline.output.committed import run_ids, run_records
from imagemill.pipeline.output.exports import MANIFEST, UNFINISHED
from imagemill.pipeline.output.lease import BEAT_SECONDS, LIFETIME_SECONDS, holder_of, living_holder, newest_fence
from imagemill.pipeline.output.rejects import waiting_rejects
from imagemill.pipeline.output.snapshot import snapshot
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason

FOLDERS = ("runs", "results", "rejects")
"""Of an OUTPUT: one of them at least is there."""
WATCH_SECONDS = 1.5 * BEAT_SECONDS
"""How long `status` watches a holder on another machine, whose clock says nothing here."""


def check_exists(output: Store, or_export: bool = False) -> None:
    """Raises: StorageError when no OUTPUT is there; ConfigError for an export, where the command does not read one."""
    try:
        # An export has the folder of a lease as an OUTPUT has.
        if output.exists(MANIFEST) or output.exists(UNFINISHED):
            if or_export:
                return
            raise ConfigError(f"{output.url} is an export; give the OUTPUT it was made of")
        if any(output.exists(folder) for folder in FOLDERS):
            return
        there = output.exists()
    except STORE_FAILURES as e:
        raise StorageError(f"{output.url}: {reason(e)}") from None
    held = "holds no output of imagemill: no results/, rejects/ or runs/" if there else "does not exist"
    raise StorageError(f"{output.url} {held}")


def rows_of(output: Store, columns: list[str]) -> dict[str, dict[str, Any]]:
    """The newest row of each image of an OUTPUT, with its output_uri and these columns, by its source's relative path."""
    rows = (row for table in snapshot(output).tables(["rel_path", "output_uri", *columns]) for row in table.to_pylist())
    return {row["rel_path"]: row for row in rows}


def show_status(output: Store) -> None:
    check_exists(output)
    seen, transient = snapshot(output), waiting_rejects(output, ["transient"])["transient"].to_pylist()
    kinds = {"for --retry-failed": transient.count(False), "for the next run": transient.count(True)}
    waiting = ", ".join(f"{count:,} {what}" for what, count in kinds.items() if count)
    console.print(
        f"{number(len(seen), 'image')} in {number(seen.rows, 'row')} of {number(len(seen.parts), 'part')}; "
        + (f"rejects that wait: {waiting} (imagemill failures lists them)" if waiting else "no rejects")
    )
    if seen.waiting:
        console.print(waits(seen.waiting))
    table = Table("planned", "ok", "rejected", "images/s", "exit", "run", box=None)
    ids = run_ids(output)[-10:]
    # Between the two: what began is known before it is asked who is at work, and what ended leaves its record first.
    fence = newest_fence(output)
    holder = holder_of(output, fence)
    records = {record["run_id"]: record for record in run_records(output, ids)}
    for run_id in ids:
        # Names do not say which began last: one that was submitted earlier may have waited, and clocks differ.
        record = records.get(run_id, {"exit_reason": "killed, or at work" if holder else "killed"})
        counts = [str(record.get(key, "")) for key in ("planned", "ok", "rejected", "images_per_s", "exit_reason")]
        table.add_row(*counts, run_id)
    console.print(table)
    if holder and holder.silent is None:
        console.print(f"{holder.who} did not release this output: watching it for up to {WATCH_SECONDS:.0f} s")
        if not (holder := living_holder(output, fence, WATCH_SECONDS, holder)):
            silence = f"no sign of life in {WATCH_SECONDS:.0f} s"
            console.print(f"{silence}; the next run takes over after {LIFETIME_SECONDS:.0f} s of silence")
    if holder:
        console.print(f"at work: {holder.who}, last sign of life {holder.silent or 0:.0f} s ago")


def waits(images: int) -> str:
    return f"{images:,} images more wait for the next run: one that was cut off may have overwritten their files"


def show_verified(output: Store) -> None:
    """Raises: VerificationError when something is wrong."""
    check_exists(output)
    seen = verify(output)
    verdict = number(len(seen.problems), "problem") if seen.problems else "all well"
    counts = {"image": seen.images, "row": seen.rows, "reject row": seen.rejects, "file": seen.files}
    listed = ", ".join(number(count, noun) for noun, count in counts.items())
    console.print(f"{listed} and {number(seen.latents, 'latent')} checked: {verdict}")
    if seen.waiting:
        console.print(waits(seen.waiting))
    for problem in seen.problems[:100]:
        console.print(f"  {problem}")
    if seen.problems:
        raise VerificationError(f"{output.url}: {verdict}")
