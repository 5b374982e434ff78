"""The commands of `imagemill`: arguments to configs, and on to the job that does the work."""

import os
import sys
from typing import Annotated, Any

import typer

from pipeline.config import RunConfig, read_yaml, set_value, validate
from pipeline.errors import ConfigError
from pipeline.logs import VARIABLE, configure
from pipeline.storage import StorageConfig, Store

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Batch image pipeline on Ray: every image ends as one committed row or one reject with a reason.",
    epilog="Exit codes: 0 done, 2 bad configuration, 3 more rejects than allowed, 4 another writer holds OUTPUT, "
    "5 storage, 6 verification failed, 7 stopped at the deadline.",
)


@app.callback()
def begin(
    log_format: Annotated[
        str | None, typer.Option("--log-format", help="text, or json: an object a line", envvar=VARIABLE)
    ] = None,
) -> None:
    if log_format:
        os.environ[VARIABLE] = log_format
        configure(sys.stderr)


Config = Annotated[str | None, typer.Option("-c", "--config", help="YAML of the run", metavar="JOB.yaml")]
Storage = Annotated[str | None, typer.Option("-c", "--config", help="YAML with a storage block", metavar="JOB.yaml")]
Input = Annotated[str | None, typer.Option("--input", help="folder or s3://bucket/prefix")]
Output = Annotated[str | None, typer.Option("--output", help="folder or s3://bucket/prefix")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override a key of the YAML", metavar="KEY=VALUE")]
Limit = Annotated[int | None, typer.Option("--limit", help="do at most so many images", min=1)]
Retry = Annotated[bool | None, typer.Option("--retry", help="do rejected images again, and nothing else")]
Reconstruct = Annotated[bool | None, typer.Option("--reconstruct", help="write the decoded images, as PNG")]
Address = Annotated[str | None, typer.Option("--address", help="a Ray cluster that exists")]
InputArgument = Annotated[str, typer.Argument(metavar="INPUT", help="folder or s3://bucket/prefix")]
OutputArgument = Annotated[str, typer.Argument(metavar="OUTPUT", help="folder or s3://bucket/prefix")]
Run = Annotated[str | None, typer.Option("--run", help="rows of this run alone", metavar="ID")]
Checkpoint = Annotated[str | None, typer.Option("--checkpoint", help="bundled name, folder or URL")]


def effective(config: str | None, assignments: list[str] | None, **flags: Any) -> RunConfig:
    """YAML, then flags that were given, then --set."""
    values = read_yaml(config) if config else {}
    params = {key: value for key, value in flags.pop("params", {}).items() if value is not None}
    values |= {key: value for key, value in flags.items() if value is not None}
    if params:
        values["params"] = (values.get("params") or {}) | params
    for assignment in assignments or []:
        set_value(values, assignment)
    return validate(RunConfig, values, config or "command line")


def merged(config: str | None, assignments: list[str] | None, flags: dict[str, Any]) -> dict[str, Any]:
    """The values of a YAML, then flags that were given, then --set."""
    values = read_yaml(config) if config else {}
    values |= {key: value for key, value in flags.items() if value is not None}
    for assignment in assignments or []:
        set_value(values, assignment)
    return values


def store(url: str, config: str | None) -> Store:
    """A place, reached as the storage block of a YAML says."""
    values = read_yaml(config).get("storage") if config else None
    return Store(url, validate(StorageConfig, values or {}, config or url))


def batch(config: RunConfig, run_id: str | None = None) -> None:
    from jobs.batch import run_and_show

    run_and_show(config, run_id)


@app.command()
def run(
    config: Annotated[str, typer.Option("-c", "--config", help="YAML of the run", metavar="JOB.yaml")],
    input: Input = None,
    output: Output = None,
    limit: Limit = None,
    retry: Retry = None,
    reconstruct: Reconstruct = None,
    address: Address = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="what the run is called; a new name when absent")] = None,
    set_: Set = None,
) -> None:
    """Run a job: list INPUT, subtract what OUTPUT already holds, do the rest."""
    flags = {"input": input, "output": output, "limit": limit, "retry": retry, "reconstruct": reconstruct}
    batch(effective(config, set_, **flags, address=address), run_id)


