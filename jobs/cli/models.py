"""Commands that train, evaluate and show models, and the demo."""

from typing import Annotated, Any

import typer

from imagemill.jobs.cli.options import (
    Address,
    Checkpoint,
    Code,
    Json,
    Output,
    Overwrite,
    Set,
    Storage,
    merge_config,
    storage_of,
)
from imagemill.pipeline.config import set_value
from imagemill.pipeline.errors import ConfigError


def train(
    config: Annotated[str, typer.Option("-c", "--config", help="Read the config of the training.", metavar="TRAIN.yaml")],
    input: Annotated[
        list[str] | None,
        typer.Option("--input", help="Train on the clean images in this folder or bucket. Repeatable.", metavar="INPUT"),
    ] = None,
    output: Output = None,
    code: Annotated[
        str | None,
        typer.Option(
            "--code",
            help="Allow the Python code of your own architecture: a folder that holds it, or installed.",
            metavar="FOLDER|installed",
        ),
    ] = None,
    address: Address = None,
    overwrite: Overwrite = False,
    set_: Set = None,
) -> None:
    """Train a checkpoint. The same command resumes an interrupted training."""
    from imagemill.jobs.train import show_training

    flags = {"input": input or None, "output": output, "code": code, "address": address}
    show_training(merge_config(config, flags, set_), config, overwrite)


def evaluate(
    config: Annotated[
        str | None, typer.Option("-c", "--config", help="Read the config of the evaluation.", metavar="EVALUATE.yaml")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Evaluate this task. Required without a YAML file.", metavar="TASK")
    ] = None,
    input: Annotated[
        str | None, typer.Option("--input", help="Evaluate on the clean images in this folder or bucket.", metavar="INPUT")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", help="Write evaluation.json and evaluation.png to this folder.", metavar="FOLDER"),
    ] = None,
    checkpoint: Checkpoint = None,
    code: Code = None,
    at: Annotated[
        list[float] | None,
        typer.Option("--at", help="Evaluate at this noise level, quantiser step or alpha. Repeatable.", metavar="NUMBER"),
    ] = None,
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Write the metrics to the card of the checkpoint.")
    ] = False,
    overwrite: Overwrite = False,
    set_: Set = None,
) -> None:
    """Evaluate a model end to end and compare it with simple baselines."""
    from imagemill.jobs.evaluate import show_evaluation

    flags = {"task": task, "input": input, "output": output, "checkpoint": checkpoint, "code": code, "at": at or None}
    show_evaluation(merge_config(config, flags, set_), config or "command line", update_card, overwrite)


def list_models(context: typer.Context, as_json: Json = False) -> None:
    """List tasks, architectures and bundled checkpoints."""
    from imagemill.jobs.registry import show_registry

    if context.invoked_subcommand is None:
        show_registry(as_json)


def import_model(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder of diffusers, or a file with weights.")],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Write the checkpoint to this folder.")],
    task: Annotated[
        str | None, typer.Option("--task", help="Import for this task. Default: what suits the network.", metavar="TASK")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name the checkpoint. Default: the name of DEST.", metavar="NAME")
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture",
            help="Build your own network: a class of a Python module, such as my_package.nets:TinyDenoiser.",
            metavar="MODULE:CLASS",
        ),
    ] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option(
            "--argument", help="Pass this argument to the class. The value is YAML. Repeatable.", metavar="KEY=VALUE"
        ),
    ] = None,
    input_range: Annotated[
        str,
        typer.Option("--input-range", help="Values of black and white for your own network.", metavar="BLACK,WHITE"),
    ] = "0,1",
    code: Annotated[
        str | None,
        typer.Option(
            "--code",
            help="Import the module from this folder. Default: installed, which is a package that is installed.",
            metavar="FOLDER|installed",
        ),
    ] = None,
    overwrite: Overwrite = False,
    config: Storage = None,
) -> None:
    """Write a checkpoint from a model of diffusers or spandrel, or from your own network and its weights."""
    from imagemill.jobs.import_model import ImportRequest, show_import

    arguments: dict[str, Any] = {}
    for assignment in argument or []:
        set_value(arguments, assignment, "--argument")
    request = ImportRequest(
        source, dest, task, name, architecture, arguments, read_range(input_range), code, overwrite=overwrite
    )
    show_import(request, storage_of(config, source))


def read_range(text: str) -> tuple[float, float]:
    """Return the two numbers of a text such as -1,1.

    Raises:
        ConfigError: when the text has another form.
    """
    try:
        black, white = map(float, text.split(","))
    except ValueError:
        raise ConfigError(f"--input-range {text}: must be two numbers, such as -1,1") from None
    return black, white


def show_model(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A bundled name, a folder or a URL.")],
    as_json: Json = False,
    config: Storage = None,
) -> None:
    """Show the card, the layers and the metrics of a checkpoint."""
    from imagemill.jobs.registry import show_checkpoint

    show_checkpoint(checkpoint, storage_of(config, checkpoint), as_json)


def demo(
    output: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Write inputs, outputs and pictures to this folder.")
    ] = "demo",
    overwrite: Overwrite = False,
) -> None:
    """Run every task on sample photos and draw the results."""
    from imagemill.jobs.demo import run_demo

    run_demo(output, overwrite)
