"""Measure how far the latents of one set of images are from those of another, and how far chance alone would put them."""

from dataclasses import dataclass

import numpy as np

from imagemill.pipeline.errors import ConfigError


class Moments:
    """Running sums over the latents of images; every image has the same weight, independent of its size.

    Arrays have one value per channel.
    """

    def __init__(self) -> None:
        self.images = 0
        self.models: set[str] = set()
        self._sums = np.zeros((6, 0))

    def add(self, values: np.ndarray, widths: np.ndarray, models: set[str]) -> None:
        """Add latents.

        Args:
            values: dequantised latents (N,C,h,w), float32.
            widths: the quantiser step of each channel (N,C), in units of the latent.
            models: sha256 of the checkpoints that computed the latents.
        """
        wide = values.astype(np.float64)
        means, squares = wide.mean((2, 3)), (wide**2).mean((2, 3))
        moments = (means, squares, means**2, means * squares, squares**2, widths.astype(np.float64) ** 2)
        sums = np.stack([x.sum(0) for x in moments])
        self._sums = sums if not self.images else self._sums + sums
        self.images += len(values)
        self.models |= models

    @property
    def mean(self) -> np.ndarray:
        """Mean of the values of each channel."""
        return self._sums[0] / self.images

    @property
    def variance(self) -> np.ndarray:
        """Variance of the values of each channel."""
        return np.maximum(self._sums[1] / self.images - self.mean**2, 0)

    @property
    def least_variance(self) -> np.ndarray:
        """Variance of a nearly silent channel: one symbol of 1 in every hundred, all others 0."""
        return self._sums[5] / self.images / 100

    @property
    def spread(self) -> np.ndarray:
        """Sums of squared effects of single images on the mean and on the variance, (2,C).

        Values within an image are correlated, so images are the independent samples. An image with mean m and mean square q
        moves the mean by m, and the variance by q - 2·mean·m, both relative to their averages over all images.
        """
        mean, square = self._sums[:2] / self.images
        of_mean, both, of_square = self._sums[2:5] - self.images * np.stack([mean**2, mean * square, square**2])
        return np.maximum([of_mean, of_square - 4 * mean * both + 4 * mean**2 * of_mean], 0)


@dataclass(frozen=True)
class Drift:
    """Distance of one set of images from a reference, in standard deviations of the reference."""

    distance: float
    """Fréchet distance between diagonal Gaussians (Dowson and Landau 1982), each channel divided by its standard deviation
    in
    the reference, as root mean square over the channels: √mean((Δmean² + Δdeviation²) / deviation²). Deviations below a
    tenth of a symbol count as a tenth, because a channel that is nearly silent in both sets would dominate the sum."""
    chance: float
    """Expected distance (root mean square) of two random samples of these sizes from the same source; infinite for two
    single
    images, which do not allow an estimate."""
    channels: np.ndarray
    """Distance of each channel, before the mean."""

    def alarming(self, threshold: float) -> bool:
        """Return whether the distance is above a threshold and at least twice what chance would give."""
        return self.distance > max(threshold, 2 * self.chance)


def drift(moments: Moments, reference: Moments) -> Drift:
    """Return the drift of one set of images from a reference.

    Raises:
        ConfigError: when a set is empty, or the sets have latents of different models.
    """
    if not moments.images or not reference.images:
        raise ConfigError("stats: a run has no readable latents to compare")
    if moments.models != reference.models:
        models = sorted(sha256[:16] for sha256 in moments.models | reference.models)
        raise ConfigError(f"stats: latents of different models cannot be compared: {', '.join(models)}")
    unit = np.maximum(reference.variance, reference.least_variance)
    shift = (moments.mean - reference.mean) ** 2 + (np.sqrt(moments.variance) - np.sqrt(reference.variance)) ** 2
    chance = distance_by_chance(moments, reference, unit)
    return Drift(float(np.sqrt((shift / unit).mean())), chance, np.sqrt(shift / unit))


def distance_by_chance(moments: Moments, reference: Moments, unit: np.ndarray) -> float:
    """Return `Drift.chance`.

    The error of a deviation is the error of its variance divided by twice the deviation.

    Args:
        moments: of one set of images.
        reference: of the other set.
        unit: the variance (C,) that distances are divided by.
    """
    images = moments.images + reference.images
    if images == 2:
        return np.inf
    # The variance of both sets together: a channel that is active in a single image has none in the set without the image.
    variance = (moments.images * moments.variance + reference.images * reference.variance) / images
    # Each set is measured around its own mean: a shift of a whole set is not chance.
    of_mean, of_variance = (moments.spread + reference.spread) / (images - 2)
    # Variances below the precision of the sums count as that precision.
    error = of_mean + of_variance / (4 * np.maximum(variance, 1e-6 * reference.least_variance))
    return float(np.sqrt((error / unit).mean() * (1 / moments.images + 1 / reference.images)))
