"""Replace the colours under fully transparent pixels.

Otherwise a network would process colours that a viewer never shows.
"""

import numpy as np
from PIL import Image

from imagemill.pipeline.images.samples import row_strips


def fill_hidden(rgb: np.ndarray, alpha: np.ndarray) -> None:
    """Replace the colours of fully transparent pixels by interpolated ones, in place.

    Editors leave arbitrary colours under transparency: black, noise, the old background. A network mixes neighbouring
    pixels, so hidden colours would leak into visible edges. The method is pull-push over an image pyramid (Gortler et
    al., "The Lumigraph", 1996, section 3.4.2), with alpha as the weight of a pixel. An image without a visible pixel
    becomes black.

    Args:
        rgb: (H,W,3) uint8, changed where alpha is 0.
        alpha: (H,W) uint8.
    """
    if alpha.all():
        return
    if not alpha.any():
        rgb[:] = 0
        return
    height, width = alpha.shape
    coarse = np.asarray(fill_level(*halve(rgb, alpha)))
    for rows in row_strips(width, height, multiple=2):
        # Repeat pixels on the finest level: interpolating them would need a second copy of a large image.
        doubled = coarse[rows.start // 2 : -(-rows.stop // 2)].repeat(2, 0).repeat(2, 1)
        np.copyto(rgb[rows], doubled[: rows.stop - rows.start, :width], where=(alpha[rows] == 0)[..., None])


def halve(colours: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average blocks of 2×2 pixels by their weights.

    Args:
        colours: (H,W,3) uint8.
        weights: (H,W) uint8.

    Returns:
        Colours (h,w,3) uint8 with h = ceil(H / 2), w = ceil(W / 2), black where all four weights are 0. And the weights of
        this level, (h,w) uint8: 1 where at least one of the four weights is not 0, else 0. They are binary so that faint
        pixels are not mixed with coarser levels.
    """
    height, width = weights.shape
    small = np.empty((-(-height // 2), -(-width // 2), 3), np.uint8)
    visible = np.empty(small.shape[:2], np.uint8)
    for rows in row_strips(width, height, multiple=2):
        padding = ((0, (rows.stop - rows.start) % 2), (0, width % 2))
        strip_weights = np.pad(weights[rows], padding).astype(np.uint32)[..., None]
        total = sum_blocks(strip_weights)
        sums = sum_blocks(np.pad(colours[rows], (*padding, (0, 0))) * strip_weights)
        half_rows = slice(rows.start // 2, rows.start // 2 + len(total))
        small[half_rows] = (sums + total // 2) // np.maximum(total, 1)
        visible[half_rows] = total[..., 0] > 0
    return small, visible


def sum_blocks(values: np.ndarray) -> np.ndarray:
    """Sum blocks of 2×2 values: (2h,2w,C) to (h,w,C)."""
    rows = values[0::2] + values[1::2]
    return rows[:, 0::2] + rows[:, 1::2]


def fill_level(colours: np.ndarray, visible: np.ndarray) -> Image.Image:
    """Fill one level of the pyramid from the coarser levels.

    Args:
        colours: (H,W,3) uint8.
        visible: (H,W) uint8, 0 where colours are missing; not 0 everywhere.
    """
    image = Image.fromarray(colours)
    if visible.all():
        return image
    box = (0, 0, image.width / 2, image.height / 2)
    smooth = fill_level(*halve(colours, visible)).resize(image.size, Image.Resampling.BILINEAR, box)
    smooth.paste(image, mask=Image.fromarray(visible * np.uint8(255)))
    return smooth


def match_alpha(alpha: np.ndarray | None, image: np.ndarray) -> np.ndarray | None:
    """Resize alpha (H,W) uint8 to the size of an output image (h,w,3); None stays None."""
    if alpha is None or alpha.shape == image.shape[:2]:
        return alpha
    return np.asarray(Image.fromarray(alpha).resize(image.shape[1::-1], Image.Resampling.LANCZOS))