@app.command()
def submit(
    config: Config = None,
    input: Input = None,
    output: Output = None,
    limit: Limit = None,
    retry: Retry = None,
    reconstruct: Reconstruct = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="the cluster's dashboard; RAY_API_SERVER_ADDRESS, RAY_ADDRESS", metavar="URL"),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="send the token over plain http to another host")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="follow the job to its end")] = True,
    resume: Annotated[
        str | None, typer.Option("--resume", help="follow a job that was submitted before", metavar="ID")
    ] = None,
    set_: Set = None,
) -> None:
    """Run a job on a Ray cluster, follow it, and end with its exit code."""
    from jobs.submit import follow_to_end, submit_and_follow

    if resume:
        code = follow_to_end(address, insecure, resume)
    else:
        flags = {"input": input, "output": output, "limit": limit, "retry": retry, "reconstruct": reconstruct}
        code = submit_and_follow(effective(config, set_, **flags), address, insecure, wait)
    raise typer.Exit(code)


@app.command()
def compress(
    input: InputArgument,
    output: OutputArgument,
    step: Annotated[float | None, typer.Option("--step", help="quantiser step: larger is smaller and worse")] = None,
    coding: Annotated[str | None, typer.Option("--coding", help="plain (lists of numbers) or coded (smaller)")] = None,
    reconstruct: Reconstruct = None,
    checkpoint: Checkpoint = None,
    limit: Limit = None,
    retry: Retry = None,
    config: Config = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Images to latent codes in Parquet."""
    flags = {"checkpoint": checkpoint, "limit": limit, "retry": retry, "reconstruct": reconstruct, "address": address}
    params = {"step": step, "coding": coding}
    batch(effective(config, set_, task="compress", input=input, output=output, params=params, **flags))


@app.command()
def denoise(
    input: InputArgument,
    output: OutputArgument,
    sigma: Annotated[
        float | None, typer.Option("--sigma", help="noise level in 8-bit levels; estimated when absent")
    ] = None,
    checkpoint: Checkpoint = None,
    limit: Limit = None,
    retry: Retry = None,
    config: Config = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Noisy photos to clean ones."""
    flags = {"checkpoint": checkpoint, "limit": limit, "retry": retry, "address": address}
    batch(effective(config, set_, task="denoise", input=input, output=output, params={"sigma": sigma}, **flags))


@app.command()
def inpaint(
    input: InputArgument,
    output: OutputArgument,
    missing: Annotated[
        str | None, typer.Option("--missing", help="what says what is missing: file (NAME.mask.png), alpha, key, red, …")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="colour of what is missing, #rrggbb", metavar="COLOUR")] = None,
    checkpoint: Checkpoint = None,
    limit: Limit = None,
    retry: Retry = None,
    config: Config = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Fill holes, scratches, lost pixels or one missing colour plane; known pixels stay bit-identical."""
    flags = {"checkpoint": checkpoint, "limit": limit, "retry": retry, "address": address}
    params = {"missing": missing or ("key" if key else None), "key": key}
    batch(effective(config, set_, task="inpaint", input=input, output=output, params=params, **flags))


@app.command()
def colorize(
    input: InputArgument,
    output: OutputArgument,
    saturation: Annotated[float | None, typer.Option("--saturation", help="factor of the predicted colours")] = None,
    checkpoint: Checkpoint = None,
    limit: Limit = None,
    retry: Retry = None,
    config: Config = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Gray photos to coloured ones whose luma is exactly the same."""
    flags = {"checkpoint": checkpoint, "limit": limit, "retry": retry, "address": address}
    batch(effective(config, set_, task="colorize", input=input, output=output, params={"saturation": saturation}, **flags))


@app.command()
def stylize(
    input: InputArgument,
    output: OutputArgument,
    style: Annotated[
        list[str] | None, typer.Option("--style", help="style image, file or s3:// URL; repeat it to mix several")
    ] = None,
    style_weight: Annotated[
        list[float] | None, typer.Option("--style-weight", help="of the styles, one each; equal when absent")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="adain (one pass) or gatys (optimises the image)")] = None,
    strength: Annotated[float | None, typer.Option("--strength", help="adain: 0 is the image, 1 its full restyling")] = None,
    size: Annotated[int | None, typer.Option("--size", help="reduce larger images to this long side, in pixels")] = None,
    preserve_color: Annotated[
        bool | None, typer.Option("--preserve-color", help="keep the image's colours, transfer luminance alone")
    ] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="gatys: weight of the content loss")] = None,
    beta: Annotated[float | None, typer.Option("--beta", help="gatys: weight of the style loss")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="gatys: steps of the optimiser")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="bundled name, folder or URL; for gatys vgg19-dcbb9e9d.pth or random as well"),
    ] = None,
    limit: Limit = None,
    retry: Retry = None,
    config: Config = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Photos painted in the style of a picture, or of several."""
    flags = {"checkpoint": checkpoint, "limit": limit, "retry": retry, "address": address}
    params = {
        "style": style or None,
        "style_weights": style_weight or None,
        "method": method,
        "strength": strength,
        "size": size,
        "preserve_color": preserve_color,
        "alpha": alpha,
        "beta": beta,
        "steps": steps,
    }
    batch(effective(config, set_, task="stylize", input=input, output=output, params=params, **flags))


@app.command()
def plan(
    config: Config = None,
    task: Annotated[str | None, typer.Option("--task")] = None,
    input: Input = None,
    output: Output = None,
    limit: Limit = None,
    retry: Retry = None,
    reconstruct: Reconstruct = None,
    set_: Set = None,
) -> None:
    """Say what a run would do, and change nothing."""
    from jobs.batch import show_plan

    show_plan(
        effective(config, set_, task=task, input=input, output=output, limit=limit, retry=retry, reconstruct=reconstruct)
    )


@app.command()
def status(output: OutputArgument, config: Storage = None) -> None:
    """What OUTPUT holds and how its last runs ended."""
    from jobs.inspect import show_status

    show_status(store(output, config))


@app.command()
def verify(output: OutputArgument, config: Storage = None) -> None:
    """Check OUTPUT against itself: rows, files, digests, latents. Exit 6 when something is wrong."""
    from jobs.inspect import show_verified

    show_verified(store(output, config))


@app.command()
def failures(
    output: OutputArgument,
    by_reason: Annotated[bool, typer.Option("--by-reason", help="count them by stage and class")] = False,
    export: Annotated[
        str | None, typer.Option("--export", help="write them to a file", metavar="FILE.csv|.jsonl|.parquet")
    ] = None,
    config: Storage = None,
) -> None:
    """List the rejects with their reasons; `--retry` on a run does them again."""
    from jobs.failures import show_failures

    show_failures(store(output, config), by_reason, export)


@app.command()
def report(
    output: OutputArgument,
    run: Annotated[str | None, typer.Option("--run", help="the last one when absent", metavar="ID")] = None,
    config: Storage = None,
) -> None:
    """Make the report.html of a run anew."""
    from jobs.report import remake

    remake(store(output, config), run)


@app.command()
def decode(
    output: OutputArgument,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="folder or s3://bucket/prefix for the images")],
    where: Annotated[
        str | None, typer.Option("--where", help='only rows for which this holds, as in "psnr_db < 30"', metavar="SQL")
    ] = None,
    config: Storage = None,
) -> None:
    """Turn the latents of OUTPUT, or of an export of it, back into PNG images."""
    from jobs.decode import decode_output

    decode_output(store(output, config), store(dest, config), where)


@app.command()
def export(
    output: OutputArgument,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="empty folder or s3://bucket/prefix")],
    latest: Annotated[bool, typer.Option("--latest", help="the newest row of each image: what is done anyway")] = False,
    run: Run = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", help="the state at the end of a day, or at a time, in UTC", metavar="DATE")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="rows of this model: name, or digest of a checkpoint")] = None,
    columns: Annotated[str | None, typer.Option("--columns", help="instead of all", metavar="NAME,NAME")] = None,
    pool: Annotated[str, typer.Option("--pool", help="of the column embedding: none, mean, gem, flatten")] = "mean",
    format_: Annotated[str, typer.Option("--format", help="parquet, npy, lance or webdataset")] = "parquet",
    config: Storage = None,
) -> None:
    """Write the latents of OUTPUT, as float32, and all that is known of their images, for other tools."""
    from jobs.export import show_export

    if latest + bool(run) + bool(as_of) > 1:
        raise ConfigError("--latest, --run and --as-of: one of them at a time")
    names = [name.strip() for name in columns.split(",")] if columns else None
    what = {"run": run, "as_of": as_of, "model": model, "columns": names, "pool": pool, "form": format_}
    show_export(store(output, config), store(dest, config), **what)


@app.command()
def stats(
    output: OutputArgument,
    run: Run = None,
    against: Annotated[str | None, typer.Option("--against", help="a run to compare with", metavar="RUN")] = None,
    config: Storage = None,
) -> None:
    """Mean and variance of each latent channel, and how far runs drifted from each other."""
    from jobs.stats import show_stats

    show_stats(store(output, config), run, against)


Sheet = Annotated[str | None, typer.Option("--sheet", help="draw them into a picture", metavar="FILE.png")]


@app.command()
def search(
    output: OutputArgument,
    image: Annotated[str | None, typer.Option("--image", help="image to find the like of", metavar="FILE|URL")] = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="one of OUTPUT's own instead: image_id or rel_path", metavar="IMAGE")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="how many", min=1)] = 10,
    sheet: Sheet = None,
    config: Storage = None,
) -> None:
    """Find the images of OUTPUT that are most like one, by their latents."""
    from jobs.search import show_search

    show_search(store(output, config), image, id_, k, sheet)


@app.command()
def duplicates(
    output: OutputArgument,
    threshold: Annotated[
        float,
        typer.Option("--threshold", help="least similarity of a copy; higher finds fewer and surer ones", min=0, max=1),
    ] = 0.7,
    export: Annotated[
        str | None, typer.Option("--export", help="write them to a file", metavar="FILE.csv|.jsonl|.parquet")
    ] = None,
    sheet: Sheet = None,
    config: Storage = None,
) -> None:
    """Find the images of OUTPUT that are copies of each other: resized, recompressed, cropped, mirrored."""
    from jobs.duplicates import show_duplicates

    show_duplicates(store(output, config), threshold, export, sheet)


@app.command("map")
def map_(
    output: OutputArgument,
    page: Annotated[str, typer.Argument(metavar="PAGE.html", help="file to write")] = "map.html",
    method: Annotated[str, typer.Option("--method", help="pca, or umap where umap-learn is installed")] = "pca",
    config: Storage = None,
) -> None:
    """Draw the images of OUTPUT as a map in one HTML page: clusters, outliers, thumbnails."""
    from jobs.map import write_map

    write_map(store(output, config), page, method)


@app.command()
def nightly(
    config: Annotated[str, typer.Option("-c", "--config", help="YAML of the night", metavar="NIGHTLY.yaml")],
    until: Annotated[str | None, typer.Option("--until", help="local time at which the night ends", metavar="HH:MM")] = None,
    set_: Set = None,
) -> None:
    """Run several jobs in order over what is new or changed; exit 7 when the deadline came first."""
    from jobs.nightly import NightlyConfig, show_night

    show_night(validate(NightlyConfig, merged(config, set_, {"until": until}), config))


@app.command()
def train(
    config: Annotated[str, typer.Option("-c", "--config", help="YAML of the training", metavar="TRAIN.yaml")],
    input: Annotated[
        list[str] | None, typer.Option("--input", help="folder or bucket of clean images; may be repeated")
    ] = None,
    output: Output = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Train a checkpoint; the same command resumes what it left."""
    from jobs.train import show_training

    values = read_yaml(config)
    flags = {"input": input, "output": output, "address": address}
    values |= {key: value for key, value in flags.items() if value is not None}
    for assignment in set_ or []:
        set_value(values, assignment)
    show_training(values, config)


