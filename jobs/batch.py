"""Run a batch job and print its result."""

import logging
from collections import Counter
from time import monotonic
from typing import Any

from imagemill.jobs.console import number, print_facts
from imagemill.jobs.plan import other_files
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import Interrupted
from imagemill.pipeline.progress import rate_text
from imagemill.pipeline.run import run
from imagemill.pipeline.run_record import RunRecord

log = logging.getLogger("imagemill.run")


def run_and_show(config: RunConfig, run_id: str | None = None) -> None:
    """Run a job and print what it did.

    A signal that arrives while the report is written, after all images are processed, does not fail the run.

    Raises:
        Failure: as `run` raises it.
        CheckpointError: if the checkpoint cannot be used.
        Interrupted: if a signal arrived before all images were processed.
    """
    record = RunRecord()
    began = monotonic()
    try:
        run(config, record, run_id)
    except Interrupted:
        if record.exit_code != 0:
            raise
        advice = "" if record.report else f". To write the report, run: imagemill report {record.output}"
        log.warning("interrupted after all images were processed%s", advice)
    print_facts(record_facts(record.content(), monotonic() - began))


def record_facts(record: dict[str, Any], seconds: float) -> list[tuple[str, str]]:
    """Describe a finished run in lines of a name and a value.

    Args:
        record: the content of run.json.
        seconds: time of the run and of its report. The time in run.json, which is written before the report, is shorter.
    """
    ok, rejected, waiting = f"{record['ok']:,}", f"{record['rejected']:,}", f"{record['rejects_waiting']:,}"
    facts = [
        ("found", f"{number(record['found'], 'image')}, {other_files(Counter(record['ignored_by_kind']))}"),
        ("done before", f"{record['done_before']:,}"),
        ("planned", f"{record['planned']:,}"),
        ("ok", f"{ok} ({record['damaged']:,} of them damaged)" if record.get("damaged") else ok),
    ]
    if frames := record.get("frames_left_out"):
        facts.append(("left out", f"{number(frames, 'frame')} after the first of their files (column frames)"))
    reasons = ", ".join(f"{name} {count}" for name, count in record["reasons"].items())
    facts.append(("rejected", f"{rejected} ({reasons})" if reasons else rejected))
    if record["rejects_waiting"]:
        facts.append(("rejects waiting", f"{waiting} (--retry-failed processes them again)"))
    facts += [(name.replace("_", " "), f"{value:.3f}") for name, value in record["quality"].items()]
    rate = record.get("images_per_s")
    time = f"{seconds:.1f} s"
    facts += [
        ("time", f"{time}, {rate_text(rate)} once started" if rate else time),
        ("output", record["output"]),
        ("record", f"{record['output']}/runs/{record['run_id']}/run.json"),
    ]
    if "report" in record:
        facts.append(("report", f"{record['output']}/{record['report']}"))
    return facts
