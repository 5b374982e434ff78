"""The page about a night: its runs in order, how each ended, and a link to the report of each."""

import logging
import os
import posixpath
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from imagemill.jobs.night_summary import commonest_reasons, ending
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.file_record import FileRecord
from imagemill.pipeline.reports.page import render_page
from imagemill.pipeline.storage import Store, split_scheme
from imagemill.pipeline.store_failures import reason

log = logging.getLogger("imagemill.nightly")
EARLIER_PAGES = 30
"""Number of earlier pages that a page links to."""
INDEX = "index.html"
COMPARED_PAGES = 2
"""Earlier pages of which index.html may be a copy. A night may have been killed before it replaced index.html."""
PAGE_NAME = re.compile(r"night-[0-9T-]+\.html")


def write_night_page(place: Store, summary: dict[str, Any], failures: Sequence[str] = ()) -> str | None:
    """Write the page of a night twice, under its own name and as index.html, and return its location.

    An index.html that imagemill did not write stays, with a warning. A page that cannot be written is a warning, too.

    Args:
        place: folder or prefix of the pages.
        summary: `NightSummary.content()`; `report` is not used.
        failures: why the notification was not sent.

    Returns:
        The location of the page; None if it could not be written.
    """
    name = f"night-{datetime.fromisoformat(summary['began']):%Y-%m-%dT%H%M%S}.html"
    try:
        earlier = sorted(set(filter(PAGE_NAME.fullmatch, place.names(""))) - {name}, reverse=True)[:EARLIER_PAGES]
        page = render_page(
            "night.html",
            page_values(place, summary) | {"earlier": earlier, "failures": [*summary.get("problems", ()), *failures]},
        )
        paths = [name, INDEX] if may_replace_index(place, earlier) else [name]
        with FileRecord(place) as record:
            record.announce(paths)
            for path in paths:
                record.write(path, page)
    except Exception as e:  # noqa: BLE001 - the runs of the night are done; no error of the page may fail it
        log.warning("report %s: the page of this night was not written: %s", place.url, reason(e))
        return None
    return place.uri(name)


def may_replace_index(place: Store, earlier: list[str]) -> bool:
    """Return whether index.html is absent, a recorded file, or a copy of an earlier page.

    The comparison is needed because early versions of imagemill did not record the pages that they wrote.
    """
    try:
        FileRecord(place).check([INDEX])
    except ConfigError as e:
        page = place.read(INDEX)
        if not any(page == place.read(name) for name in earlier[:COMPARED_PAGES]):
            log.warning("%s", e)
            return False
    return True


def page_values(place: Store, summary: dict[str, Any]) -> dict[str, object]:
    """Return the values of the template night.html."""
    runs = [{**run, "link": relative_link(place, run["report"]) if run.get("report") else None} for run in summary["runs"]]
    tonight = max((run["day"] for run in runs if run["day"]), default=None)
    headline, mood = ending(runs)
    began, ended = (datetime.fromisoformat(summary[key]) for key in ("began", "ended"))
    return {
        "began": began,
        "seconds": (ended - began).total_seconds(),
        "code": summary["exit_code"],
        "headline": headline,
        "reasons": commonest_reasons(runs),
        "mood": mood,
        "runs": [run for run in runs if "found" in run or run["exit_code"]],
        "without_input": [run["job"] for run in runs if "found" not in run and not run["exit_code"]],
        "caught_up": [run for run in runs if run["day"] not in (None, tonight) and run.get("planned")],
        "totals": {key: sum(run.get(key, 0) for run in runs) for key in ("planned", "ok", "rejected", "done_before")},
    }


def relative_link(place: Store, uri: str) -> str | None:
    """Return the relative link from a page in `place` to a file, so that both may be moved together.

    Returns:
        None if a browser cannot follow such a link: the file is in another kind of store or another bucket.
    """
    scheme, path = split_scheme(uri)
    if scheme != place.scheme:
        return None
    if place.local:
        return quote(os.path.relpath(path, place.root))
    if path.split("/")[0] != place.root.split("/")[0]:
        return None
    return quote(posixpath.relpath(path, place.root))
