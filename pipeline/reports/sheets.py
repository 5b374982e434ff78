"""Pictures of what a run did."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, LABEL = 12, 24


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet and the line below it."""

    rgb: np.ndarray
    """(H,W,3) uint8."""
    label: str


def center_crop(rgb: np.ndarray, side: int) -> np.ndarray:
    """The middle of an image at its own scale, so that noise and blocks can be seen; smaller images as they are."""
    h, w = rgb.shape[:2]
    y, x = max(0, (h - side) // 2), max(0, (w - side) // 2)
    return rgb[y : y + side, x : x + side]


def draw_contact_sheet(columns: list[str], rows: list[list[Tile]], side: int = 256) -> bytes:
    """A PNG with a row of tiles for each image, their middles at 1:1, under headings; rows are as high as their tiles."""
    cropped = [[center_crop(tile.rgb, side) for tile in tiles] for tiles in rows]
    heights = [max((len(rgb) for rgb in tiles), default=0) for tiles in cropped]
    width = MARGIN + len(columns) * (side + MARGIN)
    height = 2 * MARGIN + LABEL + sum(heights) + len(rows) * (LABEL + MARGIN)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    heading, text = ImageFont.load_default(18), ImageFont.load_default(14)
    for number, title in enumerate(columns):
        draw.text((MARGIN + number * (side + MARGIN), MARGIN), title, "black", heading)
    y = 2 * MARGIN + LABEL
    for tiles, pictures, tallest in zip(rows, cropped, heights, strict=True):
        for number, (tile, rgb) in enumerate(zip(tiles, pictures, strict=True)):
            x = MARGIN + number * (side + MARGIN)
            sheet.paste(Image.fromarray(rgb), (x, y))
            draw.text((x, y + tallest + 3), tile.label, "#333333", text)
        y += tallest + LABEL + MARGIN
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()
