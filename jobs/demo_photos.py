"""The inputs of the demo: photos that scikit-image ships, and degraded copies of them."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imagemill.jobs.paintings import PAINTINGS
from imagemill.models.damage import drop_strokes
from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.output.file_record import FileRecord

PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "color.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
    "motorcycle_right.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
SHOWN = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
"""Photos that the pictures of the demo show."""
PAINTED = ("chelsea.png", "coffee.png", "rocket.jpg")
"""Photos of the style transfers."""
SIGMA = 25.0
"""Standard deviation of the added noise, in 8-bit levels."""
SCRATCHES = 24
Degradation = Callable[[np.ndarray, int], np.ndarray]
"""Returns a degraded copy (H,W,3) uint8 of a photo; the number of the photo is the seed."""


def read_rgb(path: Path) -> np.ndarray:
    """Read an image file as (H,W,3) uint8."""
    return decode_image(path.read_bytes()).rgb


def add_noise(rgb: np.ndarray, seed: int) -> np.ndarray:
    """Add Gaussian noise."""
    noise = np.random.default_rng(seed).normal(0, SIGMA, rgb.shape)
    noisy: np.ndarray = (rgb + noise).clip(0, 255).round().astype(np.uint8)
    return noisy


def draw_scratches(rgb: np.ndarray, seed: int) -> np.ndarray:
    """Return a mask (H,W) uint8 of scratches: 255 where the photo is lost, else 0."""
    is_intact = drop_strokes(rgb.shape[0], rgb.shape[1], SCRATCHES, torch.Generator().manual_seed(seed))
    mask: np.ndarray = (~is_intact).numpy().astype(np.uint8) * 255
    return mask


def add_scratches(rgb: np.ndarray, seed: int) -> np.ndarray:
    """Paint scratches in white."""
    return np.where(draw_scratches(rgb, seed)[..., None] > 0, np.uint8(255), rgb)


def remove_colours(rgb: np.ndarray, seed: int) -> np.ndarray:
    """Return the luma in all three channels."""
    return np.asarray(Image.fromarray(rgb).convert("L").convert("RGB"))


def halve(rgb: np.ndarray, seed: int) -> np.ndarray:
    """Reduce to half the width and height, without the last row or column of an odd number."""
    h, w = (n // 2 for n in rgb.shape[:2])
    return np.asarray(Image.fromarray(rgb[: 2 * h, : 2 * w]).resize((w, h), Image.Resampling.BICUBIC))


DEGRADATIONS: dict[str, Degradation] = {
    "noisy": add_noise, "damaged": add_scratches, "gray": remove_colours, "small": halve
}  # fmt: skip
"""Folder of degraded copies → how they are made."""
PHOTO_FILES = [*(f"to_paint/{name}" for name in PAINTED), *(f"styles/{name}" for name in PAINTINGS)]
"""Files that every demo writes again; existing photos and degraded copies stay as they are."""


def write_photos(folder: Path, record: FileRecord) -> None:
    """Write the photos, one broken file, degraded copies as PNG, and images for the style transfer.

    Args:
        folder: folder of the demo.
        record: where PHOTO_FILES are announced.
    """
    photos = folder / "photos"
    for name in ("photos", *DEGRADATIONS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    package = files("skimage.data")
    for number, name in enumerate(PHOTOS):
        if not (photos / name).exists():
            (photos / name).write_bytes(package.joinpath(name).read_bytes())
        for kind, degrade in DEGRADATIONS.items():
            copy = (folder / kind / name).with_suffix(".png")
            if copy.exists() or (kind != "noisy" and name not in SHOWN):
                continue
            rgb = read_rgb(photos / name)
            copy.write_bytes(encode_rgb(degrade(rgb, number), "PNG"))
            if kind == "damaged":
                Image.fromarray(draw_scratches(rgb, number)).save(copy.with_suffix(".mask.png"))
    for name in PAINTED:
        record.write(f"to_paint/{name}", (photos / name).read_bytes())
    for name, paint in PAINTINGS.items():
        record.write(f"styles/{name}", encode_rgb(paint(), "PNG"))
    if not (photos / "broken.jpg").exists():
        content = package.joinpath("rocket.jpg").read_bytes()
        (photos / "broken.jpg").write_bytes(content[: len(content) // 2])
