"""Figures of merit."""

import numpy as np


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images of one shape, in dB; infinite for equal ones."""
    error = a.astype(np.float32) - b.astype(np.float32)
    mse = float(np.mean(np.square(error), dtype=np.float64))
    return float("inf") if mse == 0 else float(10 * np.log10(255.0**2 / mse))
