"""The images of an OUTPUT as a map: one HTML page that stands by itself."""

import io
from datetime import UTC, datetime
from typing import Any

import numpy as np
from PIL import Image

from imagemill.jobs.console import console, number
from imagemill.jobs.search import comparable, raise_damaged
from imagemill.jobs.target import Target
from imagemill.pipeline.progress import with_progress
from imagemill.pipeline.reports.atlas import Atlas, atlas
from imagemill.pipeline.reports.page import TEMPLATES, data_url, draw
from imagemill.pipeline.reports.thumbnails import thumbnails
from imagemill.pipeline.storage import Store

ROW = ["image_id", "rel_path", "orig_width", "orig_height", "psnr_db", "bits_per_pixel"]
SIDE, QUALITY = 96, 70
WIDTH, HEIGHT, EDGE = 1000, 640, 34
"""Of the map, in its own units."""
LISTED = 12


def write_map(output: Store, page: str, method: str, overwrite: bool = False) -> None:
    """Write the page, and say what is on it.

    Args: overwrite: replace a file that imagemill did not write.

    Raises: ConfigError, StorageError; VerificationError at the end when latents were left out as they are damaged.
    """
    target = Target(page, overwrite)
    these = comparable(output)
    problems: list[str] = []
    found = atlas(these, ROW, method, problems)
    shown = these.select("image_id", [row["image_id"] for row in found.rows])
    drawn = with_progress("map: thumbnails", thumbnails(shown, these.coder, ["image_id"], SIDE, []), len(shown), lambda _: 1)
    pictures = {row["image_id"]: picture(rgb) for row, rgb in drawn}
    html = draw("map.html", contents(found, pictures, these.state.output.url, len(these.state)), script())
    target.write(html)
    count = (
        number(len(found.rows), "image")
        if len(found.rows) == len(these.state)
        else (f"{len(found.rows):,} images, drawn at random from {len(these.state):,}")
    )
    console.print(f"{page}: {count}, {number(len(found.typical), 'cluster')}, {len(html) / 1e6:.1f} MB; {found.method}")
    raise_damaged(problems)


def script() -> str:
    return (TEMPLATES / "map.js").read_text()


def picture(rgb: np.ndarray) -> dict[str, Any]:
    """A thumbnail as the page holds it."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=QUALITY, optimize=True)
    return {"url": data_url(out.getvalue(), "jpeg"), "width": rgb.shape[1], "height": rgb.shape[0]}


def contents(found: Atlas, pictures: dict[str, dict[str, Any]], url: str, images: int) -> dict[str, object]:
    """What the template shows."""
    places = EDGE + found.places * (np.array([WIDTH, HEIGHT]) - 2 * EDGE)
    points = [
        row
        | pictures[row["image_id"]]
        | {
            "x": round(float(x), 1),
            "y": round(HEIGHT - float(y), 1),
            "cluster": int(cluster),
            "near": " ".join(map(str, near)),
            "alike": float(alike),
        }
        for row, (x, y), cluster, near, alike in zip(found.rows, places, found.cluster, found.near, found.alike, strict=True)
    ]
    sizes = np.bincount(found.cluster, minlength=len(found.typical))
    known = [n for n, row in enumerate(found.rows) if row["psnr_db"] is not None]
    return {
        "points": points,
        "clusters": [{"point": n, "size": int(size)} for n, size in zip(found.typical, sizes, strict=True)],
        "alone": np.argsort(found.alike, kind="stable")[:LISTED].tolist() if len(points) > 1 else [],
        "poorest": sorted(known, key=lambda n: found.rows[n]["psnr_db"])[:LISTED],
        "url": url,
        "images": images,
        "method": found.method,
        "width": WIDTH,
        "height": HEIGHT,
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
