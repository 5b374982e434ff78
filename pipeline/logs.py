"""Log output: lines for people or, with IMAGEMILL_LOG=json, JSON objects that name the run and the image."""

import logging
import os
import sys
from typing import TextIO

from pythonjsonlogger.json import JsonFormatter

from imagemill.pipeline.errors import ConfigError

VARIABLE = "IMAGEMILL_LOG"
FORMATS = ("text", "json")


class RunName(logging.Filter):
    """Adds the run of this process to log records that do not name a run."""

    run_id: str | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Set `run_id` of a record; never drops a record."""
        if self.run_id and not hasattr(record, "run_id"):
            record.run_id = self.run_id
        return True


def as_json() -> bool:
    """Return whether IMAGEMILL_LOG asks for JSON."""
    return os.environ.get(VARIABLE) == "json"


def configure(stream: TextIO) -> None:
    """Log to a stream in the format of IMAGEMILL_LOG.

    Raises:
        ConfigError: when IMAGEMILL_LOG is neither text nor json.
    """
    if (log_format := os.environ.get(VARIABLE) or "text") not in FORMATS:
        raise ConfigError(f"{VARIABLE}={log_format!r}: unknown. Valid: {', '.join(FORMATS)}")
    handler = logging.StreamHandler(stream)
    if as_json():
        names = {"levelname": "level", "name": "logger"}
        fields = "%(levelname)s %(name)s %(message)s"
        handler.setFormatter(JsonFormatter(fields, rename_fields=names, timestamp="time", json_ensure_ascii=False))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(RunName())
    logging.basicConfig(force=True, handlers=[handler])
    logging.getLogger("imagemill").setLevel(logging.INFO)


def configure_worker(run_id: str) -> None:
    """Set up the log of a worker. Ray collects the stderr of workers in the logs of their nodes."""
    RunName.run_id = run_id
    if as_json():
        configure(sys.stderr)
