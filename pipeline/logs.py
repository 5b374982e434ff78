"""What is logged: lines for people or, when asked for, JSON objects that name the run and the image they are about."""

import logging
import os
import sys
from typing import TextIO

from pythonjsonlogger.json import JsonFormatter

from imagemill.pipeline.errors import ConfigError

VARIABLE = "IMAGEMILL_LOG"
FORMATS = ("text", "json")


class RunName(logging.Filter):
    """Adds the run that a process is at, to what does not say another one itself."""

    run_id: str | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if self.run_id and not hasattr(record, "run_id"):
            record.run_id = self.run_id
        return True


def as_json() -> bool:
    return os.environ.get(VARIABLE) == "json"


def configure(stream: TextIO) -> None:
    """Log to a stream as IMAGEMILL_LOG says. Raises: ConfigError when it is neither text nor json."""
    if (wanted := os.environ.get(VARIABLE) or "text") not in FORMATS:
        raise ConfigError(f"{VARIABLE} = {wanted!r}; valid: {', '.join(FORMATS)}")
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
    """In an actor, whose stderr Ray keeps among the logs of its node."""
    RunName.run_id = run_id
    if as_json():
        configure(sys.stderr)
