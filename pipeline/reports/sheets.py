"""Draw pictures side by side on one sheet."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, LABEL, GAP = 12, 24, 32
"""Pixels between the tiles, pixels for a line of text, and additional pixels between groups of columns."""


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet, and the line below the picture."""

    rgb: np.ndarray
    """(H,W,3) uint8."""
    label: str


def center_crop(rgb: np.ndarray, side: int) -> np.ndarray:
    """Return the center of an image, not resized, so that noise and block edges stay visible."""
    h, w = rgb.shape[:2]
    y, x = max(0, (h - side) // 2), max(0, (w - side) // 2)
    return rgb[y : y + side, x : x + side]


def draw_contact_sheet(columns: list[str], rows: list[list[Tile]], side: int = 256, group: int = 0) -> bytes:
    """Draw a PNG with rows of center crops.

    Args:
        columns: the heading of each column; without any text, the sheet has no line of headings.
        rows: the tiles of each row, at most one for each column; a row is as high as its highest tile.
        side: largest side of a crop, in pixels.
        group: number of neighbouring columns that belong together; wider gaps separate the groups. 0: no groups.
    """
    cropped = [[center_crop(tile.rgb, side) for tile in tiles] for tiles in rows]
    heights = [max((len(rgb) for rgb in tiles), default=0) for tiles in cropped]
    lefts = [MARGIN + number * (side + MARGIN) + (number // group * GAP if group else 0) for number in range(len(columns))]
    top = 2 * MARGIN + LABEL if any(columns) else MARGIN
    width = lefts[-1] + side + MARGIN
    height = top + sum(heights) + len(rows) * (LABEL + MARGIN)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    heading, text = ImageFont.load_default(18), ImageFont.load_default(14)
    for x, title in zip(lefts, columns, strict=True):
        draw.text((x, MARGIN), title, "black", heading)
    y = top
    for tiles, pictures, highest in zip(rows, cropped, heights, strict=True):
        for column, (tile, rgb) in enumerate(zip(tiles, pictures, strict=True)):
            sheet.paste(Image.fromarray(rgb), (lefts[column], y))
            draw.text((lefts[column], y + highest + 3), tile.label, "#333333", text)
        y += highest + LABEL + MARGIN
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()
