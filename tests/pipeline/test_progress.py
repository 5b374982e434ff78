"""Progress output."""

import logging
import sys

import pytest

from imagemill.pipeline.progress import clock, progress_bar, rate_text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.0, "0.0 images/s"), (0.02, "50.0 s per image"), (0.1, "0.1 images/s"), (1234.5, "1,234.5 images/s")],
)
def test_rate_text_shows_slow_rates_as_seconds(rate: float, text: str) -> None:
    assert rate_text(rate) == text


def test_clock_shows_hours() -> None:
    assert (clock(-1), clock(3_661.4)) == ("0:00:00", "1:01:01")


@pytest.mark.parametrize(("level", "is_shown"), [(logging.INFO, True), (logging.WARNING, False)])
def test_progress_bar_is_off_with_quiet(level: int, is_shown: bool, monkeypatch, caplog) -> None:
    """On a terminal, the bar follows the log level that -q sets."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    caplog.set_level(level, "imagemill")
    assert progress_bar().disable is not is_shown
