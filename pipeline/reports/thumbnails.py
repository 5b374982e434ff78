"""Decode small pictures of the images of a snapshot from their latents."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from imagemill.models.batches import to_uint8_images
from imagemill.models.latents import Coder
from imagemill.models.resizing import limit_side
from imagemill.models.routes.float_coder import FloatCoder
from imagemill.pipeline.output.latent_symbols import SIZE_COLUMNS, image_size
from imagemill.pipeline.output.latent_values import latent_batches
from imagemill.pipeline.output.snapshot import Snapshot


def decode_thumbnails(
    state: Snapshot, coder: Coder, columns: list[str], side: int, problems: list[str]
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Decode a thumbnail of each image.

    Args:
        state: the images.
        coder: the model that computed the latents.
        columns: the columns of the rows to return.
        side: longest side of a thumbnail, in pixels.
        problems: a sentence about each damaged latent is appended; damaged latents have no thumbnail.

    Yields:
        Rows and their thumbnails (H,W,3) uint8.
    """
    for latents in latent_batches(state, [*columns, *SIZE_COLUMNS], problems):
        for row, values in zip(latents.rows.to_pylist(), latents.values, strict=True):
            yield row, decode_thumbnail(values, coder, image_size(row), side)


def decode_thumbnail(values: np.ndarray, coder: Coder, size: tuple[int, int], side: int) -> np.ndarray:
    """Decode a thumbnail (H,W,3) uint8.

    Args:
        values: values of a latent (C,h,w).
        coder: the model that computed the latent.
        size: height and width of the image.
        side: longest side of the thumbnail, in pixels.
    """
    y = torch.from_numpy(values)[None]
    with torch.inference_mode():
        preview = coder.decode_preview(y, side) if isinstance(coder, FloatCoder) else coder.decode_preview(y)
    rgb = to_uint8_images(preview.expand(-1, 3, -1, -1))[0]
    # Cut off the padding. A preview may be smaller than its image.
    scales = (rgb.shape[axis] / (values.shape[axis + 1] * coder.factor) for axis in (0, 1))
    height, width = (max(1, round(side * scale)) for side, scale in zip(size, scales, strict=True))
    rgb = rgb[:height, :width]
    return limit_side(np.ascontiguousarray(rgb), side)
