"""Find the images of an output that are most similar to one image: a table, and a sheet of pictures."""

from dataclasses import dataclass

import numpy as np

from imagemill.jobs.comparison import SIDE, load_comparable, load_pictures, raise_damaged, shorten
from imagemill.jobs.console import print_table, print_text
from imagemill.jobs.result_file import result_file
from imagemill.models.resizing import limit_side
from imagemill.pipeline.errors import ConfigError, VerificationError
from imagemill.pipeline.output.neighbours import Collection, find_nearest
from imagemill.pipeline.output.style_images import read_image
from imagemill.pipeline.reports.sheets import Tile, draw_contact_sheet
from imagemill.pipeline.reports.thumbnails import decode_thumbnails
from imagemill.pipeline.storage import Store

COLUMNS = ["image_id", "rel_path", "source_uri", "orig_width", "orig_height"]
TILES_PER_ROW = 4


@dataclass(frozen=True)
class Query:
    """The image to compare with."""

    features: np.ndarray
    """(1,F)."""
    picture: np.ndarray
    """(H,W,3) uint8, for the sheet."""
    image_id: str | None
    """None for an image that is not in the output."""


def show_search(
    output: Store, image: str | None, id_: str | None, k: int, sheet: str | None = None, overwrite: bool = False
) -> None:
    """Print the k images of an output that are most similar to one image, and draw them on a sheet.

    Args:
        output: the output to search.
        image: file or URL of the image to compare with.
        id_: instead of `image`, the image_id or rel_path of an image of the output; the result does not contain it.
        k: the number of images.
        sheet: PNG file to draw the images on.
        overwrite: replace a sheet that imagemill did not write.

    Raises:
        ConfigError: when the image is missing or unreadable, or the sheet cannot be written.
        StorageError: when the output does not exist or cannot be read.
        VerificationError: after printing, when damaged latents were left out.
    """
    if (image is None) == (id_ is None):
        raise ConfigError("search: give either --image FILE or --id IMAGE")
    target = result_file(sheet, overwrite)
    images = load_comparable(output)
    problems: list[str] = []
    query = query_from_file(images, image) if image else query_from_output(images, str(id_))
    whiten, batches = images.vectors(COLUMNS, problems)
    similar = find_nearest(whiten(query.features), batches, k + bool(query.image_id)).to_pylist()
    rows = [row for row in similar if row["image_id"] != query.image_id][:k]
    cells = []
    for rank, row in enumerate(rows, 1):
        size = f"{row['orig_width']}×{row['orig_height']}"
        cells.append([str(rank), f"{row['similarity']:.3f}", row["rel_path"], size, row["source_uri"]])
    print_table(["rank", "similarity", "image", "size", "source"], cells)
    if target:
        pictures = load_pictures(images, [row["image_id"] for row in rows])
        tiles = [Tile(query.picture, "query")]
        for row in rows:
            if row["image_id"] in pictures:
                label = f"{row['similarity']:.2f}  {shorten(row['rel_path'])}"
                tiles.append(Tile(pictures[row["image_id"]], label))
        tile_rows = [tiles[start : start + TILES_PER_ROW] for start in range(0, len(tiles), TILES_PER_ROW)]
        target.write(draw_contact_sheet(["most similar first", *[""] * (TILES_PER_ROW - 1)], tile_rows, SIDE))
        print_text(f"sheet: {target.path}")
    raise_damaged(problems)


def query_from_file(images: Collection, image: str) -> Query:
    """Compute the features of an image file with the model of the output. Raises ConfigError when it is unreadable."""
    _, rgb = read_image(f"--image {image}", image, images.state.output.config, None, images.pixels)
    return Query(images.features_of(rgb), limit_side(rgb, SIDE), None)


def query_from_output(images: Collection, name: str) -> Query:
    """Read the features of an image of the output.

    Raises:
        ConfigError: when no image has this image_id or rel_path.
        VerificationError: when the latent of the image is damaged.
    """
    for column in ("image_id", "rel_path"):
        state = images.select(column, [name])
        if len(state):
            problems: list[str] = []
            for row, rgb in decode_thumbnails(state, images.coder, ["image_id"], SIDE, problems):
                [(_, features)] = images.with_state(state).features(["image_id"], problems)
                return Query(features, rgb, row["image_id"])
            raise VerificationError("; ".join(problems))
    raise ConfigError(f"--id {name}: no image of {images.state.output.url} has this image_id or rel_path")
