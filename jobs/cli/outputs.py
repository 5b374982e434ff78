"""Commands that inspect an OUTPUT, or analyse what it holds."""

from typing import Annotated

import typer

from imagemill.jobs.cli.options import Json, Overwrite, ReadOutput, RunId, Sheet, Storage, store_at
from imagemill.pipeline.errors import ConfigError

EXPORT_HELP = "Write the table to this file instead: .csv, .jsonl or .parquet."


def status(output: ReadOutput, as_json: Json = False, config: Storage = None) -> None:
    """Show what OUTPUT holds, how its last runs ended, and whether a run is active."""
    from imagemill.jobs.status import show_status

    show_status(store_at(output, config), as_json)


def verify(output: ReadOutput, as_json: Json = False, config: Storage = None) -> None:
    """Check that rows, files, digests, latents and checkpoints of OUTPUT agree. Exits with 6 if they do not."""
    from imagemill.jobs.verify import show_verified

    show_verified(store_at(output, config), as_json)


def failures(
    output: ReadOutput,
    by_reason: Annotated[bool, typer.Option("--by-reason", help="Count the rejects by stage and class.")] = False,
    export: Annotated[str | None, typer.Option("--export", help=EXPORT_HELP, metavar="FILE")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    config: Storage = None,
) -> None:
    """List the images that failed, with the reasons. A run with --retry-failed processes them again."""
    from imagemill.jobs.failures import show_failures

    show_failures(store_at(output, config), by_reason, export, overwrite, as_json)


def report(
    output: ReadOutput,
    run_id: Annotated[
        str | None, typer.Option("--run-id", help="Report on this run. Default: the last one.", metavar="ID")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", help="Write the report to this local file instead, to open or send it.", metavar="PAGE.html"),
    ] = None,
    overwrite: Overwrite = False,
    config: Storage = None,
) -> None:
    """Write the report.html of a run again, or with --to a copy that any browser opens."""
    from imagemill.jobs.report import show_report

    show_report(store_at(output, config), run_id, to, overwrite)


def prune(
    output: ReadOutput,
    path: Annotated[
        list[str] | None,
        typer.Option(
            "--path",
            help="Remove the image of this path instead, or all that match a pattern such as drafts/. Repeatable.",
            metavar="GLOB",
        ),
    ] = None,
    id_: Annotated[
        list[str] | None, typer.Option("--id", help="Remove the image of this image_id instead. Repeatable.", metavar="ID")
    ] = None,
    old_versions: Annotated[
        bool, typer.Option("--old-versions", help="Remove all versions of each image but the newest instead.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove. Without this option, only print what would go.")] = False,
    config: Storage = None,
) -> None:
    """Remove rows, files and rejects of images that left the input. Prints what would go, and removes with --yes."""
    from imagemill.jobs.prune import show_prune

    show_prune(store_at(output, config), id_ or (), path or (), old_versions, yes)


def decode(
    output: ReadOutput,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Write the images to a folder or s3://bucket/prefix.")],
    where: Annotated[
        str | None,
        typer.Option("--where", help='Decode only rows that match this condition, such as "psnr_db < 30".', metavar="SQL"),
    ] = None,
    overwrite: Overwrite = False,
    config: Storage = None,
) -> None:
    """Decode the latents of OUTPUT, or of an export of OUTPUT, to PNG images."""
    from imagemill.jobs.decode import decode_output

    decode_output(store_at(output, config), store_at(dest, config), where, overwrite)


def export(
    output: ReadOutput,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Write the export to this folder or s3://bucket/prefix.")],
    run_id: RunId = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            "--as-of", help="Export the rows as they were at the end of this day, or at this time (UTC).", metavar="DATE"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Export only rows of this model: its name, or the digest of a checkpoint.", metavar="MODEL"
        ),
    ] = None,
    columns: Annotated[str | None, typer.Option("--columns", help="Export only these columns.", metavar="NAME,NAME")] = None,
    pool: Annotated[
        str,
        typer.Option(
            "--pool",
            help="Pool latents to the column embedding: none, mean, gem or flatten; likeness is the embedding that "
            "`imagemill search` compares.",
            metavar="POOLING",
        ),
    ] = "mean",
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="Write parquet, npy, lance or webdataset; or npz or safetensors, which are one file for each image.",
            metavar="FORMAT",
        ),
    ] = "parquet",
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            help="Write shapes: one folder for each latent shape; or one: one folder, with lists of different lengths.",
            metavar="shapes|one",
        ),
    ] = "shapes",
    scaled: Annotated[
        bool,
        typer.Option(
            "--scaled", help="Subtract the checkpoint's shift_factor from latents and multiply them by its scaling_factor."
        ),
    ] = False,
    overwrite: Overwrite = False,
    config: Storage = None,
) -> None:
    """Export the latents of OUTPUT as float32, with all columns of their images, for other tools."""
    from imagemill.jobs.export import show_export

    if run_id and as_of:
        raise ConfigError("--run-id, --as-of: cannot be combined. Give one of them.")
    names = [name.strip() for name in columns.split(",")] if columns else None
    rows = {"run": run_id, "as_of": as_of, "model": model}
    what = {"columns": names, "pool": pool, "file_format": format_, "layout": layout, "scaled": scaled}
    show_export(store_at(output, config), store_at(dest, config), **rows, **what, overwrite=overwrite)


