"""A DNG, the raw format that any program may write."""

import io

import numpy as np
import tifffile

CFA = 32803
"""The photometric interpretation of a colour filter array."""
SHORT, LONG, RATIONAL, SIGNED_RATIONAL, ASCII, BYTE = 3, 4, 5, 10, 2, 1
XYZ_TO_SRGB = (3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570)
WHITE_LEVEL = 16_000
WHITE_BALANCE = (0.5, 1.0, 0.8)
"""What a sensor measures of a white surface, relative to green."""


def dng_file(light: np.ndarray, orientation: int = 1, artist: str = "") -> bytes:
    """Return linear sRGB light (H,W,3), 0..1, as a sensor with a Bayer pattern (RGGB) sees it."""
    colours = light * WHITE_BALANCE * WHITE_LEVEL
    sensor = np.empty(light.shape[:2], np.uint16)
    for top, left, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        sensor[top::2, left::2] = colours[top::2, left::2, channel].round()
    matrix = sum(((round(value * 10_000), 10_000) for value in XYZ_TO_SRGB), ())
    white = sum(((round(value * 10_000), 10_000) for value in WHITE_BALANCE), ())
    tags = [
        (274, SHORT, 1, orientation, True),
        (271, ASCII, 0, "Imagemill", True),
        (272, ASCII, 0, "Test", True),
        *([(315, ASCII, 0, artist, True)] if artist else []),
        (33421, SHORT, 2, (2, 2), True),
        (33422, BYTE, 4, (0, 1, 1, 2), True),
        (50706, BYTE, 4, (1, 4, 0, 0), True),
        (50708, ASCII, 0, "Imagemill Test", True),
        (50717, LONG, 1, WHITE_LEVEL, True),
        (50721, SIGNED_RATIONAL, 9, matrix, True),
        (50728, RATIONAL, 3, white, True),
        (50778, SHORT, 1, 21, True),
    ]
    out = io.BytesIO()
    tifffile.imwrite(out, sensor, photometric=CFA, extratags=tags, metadata=None, software=False)
    return out.getvalue()
