"""Damage in formats other than JPEG that decoders accept without a warning."""

import numpy as np
import pytest
from PIL import Image

from imagemill.pipeline.images.decode import decode_image
from tests.support.jpegs import crop_photo, zero_out
from tests.support.sample_images import decode_error_class, encode_as

WRITERS = {
    "AVIF": {"quality": 90, "speed": 8},
    "AVIF with EXIF": {"quality": 90, "speed": 8, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(2000)},
    "JPEG2000": {},
    "JPEG2000 codestream": {"no_jp2": True},
    "JPEG2000 layers": {"quality_layers": [40, 20, 1]},
    "JPEG2000 lossy": {"irreversible": True, "quality_layers": [10]},
}


def encode_format(image: Image.Image, name: str) -> bytes:
    return encode_as(image, name.partition(" ")[0], **WRITERS[name])


@pytest.mark.parametrize("name", WRITERS)
def test_zero_sector_is_damage(name: str) -> None:
    """A sector of 512 bytes was never written, at positions all over the image data."""
    data = encode_format(Image.fromarray(crop_photo(300, 200)), name)
    for offset in range(len(data) // 4, len(data) - 600, len(data) // 7):
        damaged_data = zero_out(data, offset, 512)
        assert decode_error_class(damaged_data) in ("DamagedImage", "BrokenImage", "UnknownFormat")
    assert decode_error_class(zero_out(data, len(data) // 2, len(data))) in ("DamagedImage", "BrokenImage")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", ["black", "white", "stripes", "half noise"])
def test_flat_image_is_not_damage(name: str, kind: str) -> None:
    """An image that compresses to almost nothing is intact."""
    rgb = np.zeros((400, 500, 3), np.uint8)
    if kind == "white":
        rgb += 255
    elif kind == "stripes":
        rgb[(np.arange(400) // 7 % 2) > 0] = 255
    elif kind == "half noise":
        rgb[200:] = np.random.default_rng(0).integers(0, 256, (200, 500, 3), dtype=np.uint8)
    assert not decode_image(encode_format(Image.fromarray(rgb), name)).is_damaged
    for options in ({}, {"optimize": True}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 5}):
        for colours in ("RGB", "L", "CMYK"):
            assert not decode_image(encode_as(Image.fromarray(rgb).convert(colours), "JPEG", **options)).is_damaged
