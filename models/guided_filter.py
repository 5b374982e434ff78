"""Enlarge maps along the edges of a larger image: the fast guided filter (He and Sun 2015, "Fast guided filter")."""

from torch import Tensor, nn

from imagemill.models.resizing import resize

RADIUS = 6
"""Half the side of the windows, in pixels of the small maps."""
EPSILON = 3e-4
"""Variance of the guide (values in [0,1]) below which a window counts as flat."""


def enlarge_guided(maps_BChw: Tensor, small_guide_B1hw: Tensor, guide_B1HW: Tensor) -> Tensor:
    """Enlarge maps to the size of a guide; their edges follow those of the guide.

    In each window, a map is a linear function of the guide, fitted at the small size. Enlarging the coefficients instead of the
    map keeps the edges of the guide sharp.

    Args:
        maps_BChw: maps (B,C,h,w) float.
        small_guide_B1hw: the guide (B,1,h,w) float in [0,1] at the size of the maps.
        guide_B1HW: the guide (B,1,H,W) float in [0,1].

    Returns:
        Maps (B,C,H,W).
    """
    mean_guide, mean_maps = window_mean(small_guide_B1hw), window_mean(maps_BChw)
    variance = window_mean(small_guide_B1hw.square()) - mean_guide.square()
    slope = (window_mean(small_guide_B1hw * maps_BChw) - mean_guide * mean_maps) / (variance + EPSILON)
    offset = mean_maps - slope * mean_guide
    size = list(guide_B1HW.shape[2:])
    # In place, because the maps of a large image take much memory.
    return resize(window_mean(slope), size).mul_(guide_B1HW).add_(resize(window_mean(offset), size))


def window_mean(maps_BChw: Tensor) -> Tensor:
    """Return the mean of each window; windows at the border are smaller."""
    return nn.functional.avg_pool2d(maps_BChw, 2 * RADIUS + 1, 1, RADIUS, count_include_pad=False)
