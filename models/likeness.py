"""Vectors for finding near copies of an image, computed from its latent: coarse layout and roughness by region.

    latents ─┬─ low-pass channels ── 4×4 means, divided by their contrast ─┐
             └─ texture channels ─── 3×3 log magnitudes ───────────────────┴─ same for the mirror image ── features

Channels of float latents have no known meaning, so all of them are taken for low-pass channels: 6×6 means.
    features ── whitening, small directions damped ── length at most 1 ── vector

Brightness, contrast, size and mirroring hardly change the features, and a crop changes them little. Whitening (Jégou and
Chum 2012) divides each direction by its standard deviation in a collection, so that common features have little weight.
"""

from dataclasses import dataclass

import numpy as np
import safetensors.numpy
import torch

from imagemill.models.architectures.codec import Codec
from imagemill.models.autoencoder import LatentCoder
from imagemill.models.checkpoint import BUNDLED_FOLDER, read_file
from imagemill.models.latents import Coder

WHITENING = "likeness.safetensors"
"""A file next to the bundled checkpoints; `python -m imagemill.jobs.fit_likeness_whitening` writes it."""
LAYOUT, TEXTURE, FLOAT_LAYOUT = 4, 3, 6
"""Cells along each side of the image."""
FLOOR = 0.02
"""Added to a magnitude before its logarithm; the finest quantiser step is 0.03."""
FLAT = 0.05
"""Added to the contrast, so that the noise of a uniform image is not amplified."""
EPSILON = 1e-12
DIMENSIONS, FLOAT_DIMENSIONS = 96, 32
RIDGE, FLOAT_RIDGE = 0.2, 0.01
"""Variance below which a direction is damped, because crops and compression change it more than the subject does."""
SHORT = 3.0
"""Whitened vectors shorter than this are not scaled to length 1. Photos have 4 to 9, sets of near copies almost 0."""


def likeness_features(latents: np.ndarray, coder: Coder) -> np.ndarray:
    """Compute features (N,F) float32, equal for mirror images, from values of latents (N,C,h,w) float32."""
    y = torch.from_numpy(latents)
    if not isinstance(coder, LatentCoder):
        return float_features(y)
    cells = torch.nn.functional.adaptive_avg_pool2d(y[:, list(coder.lowpass_channels)], LAYOUT).double()
    mean = cells[:, :1].mean((2, 3), keepdim=True)
    contrast = (cells[:, :1] - mean).square().mean((1, 2, 3), keepdim=True).sqrt() + FLAT
    cells[:, :1] -= mean
    magnitudes = torch.nn.functional.adaptive_avg_pool2d(y[:, list(coder.texture_channels)].abs(), TEXTURE)
    parts = [mirror_invariant(cells / contrast), mirror_invariant((magnitudes.double() + FLOOR).log())]
    return torch.cat(parts, 1).float().numpy()


def float_features(y: torch.Tensor) -> np.ndarray:
    """Compute features (N,F) float32 of length 1 or less from float latents (N,C,h,w): the layout of each channel."""
    y = y.double()
    cells = torch.nn.functional.adaptive_avg_pool2d(y, FLOAT_LAYOUT)
    cells = cells - cells.mean((2, 3), keepdim=True)
    contrast = cells.square().mean((1, 2, 3), keepdim=True).sqrt() + FLAT * y.square().mean((1, 2, 3), keepdim=True).sqrt()
    features = mirror_invariant(cells / contrast.clamp(min=EPSILON))
    return (features / features.shape[1] ** 0.5).float().numpy()


def mirror_invariant(cells: torch.Tensor) -> torch.Tensor:
    """Return the mean and the absolute difference of cells (N,C,g,g) and their mirror image, (N,C·g·g)."""
    mirrored, side = cells.flip(3), cells.shape[3]
    mean, difference = (cells + mirrored) / 2, (cells - mirrored).abs() / 2
    return torch.cat([mean[..., : (side + 1) // 2].flatten(1), difference[..., : side // 2].flatten(1)], 1)


@dataclass(frozen=True)
class Whitening:
    """The projection from features to vectors: principal directions, divided by their standard deviations.

    Attributes:
        mean: (F,) float32.
        directions: (F,D) float32.
    """

    mean: np.ndarray
    directions: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Project features (N,F) to vectors (N,D) float32 of length 1 or less."""
        vectors = (features - self.mean) @ self.directions
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        whitened: np.ndarray = vectors / np.maximum(length, SHORT)
        return whitened


def read_photo_whitening(coder: Coder) -> Whitening | None:
    """Read the whitening that was fitted to photos; None if the coder is not a `Codec` with the same number of features.

    The channels of all codecs mean the same, because their transform starts as the DCT. With one whitening for all, the
    vector of an image does not depend on the collection, and a folder that holds only copies cannot distort it.
    """
    if not isinstance(coder, Codec):
        return None
    tensors = safetensors.numpy.load(read_file(str(BUNDLED_FOLDER), WHITENING, {}))
    example = likeness_features(np.zeros((1, coder.code_channels, 1, 1), np.float32), coder)
    if len(tensors["mean"]) != example.shape[1]:
        return None
    return Whitening(tensors["mean"].astype(np.float32), tensors["directions"].astype(np.float32))


def choose_whitening(coder: Coder, features: np.ndarray) -> Whitening:
    """Return the whitening of photos if it suits the coder, else one fitted to the features (N,F) of a collection."""
    if not isinstance(coder, LatentCoder):
        return fit_whitening(features, FLOAT_DIMENSIONS, FLOAT_RIDGE)
    return read_photo_whitening(coder) or fit_whitening(features)


def fit_whitening(features: np.ndarray, dimensions: int = DIMENSIONS, ridge: float = RIDGE) -> Whitening:
    """Fit the whitening of a collection to its features (N,F), N ≥ 1."""
    mean = features.mean(0, dtype=np.float64)
    variance, directions = np.linalg.eigh(np.cov(features - mean, rowvar=False, bias=True))
    variance, directions = variance[: -dimensions - 1 : -1].clip(min=0), directions[:, : -dimensions - 1 : -1]
    return Whitening(mean.astype(np.float32), (directions / np.sqrt(variance + ridge)).astype(np.float32))


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return 1 - ½·‖a_i - b_j‖² for vectors a (N,D) and b (M,D), (N,M); the cosine for vectors of length 1."""
    squared_lengths = np.square(a).sum(1)[:, None] + np.square(b).sum(1)
    similarities: np.ndarray = 1 - squared_lengths / 2 + a @ b.T
    # Rounding in float32 can exceed 1.
    return np.minimum(similarities, 1, out=similarities)
