"""Medians with their spread, slopes, ratios and the table of single runs."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

AT_IMAGES = 8_000
"""The number of small images at which whole processes are compared."""


@dataclass(frozen=True)
class Run:
    """One run of one peer over `images` images."""

    workload: str
    peer: str
    images: int
    round: int
    code: int
    wall_s: float
    cpu_s: float
    peak_pss_mb: float
    processes: int
    rate: float | None
    """Images per second, from the first finished image to the last."""
    deviation: float
    """Difference from float32 in the worst image of a sample: relative for latents, dB for images."""
    equal: bool
    missing: int
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage, if the peer counts them: wall time of its threads, including waiting."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of each step of the run, if the peer counts them."""

    @property
    def fine(self) -> bool:
        return self.code == 0 and not self.missing

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def number(value: float | None) -> str:
    """Format a number with at least three digits; an empty string for None."""
    if value is None:
        return ""
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of several runs."""

    median: float
    least: float
    most: float
    count: int

    def text(self) -> str:
        if self.count == 1:
            return number(self.median)
        return f"{number(self.median)} ({number(self.least)}–{number(self.most)})"


def spread_of(values: Sequence[float]) -> Spread:
    """Return the spread of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return the spread of the values that are not None, or None if there is none."""
    present = [value for value in values if value is not None]
    return spread_of(present) if present else None


@dataclass(frozen=True)
class Line:
    """seconds = fixed + each · images, through the medians at two numbers of images."""

    fixed: float
    each: float

    def at(self, images: int) -> float:
        return self.fixed + self.each * images


def line(points: Sequence[tuple[int, float]]) -> Line | None:
    """Return the line through the smallest and largest number of (images, seconds), or None if it cannot rise."""
    by_count: dict[int, list[float]] = {}
    for images, seconds in points:
        by_count.setdefault(images, []).append(seconds)
    few, many = min(by_count, default=0), max(by_count, default=0)
    if few == many:
        return None
    first, last = (statistics.median(by_count[count]) for count in (few, many))
    each = (last - first) / (many - few)
    return Line(first - each * few, each) if each > 0 else None


@dataclass(frozen=True)
class Summary:
    """The figures of a peer on a workload. All but `slope` and `cpu_slope` are for `images` images."""

    workload: str
    peer: str
    images: int
    wall: Spread
    rate: Spread | None
    slope: Line | None
    cpu_ms: Spread
    """CPU milliseconds per image, of the whole process."""
    cpu_slope: Line | None
    peak_pss_mb: Spread
    deviation: float
    equal: bool
    failed: int
    stage_ms: dict[str, float]

    def seconds_at(self, images: int) -> float | None:
        """Return the seconds of a whole process: measured for this number of images, or from the line."""
        return self.wall.median if images == self.images else self.slope.at(images) if self.slope else None


def main_count(runs: Sequence[Run]) -> int:
    """Return the number of images that most runs had; the larger one of two equally frequent numbers."""
    counts = [run.images for run in runs]
    return max(counts, key=lambda count: (counts.count(count), count))


def summary(runs: Sequence[Run]) -> Summary | None:
    """Summarise the runs of one peer on one workload; None if every run failed."""
    fine = [run for run in runs if run.fine]
    if not fine:
        return None
    images = main_count(fine)
    at = [run for run in fine if run.images == images]
    ms = 1000 / images
    return Summary(
        workload=fine[0].workload,
        peer=fine[0].peer,
        images=images,
        wall=spread_of([run.wall_s for run in at]),
        rate=spread(run.rate for run in at),
        slope=line([(run.images, run.wall_s) for run in fine]),
        cpu_ms=spread_of([run.cpu_s * ms for run in at]),
        cpu_slope=line([(run.images, run.cpu_s) for run in fine]),
        peak_pss_mb=spread_of([run.peak_pss_mb for run in at]),
        deviation=max(run.deviation for run in fine),
        equal=all(run.equal for run in fine),
        failed=len(runs) - len(fine),
        stage_ms={
            name: statistics.median(run.stages[name] for run in at if name in run.stages) * ms
            for name in sorted({name for run in at for name in run.stages})
        },
    )


def table(
    summaries: Sequence[Summary], titles: Mapping[str, str], limit: Spread | None, ours: Summary | None, unit: str
) -> list[str]:
    """Return the Markdown table of one workload; `limit` is in images per second."""
    rows = [
        f"| peer | images | whole process, s | images/s inside the run | by slope | ÷ limit | Imagemill ÷ it | CPU ms/image "
        f"| peak PSS, MB | off float32, {unit} |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in summaries:
        rate = one.rate.median if one.rate else None
        share = f"{rate / limit.median:.2f}" if rate and limit else ""
        ratio = f"{ours.rate.median / rate:.2f}" if ours and ours.rate and rate and one is not ours else ""
        cells = (
            titles[one.peer],
            f"{one.images:,}",
            one.wall.text(),
            one.rate.text() if one.rate else "",
            number(1 / one.slope.each if one.slope else None),
            share,
            ratio,
            one.cpu_ms.text(),
            one.peak_pss_mb.text(),
            f"{one.deviation:.2g}{'' if one.equal else ' (not equal)'}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    if limit:
        rows.append(f"| *limit* | | | {limit.text()} | | 1.00 | | | | |")
    return rows
