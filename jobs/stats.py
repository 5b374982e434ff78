"""Drift: what latents are like on the mean, channel by channel, and how far the images of one run are from another's."""

from dataclasses import dataclass

import numpy as np
from rich.table import Table

from imagemill.jobs.console import console, number
from imagemill.jobs.outputs import check_exists
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.latent_values import LatentCoders, check_latents, latent_batches
from imagemill.pipeline.output.parts import iterate_parts, list_parts
from imagemill.pipeline.output.snapshot import read_snapshot
from imagemill.pipeline.progress import with_progress
from imagemill.pipeline.storage import Store

SHOWN_RUNS, SHOWN_CHANNELS = 10, 8


class Moments:
    """Running sums over images, each of which counts once whatever its size; arrays have one value a channel."""

    def __init__(self) -> None:
        self.images = 0
        self.models: set[str] = set()
        self._sums = np.zeros((6, 0))

    def add(self, values: np.ndarray, widths: np.ndarray, models: set[str]) -> None:
        """Latents (N,C,h,w) float32 of these checkpoints, and what a symbol of each channel is worth, (N,C)."""
        wide = values.astype(np.float64)
        means, squares = wide.mean((2, 3)), (wide**2).mean((2, 3))
        moments = (means, squares, means**2, means * squares, squares**2, widths.astype(np.float64) ** 2)
        sums = np.stack([x.sum(0) for x in moments])
        self._sums = sums if not self.images else self._sums + sums
        self.images += len(values)
        self.models |= models

    @property
    def mean(self) -> np.ndarray:
        return self._sums[0] / self.images

    @property
    def variance(self) -> np.ndarray:
        """Of single values."""
        return np.maximum(self._sums[1] / self.images - self.mean**2, 0)

    @property
    def least(self) -> np.ndarray:
        """Variance of a channel that is silent but for a symbol of one at some place in a hundred."""
        return self._sums[5] / self.images / 100

    @property
    def spread(self) -> np.ndarray:
        """(2,C): sum over the images of the squares of what one moves the mean by, and the variance, times their number.

        Values within an image are alike, so images are what is independent: one of mean m and mean square q moves the
        variance by q - 2·mean·m, less what that is on the mean.
        """
        mean, square = self._sums[:2] / self.images
        of_mean, both, of_square = self._sums[2:5] - self.images * np.stack([mean**2, mean * square, square**2])
        return np.maximum([of_mean, of_square - 4 * mean * both + 4 * mean**2 * of_mean], 0)


@dataclass(frozen=True)
class Drift:
    """How far one set of images is from another, in standard deviations of the other."""

    distance: float
    """Fréchet distance between diagonal Gaussians (Dowson and Landau 1982), each channel in units of its standard
    deviation in the reference, root of the mean over channels: √mean((Δmean² + Δdeviation²) / deviation²). A deviation of
    less than a tenth of a symbol counts as that: a channel that is nearly silent in both would drown the others."""
    chance: float
    """What this would be, root of the mean of its square, for two draws of so many such images from one place; inf where
    both are one image, of which nobody can tell."""
    channels: np.ndarray
    """The part of each channel, before the mean."""

    def alarming(self, level: float) -> bool:
        """Whether it is above a level, and not what few images give by chance."""
        return self.distance > max(level, 2 * self.chance)


def drift(seen: Moments, reference: Moments) -> Drift:
    """Raises: ConfigError when they are of different models, or one has no images."""
    if not seen.images or not reference.images:
        raise ConfigError("no latents to compare")
    if seen.models != reference.models:
        them = sorted(sha256[:16] for sha256 in seen.models | reference.models)
        raise ConfigError(f"latents of different models do not compare: {', '.join(them)}")
    unit = np.maximum(reference.variance, reference.least)
    shift = (seen.mean - reference.mean) ** 2 + (np.sqrt(seen.variance) - np.sqrt(reference.variance)) ** 2
    return Drift(float(np.sqrt((shift / unit).mean())), by_chance(seen, reference, unit), np.sqrt(shift / unit))


