"""The record of a run: the content of its run.json."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from imagemill.pipeline.schema import LINEAGE

RUN_LINEAGE = [name for name, _ in LINEAGE if name != "encoded_at"]
"""The lineage columns that are the same for all rows of a run."""


@dataclass
class RunRecord:
    """The facts of a run, filled in as the run progresses, so that a caller can inspect a failed run.

    Each field is a key of run.json, an interface for other programs: keys are added, never changed. A field that is None
    or, in `seconds`, empty is absent from run.json, because the run ended before its value was known.
    """

    run_id: str | None = None
    task: str | None = None
    model_id: str | None = None
    checkpoint_sha256: str | None = None
    code_sha256: str | None = None
    """Digest of the folder of user code that was shipped to the workers; absent without one."""
    config_sha256: str | None = None
    parameters: str | None = None
    """JSON of the parameters that change pixels or codes."""
    input: str | None = None
    prefix: str | None = None
    """Name in front of the names of all images of the input; absent without one."""
    output: str | None = None
    engine: str | None = None
    """local or ray."""
    engine_reason: str | None = None
    """Why the run uses this engine."""
    started_at: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage of the run → its duration in seconds."""
    versions: dict[str, str] | None = None
    """Package → its version."""
    fence: int | None = None
    """The fencing token of the run; run.json and the Parquet columns call it `fence`."""
    found: int | None = None
    """Images of the input."""
    ignored: int | None = None
    """Files that are not images."""
    done_before: int | None = None
    """Images of the input that earlier runs committed and that have not changed since."""
    ignored_by_kind: dict[str, int] | None = None
    """Kind of file → number of files that are not images."""
    rejects_waiting: int | None = None
    """Rejects that only `--retry-failed` processes again."""
    planned: int | None = None
    """Images that the run was to process."""
    doubt: str | None = None
    """Why the input may be the wrong one; absent without such a warning."""
    moved_from: dict[str, int] | None = None
    """Former place of images → their number; absent if no image moved."""
    pool: dict[str, float] | None = None
    """The workers of the run (Pool.record)."""
    measured_share: float | None = None
    """Share of images whose quality was measured; absent for tasks that always measure."""
    images_per_s: float | None = None
    peak_rss_mb: dict[str, int] | None = None
    stage_seconds: dict[str, float] | None = None
    """Stage of an image → seconds of all threads of all workers."""
    devices: list[str] | None = None
    bytes_in: int | None = None
    """Bytes of encoded images that the workers read."""
    bytes_out: int | None = None
    """Bytes of images and parts that the workers wrote."""
    ok: int | None = None
    rejected: int | None = None
    reasons: dict[str, int] | None = None
    """Error class → number of rejects."""
    doubles_dropped: int | None = None
    """Duplicate rows that were removed."""
    parquet_bytes: int | None = None
    frames_left_out: int | None = None
    """Frames and pages after the first one of each file; only the first one is processed."""
    damaged: int | None = None
    """Rows of partly damaged images, which `accept_damaged` accepted."""
    quality: dict[str, float] | None = None
    """Column → mean over the images of the run."""
    rows: int | None = None
    """Rows of the output after the run."""
    exit_reason: str | None = None
    exit_code: int | None = None
    ended_at: str | None = None
    notification: str | None = None
    """Why the notification of the night was not sent; absent for other runs."""
    report: str | None = None
    """Path of the report in the output. Not part of run.json, which is written first."""

    def content(self) -> dict[str, Any]:
        """Return the content of run.json: each field whose value is known."""
        values = {key.name: getattr(self, key.name) for key in fields(self)}
        return {name: value for name, value in values.items() if value is not None and (value or name != "seconds")}

    def to_json(self) -> bytes:
        """Return the text of run.json."""
        return json.dumps(self.content(), indent=2, ensure_ascii=False).encode()

    def lineage(self) -> dict[str, Any]:
        """Return the lineage columns that are the same for all rows of the run."""
        return {name: getattr(self, name) for name in RUN_LINEAGE}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Record the duration of a `with` block in `seconds`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = round(time.monotonic() - began, 3)
