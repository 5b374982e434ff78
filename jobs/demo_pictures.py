"""The pictures of the demo: one sheet with a pair for each task, and a sheet for each task with the original photos."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from imagemill.jobs.demo_photos import SIGMA
from imagemill.models.metrics import psnr_db
from imagemill.pipeline.reports.sheets import Tile, draw_contact_sheet

SIDE = 288
"""Side of a tile, in pixels."""
FOCUS = {"astronaut.png": (225, 140), "chelsea.png": (190, 150), "coffee.png": (300, 200), "motorcycle_left.png": (400, 280)}
"""Photo → the pixel (x, y) in the centre of its detail."""


@dataclass(frozen=True)
class Pair:
    """Two tiles of the first sheet, which show what a task does.

    Attributes:
        photo: name of the photo.
        zoom: enlargement of a detail; 0 shows the whole photo.
    """

    photo: str
    zoom: int


PAIRS = {
    "denoise": Pair("chelsea.png", 1),
    "inpaint": Pair("coffee.png", 1),
    "upscale": Pair("astronaut.png", 2),
    "colorize": Pair("rocket.jpg", 0),
    "compress": Pair("motorcycle_left.png", 2),
    "stylize": Pair("coffee.png", 0),
}
"""Task → its pair on the first sheet."""
BEFORE = {
    "compress": "JPEG",
    "denoise": f"noise of sigma {SIGMA:g} added",
    "inpaint": "scratches added",
    "colorize": "colours removed",
    "upscale": "half size, enlarged ×2 by bicubic",
    "stylize": "photo",
}
"""Task → what its pictures show before."""
DETAILS = {
    "compress": ("chelsea.png", "motorcycle_left.png"),
    "denoise": ("astronaut.png", "motorcycle_left.png"),
    "inpaint": ("coffee.png", "astronaut.png"),
    "colorize": ("rocket.jpg", "astronaut.png", "coffee.png"),
    "upscale": ("chelsea.png", "astronaut.png"),
}
"""Task → the photos on its sheet. Those of colorize are shown whole, the others in a detail."""


@dataclass(frozen=True)
class Comparison:
    """What a task got and what it made of it, next to the original: images (H,W,3) uint8.

    Only style transfers may change the size of an image.

    Attributes:
        kilobytes: of the file before and of the latents after, if the task is compress.
    """

    before: np.ndarray
    after: np.ndarray
    original: np.ndarray
    kilobytes: tuple[float, float] | None = None

    def psnr_db(self) -> tuple[float, float]:
        """Return the PSNR in dB before and after."""
        return psnr_db(self.before, self.original), psnr_db(self.after, self.original)

    def labels(self) -> list[str]:
        """Return the lines below the tiles before and after."""
        sizes = [f"{size:.0f} kB, " for size in self.kilobytes] if self.kilobytes else ["", ""]
        return [f"{size}{db:.1f} dB" for size, db in zip(sizes, self.psnr_db(), strict=True)]


def encode_jpeg_of_size(rgb: np.ndarray, size: float) -> bytes:
    """Encode an image (H,W,3) uint8 as the first JPEG, in the order of quality, that is not smaller; at most quality 95."""
    for quality in range(1, 96):
        out = io.BytesIO()
        Image.fromarray(rgb).save(out, "JPEG", quality=quality, optimize=True)
        if out.tell() >= size:
            break
    return out.getvalue()


def crop_detail(rgb: np.ndarray, photo: str, zoom: int) -> np.ndarray:
    """Return the square of SIDE pixels around the focus of a photo; enlarged pixels stay visible as squares."""
    side = SIDE // zoom
    x, y = (
        min(max(0, middle - side // 2), max(0, length - side))
        for middle, length in zip(FOCUS[photo], rgb.shape[1::-1], strict=True)
    )
    return rgb[y : y + side, x : x + side].repeat(zoom, 0).repeat(zoom, 1)


def reduce_whole(rgb: np.ndarray) -> np.ndarray:
    """Return the largest square in the centre of an image, reduced to SIDE pixels."""
    return np.asarray(ImageOps.fit(Image.fromarray(rgb), (SIDE, SIDE), Image.Resampling.LANCZOS))


def draw_pairs(comparisons: dict[str, dict[str, Comparison]]) -> bytes:
    """Draw one pair for each task, two in a row; return a PNG.

    Args:
        comparisons: by task and photo.
    """
    tiles: list[Tile] = []
    for task, pair in PAIRS.items():
        shown = comparisons[task][pair.photo]
        sizes = [f", {size:.0f} kB" for size in shown.kilobytes] if shown.kilobytes else ["", ""]
        for rgb, label in ((shown.before, BEFORE[task] + sizes[0]), (shown.after, f"imagemill {task}{sizes[1]}")):
            tiles.append(Tile(crop_detail(rgb, pair.photo, pair.zoom) if pair.zoom else reduce_whole(rgb), label))
    return draw_contact_sheet([""] * 4, [tiles[i : i + 4] for i in range(0, len(tiles), 4)], SIDE, group=2)


def draw_task(task: str, comparisons: dict[str, Comparison]) -> bytes:
    """Draw the photos of a task before, after, and as they were; return a PNG."""
    lines = []
    for photo in DETAILS[task]:
        shown = comparisons[photo]
        pictures = [shown.before, shown.after, shown.original]
        if task == "colorize":
            pictures = [reduce_whole(rgb) for rgb in pictures]
        else:
            pictures = [crop_detail(rgb, photo, 2 if task == "upscale" else 1) for rgb in pictures]
        lines.append([Tile(rgb, label) for rgb, label in zip(pictures, [*shown.labels(), photo], strict=True)])
    return draw_contact_sheet([BEFORE[task], f"imagemill {task}", "original"], lines, SIDE)


def draw_styles(lines: list[tuple[Tile, Tile, Tile]]) -> bytes:
    """Draw photos, styles and painted photos; return a PNG.

    Args:
        lines: a photo, a style, and the photo in this style.
    """
    tiles = [[Tile(reduce_whole(tile.rgb), tile.label) for tile in line] for line in lines]
    return draw_contact_sheet(["photo", "style", "imagemill stylize"], tiles, SIDE)
