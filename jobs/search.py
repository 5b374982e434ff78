"""The images of an OUTPUT that are nearest to one: a table, and a sheet of pictures."""

import numpy as np
from rich.table import Table
from rich.text import Text

from imagemill.jobs.console import console, number
from imagemill.jobs.outputs import check_exists
from imagemill.jobs.target import target_of
from imagemill.models.resizing import limit_side
from imagemill.pipeline.errors import ConfigError, VerificationError, first_of
from imagemill.pipeline.images.config import MAX_PIXELS
from imagemill.pipeline.output.neighbours import Collection, find_nearest, load_collection
from imagemill.pipeline.output.style_images import read_image
from imagemill.pipeline.reports.sheets import Tile, contact_sheet
from imagemill.pipeline.reports.thumbnails import thumbnails
from imagemill.pipeline.storage import Store

ROW = ["image_id", "rel_path", "source_uri", "orig_width", "orig_height"]
SIDE, ACROSS, LETTERS = 256, 4, 28


def show_search(
    output: Store, image: str | None, id_: str | None, k: int, sheet: str | None = None, overwrite: bool = False
) -> None:
    """Print the k images of OUTPUT nearest to an image file, or to one of its own, and draw them.

    Args:
        id_: image_id or rel_path of one of its own, which is left out of what is found.
        overwrite: replace a sheet that imagemill did not write.

    Raises: ConfigError, StorageError; VerificationError at the end when latents were left out as they are damaged.
    """
    if (image is None) == (id_ is None):
        raise ConfigError("search: either --image FILE or --id IMAGE_ID")
    target = target_of(sheet, overwrite)
    these = comparable(output)
    problems: list[str] = []
    query, picture, own = of_file(these, image) if image else of_own(these, str(id_))
    whiten, batches = these.vectors(ROW, problems)
    found = find_nearest(whiten(query), batches, k + bool(own)).to_pylist()
    found = [row for row in found if row["image_id"] != own][:k]
    table = Table("rank", "similarity", "image", "size", "source", box=None)
    for rank, row in enumerate(found, 1):
        size = f"{row['orig_width']}×{row['orig_height']}"
        table.add_row(str(rank), f"{row['similarity']:.3f}", Text(row["rel_path"]), size, Text(row["source_uri"]))
    console.print(table)
    if target:
        pictures = pictures_of(these, [row["image_id"] for row in found])
        tiles = [Tile(picture, "query")]
        for row in found:
            if row["image_id"] in pictures:
                label = f"{row['similarity']:.2f}  {shortened(row['rel_path'])}"
                tiles.append(Tile(pictures[row["image_id"]], label))
        rows = [tiles[start : start + ACROSS] for start in range(0, len(tiles), ACROSS)]
        target.write(contact_sheet(["nearest first", *[""] * (ACROSS - 1)], rows, SIDE))
        console.print(f"sheet: {target.path}")
    raise_damaged(problems)


def comparable(output: Store) -> Collection:
    """What can be compared; says what cannot."""
    check_exists(output)
    these = load_collection(output)
    if these.others:
        console.print(f"left out, as another model or other parameters made them: {'; '.join(these.others)}")
    return these


def raise_damaged(problems: list[str]) -> None:
    """Raises: VerificationError when latents were left out, as they are not what was written."""
    if problems:
        raise VerificationError(f"{number(len(problems), 'image')} left out: {first_of(problems)}")


def of_file(these: Collection, image: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Features (1,F) and picture of a file. Raises: ConfigError when it cannot be read."""
    _, rgb = read_image(f"--image {image}", image, these.state.output.config, MAX_PIXELS, these.pixels)
    return these.features_of(rgb), limit_side(rgb, SIDE), ""


def of_own(these: Collection, name: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Features (1,F), picture and image_id of one of the images. Raises: ConfigError when there is none of this name."""
    for column in ("image_id", "rel_path"):
        state = these.select(column, [name])
        if len(state):
            problems: list[str] = []
            for row, rgb in thumbnails(state, these.coder, ["image_id"], SIDE, problems):
                [(_, features)] = these.with_state(state).features(["image_id"], problems)
                return features, rgb, row["image_id"]
            raise VerificationError("; ".join(problems))
    raise ConfigError(f"--id {name}: no image of {these.state.output.url} has this image_id or rel_path")


def pictures_of(these: Collection, ids: list[str]) -> dict[str, np.ndarray]:
    """Pictures (H,W,3) uint8 of images, by image_id; without those whose latents are damaged."""
    state = these.select("image_id", ids)
    if not len(state):
        return {}
    return {row["image_id"]: rgb for row, rgb in thumbnails(state, these.coder, ["image_id"], SIDE, [])}


def shortened(name: str) -> str:
    """The end of a name, as a label has room for."""
    return name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}"
