"""The data plane: sources → plan → predict → sink, on Ray Data."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagemill.pipeline.output.latent_dataset import LatentDataset
    from imagemill.pipeline.storage import StorageConfig


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
    """The latents of an OUTPUT or of an export, as float32, with what is known of their images.

    >>> codes = read_latents("out/codes", where="psnr_db > 30")
    >>> codes.numpy().shape, codes.arrow().column_names, codes.ray()

    Args:
        place: folder or s3://bucket/prefix.
        run: rows of this run alone. as_of: the state at the end of a day (YYYY-MM-DD, UTC). model: rows of this model,
            by name or the first digits of its checkpoint's digest. Without any of them: the newest row of each image.
        where: an SQL condition on the columns of a row, as DuckDB understands it.
        columns: of the rows, beside the latent; all when absent.

    Raises: ConfigError for what cannot be read so; StorageError.
    """
    from imagemill.pipeline.output.exports import open_snapshot
    from imagemill.pipeline.output.latent_dataset import LatentDataset
    from imagemill.pipeline.storage import Store

    return LatentDataset(open_snapshot(Store(place, storage), run, as_of, model, where), columns)
