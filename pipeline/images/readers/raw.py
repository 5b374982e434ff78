"""Camera raw (DNG, CR2, CR3, NEF, ARW, …): LibRaw develops the sensor data through rawpy, an optional library.

The rendering is that of LibRaw's defaults in sRGB: white balance of the camera, AHD demosaicing, and a brightness at which
1 % of the pixels are white. Edits of other programs are not applied. LibRaw notices truncated files, except for a few
bytes of uncompressed samples.
"""

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from imagemill.pipeline.images.errors import broken_image, check_dimensions, unsupported_format
from imagemill.pipeline.images.readers.extras import import_extra
from imagemill.pipeline.images.readers.pillow import open_with_pillow
from imagemill.pipeline.images.readers.reader import StoredImage
from imagemill.pipeline.images.readers.tiff_page import find_raw_pages
from imagemill.pipeline.images.tiff_directory import TIFF_SIGNATURES

ORIENTATIONS = {0: 1, 1: 2, 2: 4, 3: 3, 4: 5, 5: 8, 6: 6, 7: 7}
"""EXIF orientation by LibRaw's code, whose bits transpose, flip and mirror."""
SRGB_GAMMA = (2.4, 12.92)
THREADS = "OMP_NUM_THREADS"
LOADING = threading.Lock()
"""Held while THREADS is changed."""


def load_library() -> ModuleType:
    """Import rawpy, with one thread for each image.

    Raises:
        ImageError: with the class MissingExtra.
    """
    # Workers decode each image in one thread. The OpenMP of rawpy reads this variable when it is loaded.
    with LOADING:
        threads = os.environ.get(THREADS)
        os.environ[THREADS] = "1"
        try:
            return import_extra(("rawpy",), "raw", "Camera raw")
        finally:
            del os.environ[THREADS]
            if threads is not None:
                os.environ[THREADS] = threads


@contextmanager
def open_raw(stream: io.BytesIO) -> Iterator[tuple[ModuleType, Any]]:
    """Open a file without decoding it. Yields rawpy and its image.

    Raises:
        ImageError: with the class MissingExtra, UnsupportedFormat or BrokenImage.
    """
    rawpy = load_library()
    stream.seek(0)
    try:
        with rawpy.imread(stream) as image:
            yield rawpy, image
    except rawpy.LibRawFileUnsupportedError:
        raise unsupported_format("camera raw of this camera or compression") from None
    except rawpy.LibRawError as e:
        problem = e.args[0].decode(errors="replace") if e.args and isinstance(e.args[0], bytes) else str(e)
        raise broken_image(f"camera raw: {problem}") from None


def read_raw_size(stream: io.BytesIO) -> tuple[int, int]:
    """Read (width, height) of the sensor, including its masked border, from the header."""
    with open_raw(stream) as (_, image):
        sizes = image.sizes
        check_dimensions("camera raw", sizes.width, sizes.height)
        return max(sizes.raw_width, sizes.width), max(sizes.raw_height, sizes.height)


def read_raw(stream: io.BytesIO) -> StoredImage:
    """Develop the image.

    Raises:
        ImageError: with the class MissingExtra, UnsupportedFormat or BrokenImage.
    """
    if any(page.end > len(stream.getvalue()) for page in find_raw_pages(stream.getvalue())):
        raise broken_image("camera raw: the file is truncated")
    with open_raw(stream) as (rawpy, image):
        exif = read_exif(rawpy, image, stream)
        bits = int(image.white_level or 0).bit_length()
        orientation = ORIENTATIONS.get(image.sizes.flip, 1)
        pixels: np.ndarray = image.postprocess(
            output_color=rawpy.ColorSpace.sRGB, output_bps=8, gamma=SRGB_GAMMA, use_camera_wb=True, user_flip=0
        )
    is_gray = pixels.ndim == 3 and pixels.shape[2] == 1
    return StoredImage(
        pixels=pixels[..., 0] if is_gray else pixels,
        format="RAW",
        mode="L" if is_gray else "RGB",
        has_alpha=False,
        bit_depth=max(8, bits),
        orientation=orientation,
        exif=exif,
    )


def read_exif(rawpy: ModuleType, image: Any, stream: io.BytesIO) -> bytes | None:
    """Return the EXIF: the file itself if it is a TIFF, else that of the embedded preview."""
    data = stream.getvalue()
    if data[:4] in TIFF_SIGNATURES:
        return data
    try:
        preview = image.extract_thumb()
        if preview.format != rawpy.ThumbFormat.JPEG:
            return None
        with open_with_pillow(io.BytesIO(preview.data), "JPEG") as opened:
            return opened.info.get("exif")
    except (rawpy.LibRawError, OSError, ValueError, SyntaxError):
        return None
