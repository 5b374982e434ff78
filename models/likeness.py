"""By what near copies of an image are found: its layout at a tiny size and where it is how rough, from its latent.

    latents ─┬─ smooth channels ── 4×4 means, in units of their contrast ─┐
             └─ texture channels ─ 3×3 log magnitudes ────────────────────┴─ same for the mirror image ── features
    features ── whitened, small directions held back ── length 1 at most ── vector

Brightness, contrast, size and mirroring hardly move the features, and a crop moves them little. What most images share says
nothing: whitening (Jégou and Chum 2012) weighs each direction by how rarely a collection moves along it.
"""

from dataclasses import dataclass

import numpy as np
import safetensors.numpy
import torch

from imagemill.models.architectures.codec import Codec
from imagemill.models.autoencoder import LatentCoder
from imagemill.models.checkpoint import BUNDLED_FOLDER, read_file

WHITENING = "likeness.safetensors"
"""Among the bundled checkpoints; `python -m imagemill.jobs.fit_likeness_whitening` makes it."""
LAYOUT, TEXTURE = 4, 3
"""Cells along each side."""
FLOOR = 0.02
"""Added to a magnitude before its logarithm; the finest quantiser step is 0.03."""
FLAT = 0.05
"""Added to a contrast, so that noise of an even image is not blown up."""
DIMENSIONS = 96
RIDGE = 0.2
"""Variance below which a direction is held back, as what crops and compression move it by is more than what it tells."""
SHORT = 3.0
"""Length of a whitened vector below which it is not made longer; photos have 4 to 9, a set of near copies next to none."""


def likeness_features(latents: np.ndarray, coder: LatentCoder) -> np.ndarray:
    """Dequantised latents (N,C,h,w) float32 to features (N,F) float32, the same for mirror images."""
    y = torch.from_numpy(latents)
    cells = torch.nn.functional.adaptive_avg_pool2d(y[:, list(coder.lowpass_channels)], LAYOUT).double()
    first = cells[:, :1].mean((2, 3), keepdim=True)
    contrast = (cells[:, :1] - first).square().mean((1, 2, 3), keepdim=True).sqrt() + FLAT
    cells[:, :1] -= first
    rough = torch.nn.functional.adaptive_avg_pool2d(y[:, list(coder.texture_channels)].abs(), TEXTURE)
    both = [mirror_invariant(cells / contrast), mirror_invariant((rough.double() + FLOOR).log())]
    return torch.cat(both, 1).float().numpy()


def mirror_invariant(cells: torch.Tensor) -> torch.Tensor:
    """Cells (N,C,g,g) to what they and their mirror image have in common, and how much they differ, (N,C·g·g)."""
    mirrored, side = cells.flip(3), cells.shape[3]
    same, differ = (cells + mirrored) / 2, (cells - mirrored).abs() / 2
    return torch.cat([same[..., : (side + 1) // 2].flatten(1), differ[..., : side // 2].flatten(1)], 1)


@dataclass(frozen=True)
class Whitening:
    """What makes vectors of features: directions in which a collection varies, each weighed by how little."""

    mean: np.ndarray
    """(F,) float32."""
    directions: np.ndarray
    """(F,D) float32."""

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Features (N,F) to vectors (N,D) float32, of length 1 or less."""
        vectors = (features - self.mean) @ self.directions
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        whitened: np.ndarray = vectors / np.maximum(length, SHORT)
        return whitened


def read_photo_whitening(coder: LatentCoder) -> Whitening | None:
    """The whitening that was fitted to photos; None where the features are not those of a `Codec` with all its channels.

    A codec's channels mean the same whoever trained it: its transform starts as the DCT. With one whitening for all, a
    vector does not depend on what lies beside it, and a folder of nothing but copies does not take what tells them apart
    for what matters.
    """
    if not isinstance(coder, Codec):
        return None
    tensors = safetensors.numpy.load(read_file(str(BUNDLED_FOLDER), WHITENING, {}))
    one = likeness_features(np.zeros((1, coder.code_channels, 1, 1), np.float32), coder)
    if len(tensors["mean"]) != one.shape[1]:
        return None
    return Whitening(tensors["mean"].astype(np.float32), tensors["directions"].astype(np.float32))


def choose_whitening(coder: LatentCoder, collection: np.ndarray) -> Whitening:
    """The whitening that was fitted to photos where it suits the coder, else that of a collection's features (N,F)."""
    return read_photo_whitening(coder) or fit_whitening(collection)


def fit_whitening(features: np.ndarray) -> Whitening:
    """The whitening of a collection's features (N,F), N ≥ 1."""
    mean = features.mean(0, dtype=np.float64)
    variance, directions = np.linalg.eigh(np.cov(features - mean, rowvar=False, bias=True))
    variance, directions = variance[: -DIMENSIONS - 1 : -1].clip(min=0), directions[:, : -DIMENSIONS - 1 : -1]
    return Whitening(mean.astype(np.float32), (directions / np.sqrt(variance + RIDGE)).astype(np.float32))


def similarity(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of each of (N,D) with each of (M,D), (N,M): 1 less half the squared distance; the cosine, where lengths are 1."""
    lengths = np.square(vectors).sum(1)[:, None] + np.square(others).sum(1)
    alike: np.ndarray = 1 - lengths / 2 + vectors @ others.T
    # What float32 rounds off.
    return np.minimum(alike, 1, out=alike)
