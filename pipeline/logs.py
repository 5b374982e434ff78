"""Log output: lines for people or, with IMAGEMILL_LOG=json, JSON objects that name the run and the image."""

import logging
import os
import sys
from collections.abc import Callable
from logging.handlers import QueueHandler
from queue import SimpleQueue
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
    log_to(handler)


def log_to(handler: logging.Handler) -> None:
    """Replace the handlers of this process."""
    handler.addFilter(RunName())
    logging.basicConfig(force=True, handlers=[handler])
    logging.getLogger("imagemill").setLevel(logging.INFO)


def configure_worker(run_id: str) -> None:
    """Set up the log of a worker of Ray, which collects the stderr of workers in the logs of their nodes."""
    RunName.run_id = run_id
    if as_json():
        configure(sys.stderr)


class RecordSender(QueueHandler):
    """Sends log records to another process.

    Args:
        send: sends a record whose message is formatted, because its arguments may not be picklable.
    """

    def __init__(self, send: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(SimpleQueue())
        self.setFormatter(logging.Formatter("%(message)s"))
        self.send = send

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record."""
        self.send(record)


def forward_records(run_id: str, send: Callable[[logging.LogRecord], None]) -> None:
    """Set up the log of a local worker: with IMAGEMILL_LOG=json, send its records to the driver."""
    RunName.run_id = run_id
    if as_json():
        log_to(RecordSender(send))


def handle_record(record: logging.LogRecord) -> None:
    """Log a record of a worker in this process."""
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
