"""Execute a plan on an engine, and record its progress."""

import time

from imagemill.pipeline.engines.engine import Engine, Work
from imagemill.pipeline.etags import etags_of
from imagemill.pipeline.run_progress import RunProgress
from imagemill.pipeline.run_record import RunRecord
from imagemill.pipeline.tally import DEVICES, ETAGS, peak_rss_mb


def execute(engine: Engine, work: Work) -> None:
    """Process the images of a plan, and commit their rows.

    Args:
        engine: runs the workers.
        work: the plan; its record receives the pool, the rate and the memory of the run.

    Raises:
        Failure: for the reasons that `Engine` lists.
    """
    began, record = time.monotonic(), work.record
    with engine.connected(str(record.run_id), len(work.plan.todo)) as channel:
        record.seconds["start"] = round(time.monotonic() - began, 3)
        progress = RunProgress(work.resolved.task.name, str(record.run_id), len(work.plan.todo), channel)
        try:
            with record.timed("run"), progress:
                engine.run(work, progress)
        finally:
            record_progress(record, progress)
    work.lease.check_held()


def record_progress(record: RunRecord, progress: RunProgress) -> None:
    """Fill in the counts of the workers. Log their warnings about etags, because few people read the logs of workers."""
    counts = progress.counts
    for name in counts:
        if name.startswith(ETAGS):
            etags_of(name.removeprefix(ETAGS).removesuffix(":")).warn()
    record.seconds["first_image"] = round(progress.first_image_s, 3)
    record.images_per_s = round(progress.rate(), 2)
    record.peak_rss_mb = {
        "driver": peak_rss_mb(),
        "actor": int(counts["rss_mb"]),
        "idle_actor": int(counts["idle_mb"]),
    }
    record.stage_seconds = {
        name.removesuffix("_s"): round(seconds, 2) for name, seconds in sorted(counts.items()) if name.endswith("_s")
    }
    record.devices = [device for device in DEVICES if counts[f"on_{device}"]]
    record.bytes_in, record.bytes_out = int(counts["bytes_in"]), int(counts["bytes_out"])
