"""Show what an output holds, how its last runs ended, and whether a run holds its lease."""

from dataclasses import dataclass
from typing import Any

from imagemill.jobs.console import number, one_line, print_json, print_table, print_text
from imagemill.jobs.outputs import check_output
from imagemill.pipeline.output.lease import (
    BEAT_SECONDS,
    LIFETIME_SECONDS,
    Holder,
    find_living_holder,
    newest_fencing_token,
    read_holder,
)
from imagemill.pipeline.output.prefixes import read_prefixes
from imagemill.pipeline.output.rejects import read_waiting_rejects
from imagemill.pipeline.output.run_history import list_run_ids, read_run_records
from imagemill.pipeline.output.snapshot import read_snapshot
from imagemill.pipeline.storage import Store

WATCH_SECONDS = 1.5 * BEAT_SECONDS
"""How long `status` watches for a heartbeat from another machine, because clocks of two machines do not compare."""
RUNS_SHOWN = 10
RUN_KEYS = ("planned", "ok", "rejected", "images_per_s", "exit_code", "exit_reason")


@dataclass(frozen=True)
class Status:
    """The state of an output; `content` has the documented keys of `imagemill status --json`, without `lease`."""

    content: dict[str, Any]
    fencing_token: int
    holder: Holder | None
    """The run that has claimed the output and not released it, dead or alive."""


def show_status(output: Store, as_json: bool = False) -> None:
    """Print the status of an output, as text or as one JSON object.

    The JSON keys are `output`, `images`, `rows`, `parts`, `images_pending`, `rejects_permanent`, `rejects_transient`,
    `prefixes` (each with the location of its input), `runs` (the last ten, oldest first, each with `run_id` and RUN_KEYS as
    in run.json) and `lease` (null, or `holder`, `is_alive`, `heartbeat_age_s`).

    Raises:
        StorageError: when the output does not exist or cannot be read.
        ConfigError: when the location holds an export.
    """
    status = read_status(output)
    if not as_json:
        print_status(status.content)
    holder = status.holder
    is_remote = holder is not None and holder.silent_seconds is None
    if holder and is_remote and not as_json:
        print_text(f"lease: {holder.description} did not release it. Watching for a heartbeat, up to {WATCH_SECONDS:.0f} s")
    living = find_living_holder(output, status.fencing_token, WATCH_SECONDS, holder)
    if as_json:
        print_json({**status.content, "lease": describe_lease(holder, living)})
    elif living:
        print_text(f"running: {living.description}, last heartbeat {living.silent_seconds or 0:.0f} s ago")
    elif is_remote:
        takeover = f"The next run takes over after {LIFETIME_SECONDS:.0f} s without one"
        print_text(f"lease: no heartbeat in {WATCH_SECONDS:.0f} s. {takeover}")


def read_status(output: Store) -> Status:
    """Read the status of an output. Raises the errors of `show_status`."""
    check_output(output)
    state, transient = read_snapshot(output), read_waiting_rejects(output, ["transient"])["transient"].to_pylist()
    ids = list_run_ids(output)[-RUNS_SHOWN:]
    # The lease is read after the names of the runs and before their records: a run that is listed has claimed the lease by
    # then, and a run that ends writes its record before it releases the lease.
    fencing_token = newest_fencing_token(output)
    holder = read_holder(output, fencing_token)
    records = {record["run_id"]: record for record in read_run_records(output, ids)}
    # Names do not tell which run began last: clocks differ, and a submitted run may have waited.
    no_record = {"exit_reason": "killed or running" if holder else "killed"}
    runs = [{"run_id": name} | {key: records.get(name, no_record).get(key) for key in RUN_KEYS} for name in ids]
    content = {
        "output": output.url,
        "images": len(state),
        "rows": state.rows,
        "parts": len(state.parts),
        "images_pending": state.waiting,
        "rejects_permanent": transient.count(False),
        "rejects_transient": transient.count(True),
        "prefixes": read_prefixes(output),
        "runs": runs,
    }
    return Status(content, fencing_token, holder)


def describe_lease(holder: Holder | None, living: Holder | None) -> dict[str, Any] | None:
    """Return the JSON of a lease: who holds it, and whether a heartbeat shows that the holder is alive."""
    if not (shown := living or holder):
        return None
    age = round(living.silent_seconds or 0, 1) if living else None
    return {"holder": shown.description, "is_alive": living is not None, "heartbeat_age_s": age}


def print_status(content: dict[str, Any]) -> None:
    """Print the counts of an output and the table of its last runs."""
    images, rows, parts = (number(content[f"{noun}s"], noun) for noun in ("image", "row", "part"))
    print_text(f"{images} in {rows} of {parts}")
    permanent, transient = content["rejects_permanent"], content["rejects_transient"]
    counts = {
        "permanent (processed again with --retry-failed)": permanent,
        "transient (processed again by the next run)": transient,
    }
    rejects = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
    print_text(f"rejects: {rejects}. List them with: imagemill failures" if rejects else "rejects: none")
    print_pending(content["images_pending"])
    if content["prefixes"]:
        print_table(["prefix", "input"], [[one_line(text) for text in pair] for pair in content["prefixes"].items()])
    table = []
    for run in content["runs"]:
        rate = run["images_per_s"]
        figures = [str(run[key]) if run[key] is not None else "" for key in ("planned", "ok", "rejected")]
        table.append([run["run_id"], *figures, f"{rate:.1f}" if rate else "", run["exit_reason"] or ""])
    print_table(["run", "planned", "ok", "rejected", "images/s", "exit"], table)


def print_pending(images: int) -> None:
    """Say how many images the next run processes again because an interrupted run may have overwritten their files."""
    if images:
        print_text(f"pending: {number(images, 'image')}. An interrupted run may have overwritten their files; run it again")
