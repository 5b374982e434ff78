"""Show statistics of the latents of runs, and how far runs drifted from each other."""

import logging
from typing import Any

import numpy as np

from imagemill.jobs.console import format_figure, number, print_json, print_table, print_text
from imagemill.jobs.drift import Moments, drift
from imagemill.jobs.outputs import check_output
from imagemill.models.checkpoint import replace_non_finite
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.latent_values import LatentCoders, check_latents, latent_batches
from imagemill.pipeline.output.parts import iterate_parts, list_parts
from imagemill.pipeline.output.snapshot import read_snapshot
from imagemill.pipeline.progress import with_progress
from imagemill.pipeline.storage import Store

log = logging.getLogger("imagemill.stats")
RUNS_SHOWN, CHANNELS_SHOWN = 10, 8


def list_runs_with_rows(output: Store, excluded: str | None = None) -> list[str]:
    """Return the runs that committed rows, oldest first, without the excluded run.

    Raises:
        ConfigError: when there is no such run.
        StorageError: when the output cannot be read.
    """
    parts = iterate_parts(output, list_parts(output, "results"), ["run_id"], ahead=64)
    runs = {str(name) for _, table in parts for name in table["run_id"].unique().to_pylist()} - {excluded}
    if not runs:
        raise ConfigError(f"{output.url}: holds no rows of {f'a run other than {excluded}' if excluded else 'any run'}")
    return sorted(runs)


def moments_of_run(output: Store, run: str) -> Moments:
    """Return the moments of all rows that a run committed, also of rows that a later run replaced.

    Damaged latents do not count; a warning says how many there are.

    Raises:
        ConfigError: when the run has no rows, or its rows have no latents.
    """
    state = read_snapshot(output, run)
    check_latents(state)
    moments = Moments()
    problems: list[str] = []
    coders = LatentCoders(output)
    batches = latent_batches(state, ["checkpoint_sha256", "step"], problems)
    for latents in with_progress("stats", batches, len(state), lambda latents: len(latents.rows)):
        models, steps = (latents.rows[name].to_pylist() for name in ("checkpoint_sha256", "step"))
        channels = latents.values.shape[1]
        widths = np.stack([coders.widths(*by, channels) for by in zip(models, steps, strict=True)])
        moments.add(latents.values, widths, set(models))
    if problems:
        log.warning("run %s: %s left out. Check with: imagemill verify", run, number(len(problems), "damaged latent"))
    return moments


def show_stats(output: Store, run: str | None, against: str | None, as_json: bool = False) -> None:
    """Print the drift between runs, as text or as one JSON object.

    Without `run` and `against`: the last RUNS_SHOWN runs, each compared with the run before. The JSON keys are `output` and
    `runs` (`run_id`, `images`, `channels`, `mean`, `deviation`, `distance`, `chance`).

    With `run` or `against`: the channels of a run, the newest by default, compared with those of `against` if given. The
    JSON keys are `output`, `run_id`, `images`, `against`, `against_images`, `distance`, `chance` and `channels` (all, each
    with `channel`, `mean`, `deviation`, `against_mean`, `against_deviation`, `distance`). Keys without a value are null.

    Raises:
        ConfigError: when a run has no rows, or the runs used different models.
        StorageError: when the output does not exist or cannot be read.
    """
    check_output(output)
    if not (against or run):
        runs = compare_runs(output)
        if as_json:
            print_json(replace_non_finite({"output": output.url, "runs": runs}))
        else:
            headings = ["run", "images", "channels", "mean", "deviation", "distance to previous run", "by chance"]
            print_table(headings, [list(map(cell, row.values())) for row in runs])
        return
    name = run or list_runs_with_rows(output, excluded=against)[-1]
    comparison = compare_channels(output, name, against)
    if as_json:
        print_json(replace_non_finite({"output": output.url, **comparison}))
    else:
        print_comparison(comparison)


def compare_runs(output: Store) -> list[dict[str, Any]]:
    """Return the statistics of the last runs, each with its distance to the run before if both used the same model."""
    rows = []
    previous: Moments | None = None
    for name in list_runs_with_rows(output)[-RUNS_SHOWN:]:
        moments = moments_of_run(output, name)
        if not moments.images:
            continue
        change = drift(moments, previous) if previous and previous.models == moments.models else None
        rows.append({
            "run_id": name,
            "images": moments.images,
            "channels": len(moments.mean),
            "mean": float(moments.mean.mean()),
            "deviation": float(np.sqrt(moments.variance.mean())),
            "distance": change.distance if change else None,
            "chance": change.chance if change else None,
        })  # fmt: skip
        previous = moments
    return rows


def compare_channels(output: Store, name: str, against: str | None) -> dict[str, Any]:
    """Return the channels of a run; first those that differ most from `against`, or vary most when there is no `against`."""
    moments = moments_of_run(output, name)
    reference = moments_of_run(output, against) if against else None
    change = drift(moments, reference) if reference else None
    order = np.argsort(change.channels if change else moments.variance)[::-1]
    return {
        "run_id": name,
        "images": moments.images,
        "against": against,
        "against_images": reference.images if reference else None,
        "distance": change.distance if change else None,
        "chance": change.chance if change else None,
        "channels": [
            {
                "channel": channel,
                "mean": float(moments.mean[channel]),
                "deviation": float(np.sqrt(moments.variance[channel])),
                "against_mean": float(reference.mean[channel]) if reference else None,
                "against_deviation": float(np.sqrt(reference.variance[channel])) if reference else None,
                "distance": float(change.channels[channel]) if change else None,
            }
            for channel in order.tolist()
        ],
    }


def cell(value: object) -> str:
    """Format a statistic for a table."""
    return f"{value:.4f}" if isinstance(value, float) else format_figure(value)


def print_comparison(comparison: dict[str, Any]) -> None:
    """Print the first channels of the result of `compare_channels` and the distance between the runs."""
    against = comparison["against"]
    headings = ["channel", "mean", "deviation", *(["reference mean", "reference deviation", "distance"] if against else [])]
    channels = comparison["channels"][:CHANNELS_SHOWN]
    print_table(headings, [[cell(x) for x in row.values()][: len(headings)] for row in channels])
    if against:
        chance = comparison["chance"]
        images, against_images = (number(comparison[key], "image") for key in ("images", "against_images"))
        print_text(f"{comparison['run_id']} ({images}) compared with {against} ({against_images}):")
        text = f"{chance:.4f} by chance alone" if np.isfinite(chance) else "too few images to tell it from chance"
        print_text(f"distance {comparison['distance']:.4f}, {text}")
