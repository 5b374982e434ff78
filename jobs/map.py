"""Draw the images of an output as a map: one self-contained HTML page with clusters and outliers."""

import io
from datetime import UTC, datetime
from typing import Any

import numpy as np
from PIL import Image

from imagemill.jobs.comparison import load_comparable, raise_damaged
from imagemill.jobs.console import number, print_text
from imagemill.jobs.result_file import ResultFile
from imagemill.pipeline.progress import with_progress
from imagemill.pipeline.reports.image_map import ImageMap, build_map
from imagemill.pipeline.reports.page import TEMPLATES, data_url, render_page
from imagemill.pipeline.reports.thumbnails import decode_thumbnails
from imagemill.pipeline.storage import Store

COLUMNS = ["image_id", "rel_path", "orig_width", "orig_height", "psnr_db", "bits_per_pixel"]
THUMBNAIL_SIDE, JPEG_QUALITY = 96, 70
WIDTH, HEIGHT, MARGIN = 1000, 640, 34
"""Size of the map in SVG units."""
IMAGES_LISTED = 12


def write_map(output: Store, page: str, method: str, overwrite: bool = False) -> None:
    """Write the map of an output, and print what it shows.

    Args:
        output: the output to draw.
        page: the HTML file to write.
        method: a key of `image_map.METHODS`.
        overwrite: replace a file that imagemill did not write.

    Raises:
        ConfigError: when the method is unknown or not installed, or the page cannot be written.
        StorageError: when the output does not exist or cannot be read.
        VerificationError: after writing, when damaged latents were left out.
    """
    target = ResultFile(page, overwrite)
    images = load_comparable(output)
    problems: list[str] = []
    drawn = build_map(images, COLUMNS, method, problems)
    state = images.select("image_id", [row["image_id"] for row in drawn.rows])
    thumbnail_rows = decode_thumbnails(state, images.coder, ["image_id"], THUMBNAIL_SIDE, [])
    decoded = with_progress("map: thumbnails", thumbnail_rows, len(state), lambda _: 1)
    pictures = {row["image_id"]: encode_thumbnail(rgb) for row, rgb in decoded}
    script = (TEMPLATES / "map.js").read_text()
    html = render_page("map.html", page_values(drawn, pictures, images.state.output.url, len(images.state)), script)
    target.write(html)
    count = number(len(drawn.rows), "image")
    if len(drawn.rows) < len(images.state):
        count += f" (a random sample of {len(images.state):,})"
    print_text(f"{page}: {count}, {number(len(drawn.typical), 'cluster')}, {len(html) / 1e6:.1f} MB")
    print_text(f"{drawn.method}")
    raise_damaged(problems)


def encode_thumbnail(rgb: np.ndarray) -> dict[str, Any]:
    """Return a picture (H,W,3) uint8 as a data URL, with its width and height."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return {"url": data_url(out.getvalue(), "jpeg"), "width": rgb.shape[1], "height": rgb.shape[0]}


def page_values(drawn: ImageMap, pictures: dict[str, dict[str, Any]], url: str, images: int) -> dict[str, object]:
    """Return the values of the template map.html.

    Args:
        drawn: the images and their positions.
        pictures: the result of `encode_thumbnail` by image_id.
        url: the output.
        images: the number of images in the output, of which `drawn` may be a sample.
    """
    positions = MARGIN + drawn.positions * (np.array([WIDTH, HEIGHT]) - 2 * MARGIN)
    points = [
        row
        | pictures[row["image_id"]]
        | {
            "x": round(float(x), 1),
            "y": round(HEIGHT - float(y), 1),
            "cluster": int(cluster),
            "is_outside": bool(is_outside),
            "neighbours": " ".join(map(str, neighbours)),
            "similarity": float(similarity),
        }
        for row, (x, y), cluster, is_outside, neighbours, similarity in zip(
            drawn.rows, positions, drawn.cluster, drawn.outside, drawn.neighbours, drawn.similarity, strict=True
        )
    ]
    sizes = np.bincount(drawn.cluster, minlength=len(drawn.typical))
    measured = [n for n, row in enumerate(drawn.rows) if row["psnr_db"] is not None]
    return {
        "points": points,
        "clusters": [{"point": n, "size": int(size)} for n, size in zip(drawn.typical, sizes, strict=True)],
        "outliers": np.argsort(drawn.similarity, kind="stable")[:IMAGES_LISTED].tolist() if len(points) > 1 else [],
        "lowest_psnr": sorted(measured, key=lambda n: drawn.rows[n]["psnr_db"])[:IMAGES_LISTED],
        "url": url,
        "images": images,
        "method": drawn.method,
        "width": WIDTH,
        "height": HEIGHT,
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
