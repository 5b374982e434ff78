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


def contact_sheet(columns: list[str], rows: list[list[Tile]], side: int = 256) -> bytes:
    """A PNG with a row of tiles for each image, their middles at 1:1, under column headings."""
    width = MARGIN + len(columns) * (side + MARGIN)
    height = 2 * MARGIN + LABEL + len(rows) * (side + LABEL + MARGIN)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    heading, text = ImageFont.load_default(18), ImageFont.load_default(14)
    for number, title in enumerate(columns):
        draw.text((MARGIN + number * (side + MARGIN), MARGIN), title, "black", heading)
    for line, tiles in enumerate(rows):
        y = 2 * MARGIN + LABEL + line * (side + LABEL + MARGIN)
        for number, tile in enumerate(tiles):
            x = MARGIN + number * (side + MARGIN)
            sheet.paste(Image.fromarray(center_crop(tile.rgb, side)), (x, y))
            draw.text((x, y + side + 3), tile.label, "#333333", text)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()
