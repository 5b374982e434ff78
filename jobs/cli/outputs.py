"""Commands that look at an OUTPUT, or make something of it."""

from typing import Annotated

import typer

from imagemill.jobs.cli.options import Json, OutputArgument, Overwrite, Run, Sheet, Storage, store
from imagemill.pipeline.errors import ConfigError


def status(output: OutputArgument, as_json: Json = False, config: Storage = None) -> None:
    """What OUTPUT holds and how its last runs ended."""
    from imagemill.jobs.status import show_status

    show_status(store(output, config), as_json)


def verify(output: OutputArgument, as_json: Json = False, config: Storage = None) -> None:
    """Check OUTPUT against itself: rows, files, digests, latents, checkpoints. Exit 6 when something is wrong."""
    from imagemill.jobs.verify import show_verified

    show_verified(store(output, config), as_json)


def failures(
    output: OutputArgument,
    by_reason: Annotated[bool, typer.Option("--by-reason", help="count them by stage and class")] = False,
    export: Annotated[
        str | None, typer.Option("--export", help="write them to a file", metavar="FILE.csv|.jsonl|.parquet")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    config: Storage = None,
) -> None:
    """List the rejects with their reasons; `--retry-failed` on a run processes them again."""
    from imagemill.jobs.failures import show_failures

    show_failures(store(output, config), by_reason, export, overwrite, as_json)


def report(
    output: OutputArgument,
    run: Annotated[str | None, typer.Option("--run", help="the last one when absent", metavar="ID")] = None,
    config: Storage = None,
) -> None:
    """Make the report.html of a run anew."""
    from imagemill.jobs.report import show_report

    show_report(store(output, config), run)


def decode(
    output: OutputArgument,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="folder or s3://bucket/prefix for the images")],
    where: Annotated[
        str | None, typer.Option("--where", help='only rows for which this holds, as in "psnr_db < 30"', metavar="SQL")
    ] = None,
    overwrite: Overwrite = False,
    config: Storage = None,
) -> None:
    """Turn the latents of OUTPUT, or of an export of it, back into PNG images."""
    from imagemill.jobs.decode import decode_output

    decode_output(store(output, config), store(dest, config), where, overwrite)


def export(
    output: OutputArgument,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="empty folder or s3://bucket/prefix")],
    run: Run = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", help="the state at the end of a day, or at a time, in UTC", metavar="DATE")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="rows of this model: name, or digest of a checkpoint")] = None,
    columns: Annotated[str | None, typer.Option("--columns", help="instead of all", metavar="NAME,NAME")] = None,
    pool: Annotated[
        str, typer.Option("--pool", help="of the column embedding: none, mean, gem, flatten; likeness: that of search")
    ] = "mean",
    format_: Annotated[str, typer.Option("--format", help="parquet, npy, lance or webdataset")] = "parquet",
    config: Storage = None,
) -> None:
    """Write the latents of OUTPUT, as float32, and all that is known of their images, for other tools."""
    from imagemill.jobs.export import show_export

    if run and as_of:
        raise ConfigError("--run and --as-of: one of them at a time")
    names = [name.strip() for name in columns.split(",")] if columns else None
    what = {"run": run, "as_of": as_of, "model": model, "columns": names, "pool": pool, "form": format_}
    show_export(store(output, config), store(dest, config), **what)


def stats(
    output: OutputArgument,
    run: Run = None,
    against: Annotated[str | None, typer.Option("--against", help="a run to compare with", metavar="RUN")] = None,
    as_json: Json = False,
    config: Storage = None,
) -> None:
    """Mean and deviation of each latent channel, of all rows of a run, and how far runs drifted from each other."""
    from imagemill.jobs.stats import show_stats

    show_stats(store(output, config), run, against, as_json)


def search(
    output: OutputArgument,
    image: Annotated[str | None, typer.Option("--image", help="image to find the like of", metavar="FILE|URL")] = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="one of OUTPUT's own instead: image_id or rel_path", metavar="IMAGE")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="how many", min=1)] = 10,
    sheet: Sheet = None,
    overwrite: Overwrite = False,
    config: Storage = None,
) -> None:
    """Find the images of OUTPUT that are most like one, by their latents."""
    from imagemill.jobs.search import show_search

    show_search(store(output, config), image, id_, k, sheet, overwrite)


def duplicates(
    output: OutputArgument,
    threshold: Annotated[
        float,
        typer.Option("--threshold", help="least similarity of a copy; higher finds fewer and surer ones", min=0, max=1),
    ] = 0.8,
    export: Annotated[
        str | None,
        typer.Option("--export", help="write them to a file, instead of a table", metavar="FILE.csv|.jsonl|.parquet"),
    ] = None,
    sheet: Sheet = None,
    overwrite: Overwrite = False,
    config: Storage = None,
) -> None:
    """Find the images of OUTPUT that are copies of each other: resized, recompressed, cropped, mirrored."""
    from imagemill.jobs.duplicates import show_duplicates

    show_duplicates(store(output, config), threshold, export, sheet, overwrite)


def map_(
    output: OutputArgument,
    page: Annotated[str, typer.Argument(metavar="PAGE.html", help="file to write")] = "map.html",
    method: Annotated[str, typer.Option("--method", help="pca, or umap where umap-learn is installed")] = "pca",
    overwrite: Overwrite = False,
    config: Storage = None,
) -> None:
    """Draw the images of OUTPUT as a map in one HTML page: clusters, outliers, thumbnails."""
    from imagemill.jobs.map import write_map

    write_map(store(output, config), page, method, overwrite)
