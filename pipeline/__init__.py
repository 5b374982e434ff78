"""The data plane: sources → plan → engine → worker → sink."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagemill.pipeline.output.latent_dataset import LatentDataset
    from imagemill.pipeline.storage_config import StorageConfig


def read_latents(
    place: str,
    *,
    run: str | None = None,
    as_of: str | None = None,
    model: str | None = None,
    where: str | None = None,
    columns: list[str] | None = None,
    storage: "StorageConfig | None" = None,
) -> "LatentDataset":
    """Return the latents of an output or export as float32, with the columns of their rows.

    >>> codes = read_latents("out/codes", where="psnr_db > 30")
    >>> codes.numpy().shape, codes.arrow().column_names, codes.ray()

    Args:
        place: folder or s3://bucket/prefix.
        run: read only rows of this run.
        as_of: read the state at the end of this day (YYYY-MM-DD, UTC).
        model: read only rows of this model: its name, or the first digits of its checkpoint's digest. Without run, as_of and
            model, the newest row of each image is read.
        where: an SQL condition of DuckDB on the columns of a row.
        columns: columns to read in addition to the latent; default: all.
        storage: how to reach S3.

    Raises:
        ConfigError: when an argument is invalid, or the place holds no latents.
        StorageError: when the place cannot be read.
    """
    from imagemill.pipeline.output.exports import open_snapshot
    from imagemill.pipeline.output.latent_dataset import LatentDataset
    from imagemill.pipeline.storage import Store

    return LatentDataset(open_snapshot(Store(place, storage), run, as_of, model, where), columns)