@app.command()
def evaluate(
    config: Annotated[
        str | None, typer.Option("-c", "--config", help="YAML of the evaluation", metavar="EVALUATE.yaml")
    ] = None,
    task: Annotated[str | None, typer.Option("--task")] = None,
    input: Annotated[str | None, typer.Option("--input", help="folder or bucket of clean images")] = None,
    output: Annotated[str | None, typer.Option("--output", help="folder for evaluation.json and evaluation.png")] = None,
    checkpoint: Checkpoint = None,
    at: Annotated[list[float] | None, typer.Option("--at", help="noise level or quantiser step; may be repeated")] = None,
    update_card: Annotated[bool, typer.Option("--update-card", help="write the figures into the checkpoint's card")] = False,
    set_: Set = None,
) -> None:
    """Measure a model through the whole product, beside what can be had without it."""
    from jobs.evaluate import show_evaluation

    flags = {"task": task, "input": input, "output": output, "checkpoint": checkpoint, "at": at}
    show_evaluation(merged(config, set_, flags), config or "command line", update_card)


registry = typer.Typer(help="Tasks, architectures and checkpoints.", invoke_without_command=True)
app.add_typer(registry, name="models")


@registry.callback()
def list_models(context: typer.Context) -> None:
    """List the tasks, the architectures and the bundled checkpoints."""
    from jobs.registry import show_registry

    if context.invoked_subcommand is None:
        show_registry()


@registry.command("show")
def show_model(
    checkpoint: Annotated[str, typer.Argument(metavar="NAME|FOLDER|URL", help="bundled name, folder or URL")],
    config: Storage = None,
) -> None:
    """Print a checkpoint's card, its layers, and what was measured on which set."""
    from jobs.registry import show_checkpoint

    values = read_yaml(config).get("storage") if config else None
    show_checkpoint(checkpoint, validate(StorageConfig, values or {}, config or checkpoint))


@app.command()
def demo(output: Annotated[str, typer.Argument(metavar="FOLDER")] = "demo") -> None:
    """Compress and denoise the photos that scikit-image carries, and draw what came out."""
    from jobs.demo import run_demo

    run_demo(output)
