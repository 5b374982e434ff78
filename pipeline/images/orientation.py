"""The eight orientations of EXIF, as views of arrays."""

from collections.abc import Callable

import numpy as np

TO_STORED_ORIENTATION: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
"""By EXIF orientation: returns a view of an upright array (H,W,…) in the orientation that the file stores."""

STORED = np.arange(6).reshape(2, 3)
"""A stored image of six distinct pixels, on which rotations and mirrors are tracked."""


def find_orientation(upright: np.ndarray) -> int:
    """Return the EXIF orientation that turns STORED into `upright`."""
    return next(n for n, to_stored in TO_STORED_ORIENTATION.items() if np.array_equal(to_stored(upright), STORED))
