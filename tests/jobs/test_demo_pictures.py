"""The pictures of the demo show what a task got and what it made of it."""

import io

import numpy as np
import pytest
from PIL import Image

from imagemill.jobs.demo_pictures import DETAILS, PAIRS, SIDE, Comparison, draw_pairs, draw_task, encode_jpeg_of_size
from imagemill.pipeline.reports.sheets import Tile, draw_contact_sheet
from tests.support.jpegs import crop_photo


def flat(level: int) -> np.ndarray:
    return np.full((500, 700, 3), (level, 0, 0), np.uint8)


@pytest.mark.parametrize("size", [10, 2000, 4000])
def test_jpeg_of_size_is_the_first_that_is_not_smaller(size):
    rgb = crop_photo(160, 120)
    quality = 1
    while len(save_jpeg(rgb, quality)) < size:
        quality += 1
    assert encode_jpeg_of_size(rgb, size) == save_jpeg(rgb, quality)


def test_jpeg_of_size_ends_at_quality_95():
    rgb = crop_photo(160, 120)
    assert encode_jpeg_of_size(rgb, 1e6) == save_jpeg(rgb, 95)


def save_jpeg(rgb: np.ndarray, quality: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()


def test_sheets_show_every_task_before_and_after():
    results = Comparison(flat(40), flat(90), flat(200), (12, 11))
    pairs = read_png(draw_pairs({task: {pair.photo: results} for task, pair in PAIRS.items()}))
    assert count(pairs, 40) == count(pairs, 90) == len(PAIRS) * SIDE**2
    for task, names in DETAILS.items():
        sheet = read_png(draw_task(task, dict.fromkeys(names, results)))
        assert count(sheet, 40) == count(sheet, 90) == count(sheet, 200) == len(names) * SIDE**2


def test_contact_sheet_separates_groups_of_columns():
    tiles = [Tile(np.zeros((20, 20, 3), np.uint8), "")] * 4
    columns = [
        np.flatnonzero((read_png(draw_contact_sheet([""] * 4, [tiles], 20, group)) == 0).all(2).any(0)) for group in (0, 2)
    ]
    gaps = [np.diff(line)[np.diff(line) > 1] for line in columns]
    assert len(set(gaps[0])) == 1
    assert gaps[1][0] == gaps[1][2] == gaps[0][0] < gaps[1][1]


def test_contact_sheet_refuses_tiles_without_a_column():
    tiles = [Tile(np.zeros((20, 20, 3), np.uint8), "")] * 3
    with pytest.raises(IndexError):
        draw_contact_sheet(["", ""], [tiles], 20)


def read_png(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def count(sheet: np.ndarray, level: int) -> int:
    return int((sheet == (level, 0, 0)).all(2).sum())