def stats(
    output: ReadOutput,
    run_id: RunId = None,
    against: Annotated[str | None, typer.Option("--against", help="Compare with this run.", metavar="ID")] = None,
    as_json: Json = False,
    config: Storage = None,
) -> None:
    """Show mean and standard deviation of each latent channel, and how far the latents of runs drifted."""
    from imagemill.jobs.stats import show_stats

    show_stats(store_at(output, config), run_id, against, as_json)


def search(
    output: ReadOutput,
    image: Annotated[
        str | None, typer.Option("--image", help="Find images similar to this file.", metavar="FILE|URL")
    ] = None,
    id_: Annotated[
        str | None,
        typer.Option("--id", help="Find images similar to this one of OUTPUT: image_id or rel_path.", metavar="IMAGE"),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Show this many images.", min=1, metavar="N")] = 10,
    sheet: Sheet = None,
    overwrite: Overwrite = False,
    config: Storage = None,
) -> None:
    """Find the images of OUTPUT that are most similar to an image, by their latents."""
    from imagemill.jobs.search import show_search

    show_search(store_at(output, config), image, id_, k, sheet, overwrite)


def duplicates(
    output: ReadOutput,
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold",
            help="Report pairs with at least this similarity, 0 to 1. A higher value finds fewer and more certain copies.",
            min=0,
            max=1,
            metavar="NUMBER",
        ),
    ] = 0.8,
    export: Annotated[str | None, typer.Option("--export", help=EXPORT_HELP, metavar="FILE")] = None,
    sheet: Sheet = None,
    overwrite: Overwrite = False,
    config: Storage = None,
) -> None:
    """Find images of OUTPUT that are copies of each other: resized, recompressed, cropped or mirrored."""
    from imagemill.jobs.duplicates import show_duplicates

    show_duplicates(store_at(output, config), threshold, export, sheet, overwrite)


def map_(
    output: ReadOutput,
    page: Annotated[str, typer.Argument(metavar="PAGE.html", help="Write the map to this file.")] = "map.html",
    method: Annotated[
        str, typer.Option("--method", help="Project with pca, or with umap if umap-learn is installed.", metavar="pca|umap")
    ] = "pca",
    overwrite: Overwrite = False,
    config: Storage = None,
) -> None:
    """Draw the images of OUTPUT as a map in one HTML page: clusters, outliers, thumbnails."""
    from imagemill.jobs.map import write_map

    write_map(store_at(output, config), page, method, overwrite)
