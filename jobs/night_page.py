"""The page of a night: its runs in their order, how each ended, and the way to the report of each."""

import logging
import os
import posixpath
import re
from datetime import datetime
from typing import Any
from urllib.parse import quote

from imagemill.pipeline.errors import ConfigError, Deadline
from imagemill.pipeline.output.file_record import FileRecord
from imagemill.pipeline.reports.page import render_page
from imagemill.pipeline.storage import Store, split_scheme
from imagemill.pipeline.store_failures import reason

log = logging.getLogger("imagemill.nightly")
EARLIER = 30
INDEX = "index.html"
COPIES = 2
"""Earlier pages of which it may be a copy: a night may have been cut off before it wrote it."""
NAME = re.compile(r"night-[0-9T-]+\.html")


def leave_page(place: Store, summary: dict[str, Any]) -> str | None:
    """Write the page of a night under its own name and as index.html, and say where; one that fails is a warning.

    An index.html that imagemill did not write stays, with a warning.

    Args: summary: as the notification gets it.
    """
    name = f"night-{datetime.fromisoformat(summary['began']):%Y-%m-%dT%H%M%S}.html"
    try:
        earlier = sorted(set(filter(NAME.fullmatch, place.names(""))) - {name}, reverse=True)[:EARLIER]
        page = render_page("night.html", values_of(place, summary) | {"earlier": earlier})
        paths = [name, INDEX] if is_own_index(place, earlier) else [name]
        with FileRecord(place) as written:
            written.announce(paths)
            for path in paths:
                written.write(path, page)
    except Exception as e:  # noqa: BLE001 - the night has done its work, whatever is wrong with its page
        log.warning("no page of this night in %s: %s", place.url, reason(e))
        return None
    return place.uri(name)


def is_own_index(place: Store, earlier: list[str]) -> bool:
    """Whether index.html may be replaced: what was written there, or a copy of an earlier night's page.

    Nights left no record of their pages once.
    """
    try:
        FileRecord(place).check([INDEX])
    except ConfigError as e:
        page = place.read(INDEX)
        if not any(page == place.read(name) for name in earlier[:COPIES]):
            log.warning("%s", e)
            return False
    return True


def values_of(place: Store, summary: dict[str, Any]) -> dict[str, object]:
    """What the page shows: runs that did or failed something, and those without an input."""
    runs = [{**run, "link": link(place, run["report"]) if run.get("report") else None} for run in summary["runs"]]
    tonight = max((run["day"] for run in runs if run["day"]), default=None)
    failed = sum(run["exit_code"] not in (0, Deadline.exit_code) for run in runs)
    ended = any(run["exit_code"] == Deadline.exit_code for run in runs)
    if failed:
        headline, mood = f"{failed} of {len(runs)} runs failed{', stopped at its deadline' if ended else ''}", "bad"
    elif ended:
        headline, mood = "stopped at its deadline", "warn"
    elif any("doubt" in run for run in runs):
        headline, mood = "is an input the wrong place?", "warn"
    elif not any(run.get("planned") for run in runs):
        headline, mood = "nothing new", "good"
    else:
        headline, mood = "done", "good"
    return {
        "began": datetime.fromisoformat(summary["began"]),
        "seconds": (datetime.fromisoformat(summary["ended"]) - datetime.fromisoformat(summary["began"])).total_seconds(),
        "code": summary["exit_code"],
        "headline": headline,
        "mood": mood,
        "runs": [run for run in runs if "found" in run or run["exit_code"]],
        "without_input": [run["job"] for run in runs if "found" not in run and not run["exit_code"]],
        "caught_up": [run for run in runs if run["day"] not in (None, tonight) and run.get("planned")],
        "totals": {key: sum(run.get(key, 0) for run in runs) for key in ("planned", "ok", "rejected", "done_before")},
    }


def link(place: Store, uri: str) -> str | None:
    """The way from a page in `place` to a file, where a browser can go it: the pages may be moved together."""
    scheme, path = split_scheme(uri)
    if scheme != place.scheme:
        return None
    if place.local:
        return quote(os.path.relpath(path, place.root))
    if path.split("/")[0] != place.root.split("/")[0]:
        return None
    return quote(posixpath.relpath(path, place.root))
