"""Folders with files of many kinds, and the outcome of a run over them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image


def fill(folder: Path, crops: list[np.ndarray]) -> dict[str, str]:
    """Write good and bad files of many kinds; return the expected error class of each ('' for a good file)."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(c) for c in crops]
    good = {
        "a.jpg": images[0],
        "a.png": images[1].crop((0, 0, 77, 51)),
        "_leading/.hidden.png": images[2].crop((3, 3, 4, 4)),
        "deep/er/ünï cödé %41#.jpeg": images[3],
        "gray.png": images[4].convert("L"),
        "alpha.png": images[5].convert("RGBA"),
        "palette.gif": images[6].quantize(16),
        "cmyk.jpg": images[7].convert("CMYK"),
        "tall.webp": images[8].crop((0, 0, 16, 96)),
        "x.tiff": images[9],
    }
    for name, image in good.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    Image.fromarray(crops[10]).save(folder / "turned.jpg", exif=exif_of(6))
    whole = (folder / "a.jpg").read_bytes()
    bad = {"cut.jpg": whole[: len(whole) // 2], "text.jpg": b"this is text", "empty.png": b""}
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    (folder / "notes.txt").write_text("no image")
    classes = {"cut.jpg": "DamagedImage", "text.jpg": "UnknownFormat", "empty.png": "EmptyFile"}
    return dict.fromkeys([*good, "turned.jpg"], "") | classes


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def rows(output: Path, folder: str = "results") -> list[dict]:
    return [row for part in sorted((output / folder).glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def files_below(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
