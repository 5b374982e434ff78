"""Enlarge maps along the edges of a larger image: the fast guided filter (He and Sun 2015, "Fast guided filter")."""

from torch import Tensor, nn

REDUCTION = 4
"""The linear functions are fitted to maps that are reduced by this factor, which saves most of the time."""
EPSILON = 1e-3
"""Variance of the guide (values in [0,1]) below which a window counts as flat."""


def enlarge_guided(maps_BChw: Tensor, small_guide_B1hw: Tensor, guide_B1HW: Tensor) -> Tensor:
    """Enlarge maps to the size of a guide; their edges follow those of the guide.

    In each window, a map is a linear function of the guide, fitted at the small size. The coefficients are enlarged, and not
    the map, so the edges of the guide stay sharp.

    Args:
        maps_BChw: maps (B,C,h,w) float; h and w are multiples of 4.
        small_guide_B1hw: the guide (B,1,h,w) float in [0,1] at the size of the maps.
        guide_B1HW: the guide (B,1,H,W) float in [0,1].

    Returns:
        Maps (B,C,H,W).
    """
    maps, guide = (nn.functional.avg_pool2d(x, REDUCTION) for x in (maps_BChw, small_guide_B1hw))
    mean_guide, mean_maps = window_mean(guide), window_mean(maps)
    variance = window_mean(guide.square()) - mean_guide.square()
    slope = (window_mean(guide * maps) - mean_guide * mean_maps) / (variance + EPSILON)
    slope, offset = (
        nn.functional.interpolate(window_mean(x), guide_B1HW.shape[2:], mode="bilinear", align_corners=False)
        for x in (slope, mean_maps - slope * mean_guide)
    )
    # In place, because the maps of a large image take much memory.
    return slope.mul_(guide_B1HW).add_(offset)


def window_mean(maps_BChw: Tensor) -> Tensor:
    """Return the mean of each window of 3×3 pixels; windows at the border are smaller."""
    return nn.functional.avg_pool2d(maps_BChw, 3, 1, 1, count_include_pad=False)
