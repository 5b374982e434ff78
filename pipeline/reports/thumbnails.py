"""Small pictures of the images of a snapshot, from their latents alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from imagemill.models.autoencoder import LatentCoder
from imagemill.models.batches import to_uint8_images
from imagemill.models.resizing import limit_side
from imagemill.pipeline.output.latent_symbols import upright_size
from imagemill.pipeline.output.latent_values import latent_batches
from imagemill.pipeline.output.snapshot import Snapshot

SIZE = ["orig_width", "orig_height", "exif_orientation"]


def decode_thumbnails(
    state: Snapshot, coder: LatentCoder, columns: list[str], side: int, problems: list[str]
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Rows and their pictures (H,W,3) uint8 with a long side of `side` at most; damaged latents as in `latent_batches`."""
    for latents in latent_batches(state, [*columns, *SIZE], problems):
        for row, values in zip(latents.rows.to_pylist(), latents.values, strict=True):
            yield row, decode_thumbnail(values, coder, upright_size(row), side)


def decode_thumbnail(values: np.ndarray, coder: LatentCoder, size: tuple[int, int], side: int) -> np.ndarray:
    """The picture of a dequantised latent (C,h,w), of an image of this (H,W)."""
    with torch.inference_mode():
        sketch = coder.decode_preview(torch.from_numpy(values)[None])
    rgb = to_uint8_images(sketch.expand(-1, 3, -1, -1))[0]
    # Without what was padded; a sketch may be smaller than its image.
    scale = rgb.shape[0] / (values.shape[1] * coder.stride)
    rgb = rgb[: max(1, round(size[0] * scale)), : max(1, round(size[1] * scale))]
    return limit_side(np.ascontiguousarray(rgb), side)
