"""Figures of merit."""

import numpy as np


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images of one shape, in dB; infinite for equal ones."""
    # Some rows at a time: a difference in float of a large image would be its largest array.
    rows = range(0, len(a), 512)
    squared = sum(float(np.square(a[r : r + 512].astype(np.float32) - b[r : r + 512]).sum(dtype=np.float64)) for r in rows)
    mse = squared / a.size
    return float("inf") if mse == 0 else float(10 * np.log10(255.0**2 / mse))