def by_chance(seen: Moments, reference: Moments, unit: np.ndarray) -> float:
    """`Drift.chance` in these units; a deviation moves by what its variance does, over twice it."""
    images = seen.images + reference.images
    if images == 2:
        return np.inf
    # Of both runs: a channel that is silent but in one image has no deviation in the run without it.
    variance = (seen.images * seen.variance + reference.images * reference.variance) / images
    # Each about the mean of its own run: what moved a whole run is no chance.
    of_mean, of_variance = (seen.spread + reference.spread) / (images - 2)
    # Sums of floats have so many digits: a variance of less is none.
    moved = of_mean + of_variance / (4 * np.maximum(variance, 1e-6 * reference.least))
    return float(np.sqrt((moved / unit).mean() * (1 / seen.images + 1 / reference.images)))


def runs_of(output: Store, beside: str | None = None) -> list[str]:
    """The runs that made rows, oldest first, but for one. Raises: ConfigError when there are none; StorageError."""
    parts = iterate_parts(output, list_parts(output, "results"), ["run_id"], ahead=64)
    runs = {str(name) for _, table in parts for name in table["run_id"].unique().to_pylist()} - {beside}
    if not runs:
        raise ConfigError(f"{output.url}: no row is of {f'another run than {beside}' if beside else 'any run'}")
    return sorted(runs)


def moments_of_run(output: Store, run: str) -> Moments:
    """Of all rows that a run made, whatever came later. Raises: ConfigError when there are none, or no latents."""
    state = read_snapshot(output, run)
    check_latents(state)
    seen = Moments()
    problems: list[str] = []
    coders = LatentCoders(output)
    batches = latent_batches(state, ["checkpoint_sha256", "step"], problems)
    for latents in with_progress("stats", batches, len(state), lambda latents: len(latents.rows)):
        models, steps = (latents.rows[name].to_pylist() for name in ("checkpoint_sha256", "step"))
        widths = np.stack([coders.lattice(*by)[0] for by in zip(models, steps, strict=True)])
        seen.add(latents.values, widths, set(models))
    if problems:
        console.print(f"{len(problems):,} latents are not what was written and do not count; see: imagemill verify")
    return seen


def show_stats(output: Store, run: str | None, against: str | None) -> None:
    """Print the runs with their distance from the one before, or one run beside another, channel by channel.

    Raises: ConfigError for runs without rows, or of different models.
    """
    check_exists(output)
    if against or run:
        newest = run or runs_of(output, beside=against)[-1]
        show_channels(newest, moments_of_run(output, newest), against, moments_of_run(output, against) if against else None)
        return
    table = Table("run", "images", "channels", "mean", "deviation", "distance from the run before", "by chance", box=None)
    before: Moments | None = None
    for name in runs_of(output)[-SHOWN_RUNS:]:
        seen = moments_of_run(output, name)
        if not seen.images:
            continue
        far = drift(seen, before) if before and before.models == seen.models else None
        deviation = float(np.sqrt(seen.variance.mean()))
        cells = [f"{seen.images:,}", str(len(seen.mean)), f"{seen.mean.mean():.4f}", f"{deviation:.4f}"]
        table.add_row(name, *cells, *((f"{far.distance:.3f}", f"{far.chance:.3f}") if far else ("", "")))
        before = seen
    console.print(table)


def show_channels(name: str, seen: Moments, against: str | None, reference: Moments | None) -> None:
    """The channels that moved most, or those that vary most where there is nothing to compare with."""
    far = drift(seen, reference) if reference else None
    order = np.argsort(far.channels if far else seen.variance)[::-1][:SHOWN_CHANNELS]
    table = Table("channel", "mean", "deviation", *(["mean there", "deviation there", "distance"] if far else []), box=None)
    for channel in order.tolist():
        cells = [f"{seen.mean[channel]:.4f}", f"{np.sqrt(seen.variance[channel]):.4f}"]
        if far and reference:
            cells += [f"{reference.mean[channel]:.4f}", f"{np.sqrt(reference.variance[channel]):.4f}"]
            cells += [f"{far.channels[channel]:.3f}"]
        table.add_row(str(channel), *cells)
    console.print(table)
    if far and reference:
        images, there = number(seen.images, "image"), number(reference.images, "image")
        console.print(
            f"{name} ({images}) is {far.distance:.3f} from {against} ({there}); chance alone gives some {far.chance:.3f}"
        )
