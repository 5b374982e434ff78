"""Charts of the benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from figures import Run, Spread, Summary, number

HIGHLIGHT, OTHERS, LIMIT = "#d1495b", "#8d99ae", "#2b2d42"


def bars(axes: plt.Axes, title: str, summaries: Sequence[Summary], titles: Mapping[str, str], limit: Spread | None) -> None:
    """Draw images per second inside the run, with the spread over rounds."""
    measured = [one for one in reversed(summaries) if one.rate]
    rates = [one.rate.median for one in measured]
    spreads = [[r - one.rate.least for r, one in zip(rates, measured, strict=True)]]
    spreads.append([one.rate.most - r for r, one in zip(rates, measured, strict=True)])
    colours = [HIGHLIGHT if one.peer == "imagemill" else OTHERS for one in measured]
    axes.barh([titles[one.peer] for one in measured], rates, xerr=spreads, color=colours, error_kw={"capsize": 3, "lw": 1})
    for place, rate in enumerate(rates):
        axes.annotate(f" {number(rate)}", (0, place), va="center", color="white", fontsize=9, fontweight="bold")
    if limit:
        axes.axvline(limit.median, color=LIMIT, ls="--", lw=1.2)
        axes.annotate("limit", (limit.median, len(measured) - 0.45), ha="right", va="bottom", color=LIMIT, fontsize=9)
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel("images/s, first to last image")


def whole(axes: plt.Axes, runs: Sequence[Run], titles: Mapping[str, str]) -> None:
    """Draw the wall time of whole processes over the number of images."""
    # All colours but red, which marks Imagemill.
    others = iter(colour for n, colour in enumerate(plt.get_cmap("tab10").colors) if n != 3)
    for peer, title in titles.items():
        walls: dict[int, list[float]] = {}
        for run in runs:
            if run.peer == peer and run.fine:
                walls.setdefault(run.images, []).append(run.wall_s)
        if not walls:
            continue
        counts = sorted(walls)
        middle = [sorted(walls[count])[len(walls[count]) // 2] for count in counts]
        colour, width = (HIGHLIGHT, 2.5) if peer == "imagemill" else (next(others), 1.3)
        axes.plot(counts, middle, "o-", label=title, color=colour, lw=width, ms=4)
    axes.set_xlabel("images")
    axes.set_ylabel("seconds, whole process")
    axes.set_ylim(bottom=0)
    axes.set_title("latents: whole processes", fontsize=11, loc="left")
    if axes.has_data():
        axes.legend(fontsize=8, frameon=False)


def draw(
    path: Path,
    runs: Sequence[Run],
    by_workload: Mapping[str, Sequence[Summary]],
    limits: Mapping[str, Spread | None],
    workloads: Mapping[str, str],
    titles: Mapping[str, str],
    note: str,
) -> None:
    """Draw one panel of rates per workload, and one of whole processes."""
    count = len(by_workload) + 1
    rows = -(-count // 2)
    figure, grid = plt.subplots(rows, 2, figsize=(13, 3.6 * rows), squeeze=False, facecolor="white")
    panels = iter(grid.flat)
    for workload, summaries in by_workload.items():
        bars(next(panels), f"{workload}: {workloads[workload]}", summaries, titles, limits.get(workload))
    whole(next(panels), [run for run in runs if run.workload == "latents"], titles)
    for empty in panels:
        empty.set_visible(False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.01, 0.005, note, fontsize=8, color="#555555")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
