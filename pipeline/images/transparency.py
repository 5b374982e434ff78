"""Colours for the pixels that transparency hides, so that no network sees what a viewer never shows."""

import numpy as np
from PIL import Image

from imagemill.pipeline.images.samples import row_strips


def fill_hidden(rgb: np.ndarray, alpha: np.ndarray) -> None:
    """Replace the colours of fully transparent pixels by ones interpolated from visible pixels, in place.

    Editors leave anything under transparency: black, noise, the old background. A network mixes neighbouring pixels, so
    hidden colours would leak into visible edges. The fill is pull-push over a pyramid (Gortler et al. 1996, section 3.4.2),
    each pixel weighted by its alpha. A picture without a visible pixel becomes black.

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
    coarse = np.asarray(filled(*halved(rgb, alpha)))
    for rows in row_strips(width, height, multiple=2):
        # The finest level repeats pixels: interpolating them is not worth a second copy of a large picture.
        doubled = coarse[rows.start // 2 : -(-rows.stop // 2)].repeat(2, 0).repeat(2, 1)
        np.copyto(rgb[rows], doubled[: rows.stop - rows.start, :width], where=(alpha[rows] == 0)[..., None])


def halved(colours: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average 2×2 pixels by their weights.

    Args:
        colours: (H,W,3) uint8.
        weight: (H,W) uint8.

    Returns:
        Colours (h,w,3) uint8, h = ceil(H / 2), black where all four weights are 0; and 1 where one of them is not, else 0,
        (h,w) uint8. That is the weight of the next level: faint pixels must not fade from the coarse ones.
    """
    height, width = weight.shape
    small = np.empty((-(-height // 2), -(-width // 2), 3), np.uint8)
    visible = np.empty(small.shape[:2], np.uint8)
    for rows in row_strips(width, height, multiple=2):
        padding = ((0, (rows.stop - rows.start) % 2), (0, width % 2))
        weights = np.pad(weight[rows], padding).astype(np.uint32)[..., None]
        total = of_four(weights)
        sums = of_four(np.pad(colours[rows], (*padding, (0, 0))) * weights)
        half = slice(rows.start // 2, rows.start // 2 + len(total))
        small[half] = (sums + total // 2) // np.maximum(total, 1)
        visible[half] = total[..., 0] > 0
    return small, visible


def of_four(values: np.ndarray) -> np.ndarray:
    """The sums of 2×2 neighbours, (2h,2w,C) to (h,w,C)."""
    rows = values[0::2] + values[1::2]
    return rows[:, 0::2] + rows[:, 1::2]


def filled(colours: np.ndarray, visible: np.ndarray) -> Image.Image:
    """Interpolate colours (H,W,3) uint8 where `visible` (H,W) uint8 is 0 from coarser copies; some value is not 0."""
    image = Image.fromarray(colours)
    if visible.all():
        return image
    box = (0, 0, image.width / 2, image.height / 2)
    smooth = filled(*halved(colours, visible)).resize(image.size, Image.Resampling.BILINEAR, box)
    smooth.paste(image, mask=Image.fromarray(visible * np.uint8(255)))
    return smooth


def match_alpha(alpha: np.ndarray | None, image: np.ndarray) -> np.ndarray | None:
    """Resize alpha (H,W) uint8 to the size of an output image (h,w,3); None stays None."""
    if alpha is None or alpha.shape == image.shape[:2]:
        return alpha
    return np.asarray(Image.fromarray(alpha).resize(image.shape[1::-1], Image.Resampling.LANCZOS))
